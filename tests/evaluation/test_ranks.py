"""Two ranks score a model as one does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.oracles.tiny import tiny_bundle
from unimodal.cli import main
from unimodal.evaluation import ranks

TIMES = ("seconds", "created", "machine")


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def on_two_ranks(arguments: list[str]) -> None:
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "CUDA_VISIBLE_DEVICES": ""}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "unimodal", *arguments],
            env={**os.environ, **shared, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[1][0] == "", "the second rank printed something"


def results(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text())
    return {name: value for name, value in found.items() if name not in (*TIMES, "command")}


def gathered(shares: list[list[int]], parts: list[Any], part: list[int]) -> None:
    assert part == shares[0]
    parts[:] = shares


@pytest.mark.slow
@pytest.mark.parametrize(
    "task",
    [
        pytest.param(["--task", "caption"], marks=pytest.mark.ranks),
        ["--task", "vqa", "--choices", "yes", "no", "red"],
    ],
    ids=" ".join,
)
def test_two_ranks_write_the_results_of_one(task: list[str], tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "model")
    words = ["evaluate", "--model", str(bundle), "--source", "easy_vqa", "--limit", "5", *task, "--out"]
    assert main([*words, str(tmp_path / "one" / "results.json")]) == 0
    on_two_ranks([*words, str(tmp_path / "two" / "results.json")])
    assert results(tmp_path / "two" / "results.json") == results(tmp_path / "one" / "results.json")
    names = [sorted(path.name for path in (tmp_path / folder).rglob("*")) for folder in ("one", "two")]
    assert names[0] == names[1]


def test_shares_are_disjoint_and_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    for count in (0, 1, 2, 7):
        shares: list[list[int]] = []
        for rank in range(3):
            monkeypatch.setenv("RANK", str(rank))
            shares.append(list(ranks.share(count)))
        gather = partial(gathered, shares)
        monkeypatch.setattr(ranks.dist, "all_gather_object", gather)
        assert ranks.merged(shares[0]) == list(range(count))
