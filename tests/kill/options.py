"""The command line of the programs that kill."""

from __future__ import annotations

import argparse


def kill_options(description: str | None, *, kills: int) -> argparse.Namespace:
    """`kills` unless it says otherwise, and the seed of their moments."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--kills", type=int, default=kills)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()
