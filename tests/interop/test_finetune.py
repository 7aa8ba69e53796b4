"""Fine-tuning: a model of theirs is imported, trained by the commands of configs/run/finetune.yaml, and exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import unimodal
from data_pipelines.shards.reader import open_manifest
from tests.oracles.foreign import LLAMA3_ROPE, foreign_model, foreign_tokenizer, saved
from tests.oracles.passes import logits
from tests.oracles.tiny import tiny_image_tokenizer, tiny_picture_folder
from tests.oracles.tiny_training import finish, logged, start_training
from tokenizers_vq.bundle_files import IMAGE_TOKENIZER, TEXT_TOKENIZER
from unimodal.cli import main
from unimodal.interop.registry import ARCHITECTURES

STEPS = 20
TOLERANCE = 1e-5
TIED = ("qwen3",)
"""Of these the tied variant is trained."""


def imported(model_type: str, root: Path) -> Path:
    """A bundle of a random model, by the command line."""
    fields = {"tie_word_embeddings": model_type in TIED, "rope_parameters": LLAMA3_ROPE}
    theirs = foreign_model(model_type, vocab_size=foreign_tokenizer().get_vocab_size(), **fields)
    tiny_image_tokenizer().save(root / "codes")
    source = saved(theirs, root / "theirs")
    assert main(["import-hf", str(source), str(root / "start"), "--image-tokenizer", str(root / "codes")]) == 0
    return root / "start"


def tokenized(bundle: Path, root: Path) -> Path:
    """Shards of a tiny picture folder, made with the tokenizers of a bundle."""
    pictures = tiny_picture_folder(root / "pictures")
    places = {"--path": pictures, "--out": root / "shards"}
    places |= {"--image-tokenizer": bundle / IMAGE_TOKENIZER, "--text-tokenizer": bundle / TEXT_TOKENIZER}
    words = [str(word) for option in places.items() for word in option]
    assert main(["tokenize", "--source", "imagefolder", *words]) == 0
    return root / "shards"


def fine_tuned(bundle: Path, shards: Path, root: Path, **changes: Any) -> dict[int, float]:
    """Step -> loss of a run, whose bundle lies in `root / "run" / "model"`."""
    options = {
        "model.start.bundle": bundle,
        "model.optimizer.learning_rate": 0.01,
        "model.schedule.warmup_steps": 2,
        "model.compile": "false",
        "data.shards": f"[{shards}]",
        "data.stream.length": 64,
        "data.stream.rows": 4,
        "trainer.max_steps": STEPS,
        "trainer.accelerator": "cpu",
        "trainer.precision": "32-true",
        "trainer.limit_val_batches": 0,
        "trainer.log_every_n_steps": 1,
        "trainer.default_root_dir": root / "run",
        **{name.replace("__", "."): value for name, value in changes.items()},
    }
    config = ["fit", "--config=configs/run/finetune.yaml"]
    process = start_training([*config, *(f"--{name}={value}" for name, value in options.items())])
    output = finish(process, seconds=240)
    assert process.returncode == 0, output
    return {step: float(loss) for step, loss in logged(root / "run", "train/loss").items()}


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_an_imported_model_learns_from_the_command_line_and_opens_in_transformers_again(
    model_type: str, tmp_path: Path
) -> None:
    bundle = imported(model_type, tmp_path)
    shards = tokenized(bundle, tmp_path)
    assert open_manifest(shards).fingerprint == unimodal.load(bundle).token_space.fingerprint
    losses = fine_tuned(bundle, shards, tmp_path)
    assert len(losses) == STEPS
    assert sum(losses[step] for step in range(STEPS - 3, STEPS)) < 0.6 * sum(losses[step] for step in range(3))

    trained = unimodal.load(tmp_path / "run" / "model")
    assert trained.model.config == unimodal.load(bundle).model.config
    assert main(["export-hf", str(tmp_path / "run" / "model"), str(tmp_path / "exported")]) == 0
    architecture = ARCHITECTURES[model_type]
    theirs: Any = architecture.model_class.from_pretrained(tmp_path / "exported")
    ids = torch.randint(trained.token_space.vocab_size, (2, 50))
    with torch.no_grad():
        torch.testing.assert_close(logits(trained.model, ids), theirs(ids).logits, rtol=0, atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize(("model_type", "strategy"), [("llama", "ddp"), ("chameleon", "sharded")])
def test_two_ranks_fine_tune_an_imported_model_as_one_does(model_type: str, strategy: str, tmp_path: Path) -> None:
    bundle = imported(model_type, tmp_path)
    shards = tokenized(bundle, tmp_path)
    few = {"trainer__max_steps": 6, "data__stream__rows": 2}
    alone = fine_tuned(bundle, shards, tmp_path / "one", trainer__accumulate_grad_batches=2, **few)
    together = fine_tuned(bundle, shards, tmp_path / "two", trainer__devices=2, trainer__strategy=strategy, **few)
    assert together == pytest.approx(alone, rel=1e-4)
    first, second = (unimodal.load(tmp_path / name / "run" / "model").model.state_dict() for name in ("one", "two"))
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, rtol=1e-3, atol=1e-4)
