"""What every backbone config tells."""

from __future__ import annotations


class BackboneConfig:
    """The choice of a backbone; a config names one of its subclasses."""

    @property
    def reduction(self) -> int:
        """Pixels along one side of a code."""
        raise NotImplementedError
