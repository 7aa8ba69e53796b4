"""A tiny run of reinforcement learning: prompts in a file, a bundle that answers them, the arguments of `fit`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
import torch.distributed as dist

from tests.oracles.tiny import tiny_bundle, tiny_picture
from unimodal.training.rl.rewards.base import Answered, Reward

WORDS = ("a red circle", "a blue square", "what color is it?", "is there a red square?")

REWARDS = (
    "{length: {class_path: LengthForm, init_args: {min_words: 3, max_words: 5}}, pictures: {class_path: PictureCount}, "
    "red: {class_path: tests.oracles.tiny_rl.Redness}}"
)


class Redness(Reward):
    """How red the pictures of an answer are."""

    def score(self, answers: Sequence[Answered]) -> Sequence[float]:
        """See `Reward`."""
        return [fmean(np.asarray(picture)[..., 0].mean() / 255 for picture in each.pictures) for each in answers]


class Broken(Reward):
    """Cannot be had."""

    def score(self, answers: Sequence[Answered]) -> Sequence[float]:
        """See `Reward`."""
        raise OSError("no scorer here")


class BrokenOnRankOne(Redness):
    """Cannot be had on one of two ranks."""

    def score(self, answers: Sequence[Answered]) -> Sequence[float]:
        """See `Reward`."""
        if dist.get_rank():
            raise OSError("no scorer here")
        return super().score(answers)


class Late(Reward):
    """Scores with a weight that it trains itself, which needs gradients."""

    def prepare(self) -> None:
        """One step of a regression."""
        weight = torch.ones(1, requires_grad=True)
        (weight - 0.5).square().sum().backward()
        assert weight.grad is not None
        self.weight = 0.5 * weight.grad.item()

    def score(self, answers: Sequence[Answered]) -> Sequence[float]:
        """See `Reward`."""
        return [self.weight] * len(answers)


def tiny_prompts(path: Path, *, pictures: bool = True) -> Path:
    """Lines of prompts of words, and one with a picture beside them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [{"prompt": text, "facts": {"answers": ["yes"], "pictures": 1}} for text in WORDS]
    if pictures:
        tiny_picture(0).save(path.parent / "shown.png")
        facts = {"answers": ["red"], "pictures": 1}
        lines.append({"prompt": [{"image": "shown.png"}, "what color is it?"], "facts": facts})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def rl_arguments(folder: Path, root: Path, **options: str | float) -> list[str]:
    """`fit` on a tiny bundle in `folder`, made where it is not there; `options` overrides, with dots as `__`."""
    if not (folder / "bundle").exists():
        tiny_bundle(folder / "bundle")
        tiny_prompts(folder / "prompts.jsonl")
    kinds = {
        "{length: 1.0, pictures: 0.5}": "{mode: mixed, max_new_tokens: 12, guidance: 2.0}",
        "{red: 1.0}": "{mode: image, guidance: 2.0}",
    }
    file = folder / "prompts.jsonl"
    prompts = ", ".join(
        f"{{class_path: FilePrompts, init_args: {{path: {file}, rewards: {rewards}, decode: {decode}}}}}"
        for rewards, decode in kinds.items()
    )
    settings: dict[str, str | float] = {
        "trainer.max_steps": 6,
        "trainer.accelerator": "cpu",
        "trainer.precision": "32-true",
        "trainer.log_every_n_steps": 1,
        "trainer.default_root_dir": str(root),
        "trainer.limit_val_batches": 0,
        "checkpoint.every_n_train_steps": 2,
        "samples.every": 0,
        "model": "PolicyModule",
        "model.rewards": REWARDS,
        "model.rollouts": "{prompts: 4, group: 4, rows: 2, length: 64, mini_batches: 2}",
        "model.compile": "false",
        "model.optimizer": "AdamWConfig",
        "model.optimizer.learning_rate": 0.01,
        "data": "PromptDataModule",
        "data.bundle": str(folder / "bundle"),
        "data.prompts": f"[{prompts}]",
        **{name.replace("__", "."): value for name, value in options.items()},
    }
    return ["fit", "--seed_everything=7", *(f"--{name}={value}" for name, value in settings.items())]
