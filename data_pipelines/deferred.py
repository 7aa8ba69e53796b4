"""Arrays whose shape is known before their numbers are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


class Deferred:
    """An array of known shape that is made when numpy asks for it."""

    def __init__(self, shape: tuple[int, ...], make: Callable[[], np.ndarray]) -> None:
        self.shape, self.make = shape, make

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        return self.__array__()[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy
        made = self.make()
        return made if dtype is None else made.astype(dtype)
