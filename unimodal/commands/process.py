"""How a command's process behaves: signals, warnings and small numbers."""

from __future__ import annotations

import logging
import signal
from typing import Any, NoReturn


def prepare(*, signals: bool) -> None:
    """Warnings come with their level, numbers too small for float32 are 0; SIGTERM is answered if `signals` says so."""
    from unimodal.devices import flush_denormals  # torch takes a second to import, which --help does not wait for

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    flush_denormals()
    if signals:
        signal.signal(signal.SIGTERM, _stop)


def _stop(number: int, frame: Any) -> NoReturn:
    """A signal to end is answered as Ctrl-C is, so that what is open is closed."""
    raise KeyboardInterrupt(number)
