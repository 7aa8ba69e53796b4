"""What the documents of a batch are like, which no loss shows: without separators a model learns its data all the same,
and answers nothing that is asked with one."""

from __future__ import annotations

from data_pipelines.batch import PackedBatch
from tokenizers_vq.token_space import Specials
from unimodal.training.monitors.sums import MonitorSums

SEPARATORS = "separators"


def document_sums(batch: PackedBatch, specials: Specials) -> MonitorSums:
    """`separators`: how many there are for each <eos>, at most 1: that where every answer follows one (templates.py).

    Noised drawings follow one and end without <eos>, so there may be more.
    """
    ends = (batch.tokens == specials.eos).sum().double()
    separators = (batch.tokens == specials.sep).sum().double().minimum(ends)
    return MonitorSums(means={SEPARATORS: (separators, ends)})
