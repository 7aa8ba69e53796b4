"""What the pages for readers show: blocks of Python, command lines and options; and a folder in which they can run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tests.oracles.bagel import random_bagel, write_folder
from tests.oracles.foreign import foreign_llama, foreign_tokenizer, saved
from tests.oracles.tiny import tiny_flow_pipeline, tiny_image_tokenizer, tiny_picture, tiny_pipeline
from tests.oracles.tiny_training import ROOT

HISTORY = {"log.md"}
"""Pages of what was done once, with the commands of that time."""
PAGES = [ROOT / "README.md", *sorted(page for page in ROOT.glob("docs/**/*.md") if page.name not in HISTORY)]
CONFIGS = sorted(ROOT.glob("configs/**/*.yaml"))
PROGRAMS = ("unimodal", "python", "make")
REQUESTS = {"make it red"}
"""What users may ask of a model: no command."""
OPTION = re.compile(r"(?<![\w-])--[a-z][\w.-]*")

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in a language."""
    return [text for name, text in _FENCED.findall(page.read_text(encoding="utf-8")) if name == language]


def without_blocks(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCED.sub("", page.read_text(encoding="utf-8"))


def shell_lines(page: Path) -> list[str]:
    """Every line of a page's shell blocks, continued lines as one, and those of its indented blocks that begin with a
    program; of a config, the commands in its header."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".yaml":
        header = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ")]
        return [line for line in header if line.split()[0] in PROGRAMS]
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    indented = re.sub(r"\n {8,}", " ", without_blocks(page))
    lines += [line.strip() for line in indented.splitlines() if line.startswith("    ")]
    kept = [re.sub(r"\s+#.*", "", line).strip() for line in lines if line.strip()]
    return [line for line in kept if line.split()[0] in PROGRAMS]


def spans(page: Path) -> list[str]:
    """The code spans in a page's prose."""
    found = (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", without_blocks(page)))
    return [span for span in found if span and span not in REQUESTS]


def is_outline(line: str) -> bool:
    """Whether a command line shows what may be given, not something that can be typed."""
    return re.search(r"\[--|\||\.\.\.|…", line) is not None


def commands_of(line: str) -> list[str]:
    """`unimodal tokenize | inspect ...` -> the commands that it names."""
    named = re.match(r"(?:unimodal|python train\.py|make) ((?:[a-z-]+ \| )*[a-z-]+)", line)
    return named[1].split(" | ") if named else []


def options_of(line: str) -> Iterator[str]:
    """The options that a command line or a span names."""
    for option in OPTION.findall(line):
        yield option.split("=")[0].rstrip(".")


def make_places(folder: Path) -> Path:
    """What the examples open, under the names that they use: bundles, a picture, models of others."""
    tiny_pipeline(max_length=200).save(folder / "runs/demo/model")
    tiny_pipeline(max_length=200).save(folder / "DIR")
    tiny_flow_pipeline(max_length=300).save(folder / "runs/easy_vqa_flow/model")
    for number, name in enumerate(("photo", "cat", "dog")):
        tiny_picture(number).save(folder / f"{name}.png")
    tiny_pipeline(max_length=200).save(folder / "runs/finetune/model")
    tiny_image_tokenizer().save(folder / "runs/demo/tokenizer/image_tokenizer")
    for name in ("a-llama", "a-qwen3"):
        saved(foreign_llama(foreign_tokenizer().get_vocab_size()), folder / name)
    write_folder(folder / "BAGEL-7B-MoT", random_bagel())
    (folder / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    for name in ("configs", "docs"):
        (folder / name).symlink_to(ROOT / name)
    return folder
