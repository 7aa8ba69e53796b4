"""Self-contained pages: the report of a run, and documents of shards."""

from unimodal.report.documents import write_documents
from unimodal.report.page import write_report

__all__ = ["write_documents", "write_report"]
