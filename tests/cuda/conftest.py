"""Every test here runs on a device of Hopper's kind, as far as torch asks; it holds no numbers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from unimodal.model import token_head


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    """A device of Hopper's kind, as far as torch asks."""
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    uncompiled = token_head._Kernels(token_head.plain_scores, token_head._slope)
    monkeypatch.setattr(token_head, "_kernels", lambda device: uncompiled)  # nothing can be compiled for it
    with FakeTensorMode() as mode:
        yield mode
