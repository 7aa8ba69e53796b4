"""What grows before a loss diverges: the output of the last layer, and the scores of attention.

The norm of the last layer's output is Chameleon's early warning: where it grows without control, the loss diverges
after a fifth of the training or later (arXiv 2405.09818, section 2.3). Scores of attention grow where nothing bounds
the norms of queries and keys (arXiv 2309.14322, section 3.1).
"""

from __future__ import annotations

from unimodal.training.monitors.observed import Observed
from unimodal.training.monitors.sums import MonitorSums

OUTPUT_NORM, ATTENTION_LOGIT = "output_norm", "attention_logit"


def activation_sums(observed: Observed) -> MonitorSums:
    """`output_norm`, a mean over tokens of the root of the mean square; `attention_logit`, the largest of all layers,
    and that of each layer."""
    real = observed.batch.documents >= 0
    norms = observed.output.float().square().mean(-1).sqrt() * real
    layers = {f"{ATTENTION_LOGIT}_layer_{layer:02d}": one for layer, one in enumerate(observed.attention)}
    return MonitorSums(
        means={OUTPUT_NORM: (norms.sum(), real.sum())}, largest={ATTENTION_LOGIT: observed.attention.amax(), **layers}
    )
