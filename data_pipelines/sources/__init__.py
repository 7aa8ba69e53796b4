"""Sources: one file for each format that documents are read from."""

from data_pipelines.sources.easy_vqa import EasyVQA
from data_pipelines.sources.imagefolder import ImageFolder
from data_pipelines.sources.registry import SOURCES, open_source
from data_pipelines.sources.source import Source

__all__ = ["SOURCES", "EasyVQA", "ImageFolder", "Source", "open_source"]
