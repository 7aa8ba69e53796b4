"""What a run left behind, read for the report; anything absent or unreadable becomes a note."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Points = list[tuple[float, float]]
LOGS = ("tokenizer", "model", "rl")
ROLLOUTS = "rollout-*.png"
_FINISHED = "finished.json"
"""Which a stage that has ended leaves (training/curriculum.py)."""
_FOLDERS = ("--trainer.default_root_dir", "--bundle.out", "--model.start.bundle")
SAMPLES_FOLDER = "samples"
"""The folder in which a training leaves pictures."""
TASK_ORDER = ("vqa", "caption", "t2i", "reconstruction", "edit")


@dataclass(frozen=True, kw_only=True)
class Result:
    """One results file and the folder its pictures are relative to."""

    content: Mapping[str, Any]
    folder: Path
    name: str = ""
    """Of its file, without the ending."""

    @property
    def task(self) -> str:
        return str(self.content.get("task", "unknown"))

    @property
    def metrics(self) -> dict[str, float]:
        return {str(name): float(value) for name, value in self.content.get("metrics", {}).items()}

    @property
    def examples(self) -> list[dict[str, Any]]:
        return list(self.content.get("examples", []))


@dataclass(frozen=True, kw_only=True)
class StageFiles:
    """What a stage of a curriculum left behind."""

    name: str
    curves: dict[str, Points]
    settings: list[str]
    """Options of its own, of those that differ from the other stages'; empty before it has ended."""
    ended: bool

    @property
    def steps(self) -> int:
        """The last step that was logged, counted from 1."""
        return 1 + int(max((points[-1][0] for points in self.curves.values()), default=-1))


@dataclass(kw_only=True)
class RunFiles:
    """Everything the page is made of. `curves`: log name -> column -> (step, value)."""

    folder: Path
    results: list[Result] = field(default_factory=list)
    curves: dict[str, dict[str, Points]] = field(default_factory=dict)
    timings: list[dict[str, Any]] = field(default_factory=list)
    dialogue: list[dict[str, Any]] = field(default_factory=list)
    samples: list[tuple[str, Path]] = field(default_factory=list)
    rollouts: list[Path] = field(default_factory=list)
    """Pictures of rollouts, from the first to the last."""
    stages: list[StageFiles] = field(default_factory=list)
    """Of a curriculum, in their order."""
    notes: list[str] = field(default_factory=list)

    def of_task(self, task: str) -> list[Result]:
        """Results of one task, in file order."""
        return [result for result in self.results if result.task == task]


def read_run(folder: Path) -> RunFiles:
    """Read the folder of the demo or of a training. Raises ValueError when it is not there."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give the folder of a run")
    files = RunFiles(folder=folder)
    for path in sorted((folder / "results").glob("*.json")):
        content = _read_json(files, path)
        if isinstance(content, dict):
            files.results.append(Result(content=content, folder=path.parent, name=path.stem))
        elif content is not None:
            files.notes.append(f"results/{path.name} is not a results file.")
    files.results += [Result(content=content, folder=folder) for content in _results_beside(folder)]
    files.results.sort(key=lambda result: TASK_ORDER.index(result.task) if result.task in TASK_ORDER else 99)
    files.stages = _read_stages(files)
    for name in () if files.stages else LOGS:
        place = _log_folder(folder, name)
        if name != "rl" or any(place.rglob("metrics.csv")):
            files.curves[name] = _read_curves(files, place)
    files.samples = _newest_samples(folder)
    folders = (folder / "rl" / SAMPLES_FOLDER, folder / SAMPLES_FOLDER)
    files.rollouts = next((found for place in folders if (found := sorted(place.glob(ROLLOUTS)))), [])
    files.timings = _read_list(files, folder / "timings.json")
    files.dialogue = _read_list(files, folder / "dialogue.json")
    return files


def _read_stages(files: RunFiles) -> list[StageFiles]:
    """Folders that are called `1-NAME`, `2-NAME` and so on."""
    named = [(path, path.name.partition("-")) for path in files.folder.glob("*-*") if path.is_dir()]
    found = sorted((int(number), name, path) for path, (number, _, name) in named if number.isdecimal())
    ended = {path: _read_json(files, path / _FINISHED) for _, _, path in found if (path / _FINISHED).is_file()}
    given = {path: set(_options(content)) for path, content in ended.items()}
    common = set[str].intersection(*given.values()) if given else set()
    return [
        StageFiles(
            name=name,
            curves=_read_curves(files, path / "logs"),
            settings=[option for option in _options(ended.get(path)) if option not in common],
            ended=path in ended,
        )
        for _, name, path in found
    ]


def _options(content: Any) -> list[str]:
    """The options of a stage, without the folders that differ in any case."""
    arguments = content.get("arguments", []) if isinstance(content, dict) else []
    return [text for text in map(str, arguments) if text.startswith("--") and not text.startswith(_FOLDERS)]


def _results_beside(folder: Path) -> list[dict[str, Any]]:
    """Results files in the run's folder itself, where the README's commands leave them."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and {"task", "metrics"} <= content.keys():
            found.append(content)
    return found


def _log_folder(folder: Path, name: str) -> Path:
    """Where a training logs: the demo's copies, a folder of its own beside the run, or the run's own logs."""
    logs = folder / "logs"
    headers = [_header(log) for log in logs.glob("version_*/metrics.csv")]
    kinds = {"tokenizer": "train/psnr", "rl": "train/reward"}
    kind = next((kind for kind, column in kinds.items() if any(column in header for header in headers)), "model")
    folders = [logs / name, folder / name / "logs"]
    folders += [logs] if kind == name and any(logs.glob("version_*")) else []
    return next((each for each in folders if any(each.rglob("metrics.csv"))), folders[0])


def _header(log: Path) -> str:
    with log.open(encoding="utf-8") as file:
        return file.readline()


def _newest_samples(folder: Path) -> list[tuple[str, Path]]:
    """(what it shows, picture) of the last pictures that a training and its tokenizer's left."""
    found: dict[str, Path] = {}
    for place in (folder / "tokenizer" / SAMPLES_FOLDER, folder / "training" / SAMPLES_FOLDER, folder / SAMPLES_FOLDER):
        for path in sorted(place.glob("*-*.png")):
            if not path.match(ROLLOUTS):
                found[path.stem.rpartition("-")[0]] = path
    return list(found.items())


def _read_json(files: RunFiles, path: Path) -> Any:
    """The file's content, or None and a note."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        files.notes.append(f"{path.relative_to(files.folder)} is not there.")
    except ValueError as error:
        files.notes.append(f"{path.relative_to(files.folder)} cannot be read: {error}.")
    return None


def _read_list(files: RunFiles, path: Path) -> list[dict[str, Any]]:
    content = _read_json(files, path)
    if content is not None and not isinstance(content, list):
        files.notes.append(f"{path.relative_to(files.folder)} is not a list.")
    return [item for item in content if isinstance(item, dict)] if isinstance(content, list) else []


def _read_curves(files: RunFiles, folder: Path) -> dict[str, Points]:
    """Columns of the newest metrics.csv under `folder`; its rows are sparse."""
    logs = sorted(folder.rglob("metrics.csv"), key=lambda path: path.stat().st_mtime)
    if not logs:
        files.notes.append(f"{(folder / 'metrics.csv').relative_to(files.folder)} is not there.")
        return {}
    columns: dict[str, Points] = {}
    with logs[-1].open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            step = _number(row.get("step"))
            for name, text in row.items():
                value = _number(text)
                if name not in ("step", "epoch") and step is not None and value is not None:
                    columns.setdefault(name, []).append((step, value))
    return columns


def _number(text: str | None) -> float | None:
    """A finite number, or None for an empty or other cell."""
    try:
        value = float(text or "nan")
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
