"""What the documents of a batch are like, which no loss shows: without separators a model learns its data all the same,
and answers nothing that is asked with one."""

from __future__ import annotations

from data_pipelines.batch import PackedBatch
from tokenizers_vq.token_space import Specials
from unimodal.training.monitors.sums import MonitorSums

SEPARATORS = "separators"


def document_sums(batch: PackedBatch, specials: Specials) -> MonitorSums:
    """`separators`: how many there are for each <eos>; 1 where every answer follows one (templates.py)."""
    tokens = batch.tokens
    counts = ((tokens == specials.sep).sum().double(), (tokens == specials.eos).sum().double())
    return MonitorSums(means={SEPARATORS: counts})
