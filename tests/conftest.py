"""What every test shares: one thread for each worker, and seeds set anew."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
# The same examples on every run, and no time limit on a busy machine; --hypothesis-profile=default looks for new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """A test draws the same numbers alone and among others."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
