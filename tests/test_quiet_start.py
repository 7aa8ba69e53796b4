"""What a user sees of a command is what concerns them: no warning of a library, no seed said twice."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.oracles.tiny import tiny_bundle, tiny_picture_folder, tiny_shards
from tests.oracles.tiny_training import ROOT, fit_arguments
from tests.training.test_run_identity import tokenizer_arguments
from unimodal.training.quiet import HARMLESS, QUIET

NOISE = re.compile(r"warn|deprecat|seed set|set_vital|TPU|GPU|litlogger|srun|tip:|CUDA|site-packages", re.IGNORECASE)


def said(*command: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_commands_print_no_line_that_a_user_cannot_act_on(tmp_path: Path) -> None:
    shards, bundle = tiny_shards(tmp_path / "shards"), tiny_bundle(tmp_path / "model")
    pictures, root = tiny_picture_folder(tmp_path / "pictures", 6), tmp_path / "run"
    arguments = fit_arguments(shards, root, trainer__max_steps=2, trainer__limit_val_batches=1.0, samples__every=1)
    arguments.remove("--seed_everything=7")
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "a", "mode": "text", "max_new_tokens": 2}))
    predict = ["--data", "PromptFile", "--data.path", str(tmp_path / "p.jsonl"), "--data.out", str(tmp_path / "out")]
    source = ["--source", "imagefolder", "--path", str(pictures)]
    tools = ["--image-tokenizer", str(bundle / "image_tokenizer"), "--text-tokenizer", str(bundle / "text_tokenizer")]
    pictures_run = tokenizer_arguments(pictures, tmp_path / "tokenizer", checkpoint__every_n_train_steps=1)
    printed = {
        "fit a tokenizer": said("train.py", *pictures_run),
        "fit": said("train.py", *arguments),
        "resume": said("train.py", *arguments, "--trainer.max_steps=3", "--ckpt_path=last"),
        "predict": said("train.py", "predict", "--model", "Answerer", "--model.bundle", str(bundle), *predict),
        "tokenize": said("-m", "unimodal", "tokenize", *source, "--out", str(tmp_path / "made"), *tools),
        "inspect": said("-m", "unimodal", "inspect", str(bundle)),
        "generate": said(
            "-m", "unimodal", "generate", "--model", str(bundle), "--prompt", "a", "--out", str(tmp_path / "g")
        ),
    }
    for name, text in printed.items():
        noise = [line for line in text.splitlines() if NOISE.search(line)]
        assert not noise, (name, noise)
    assert "shards" in printed["fit"]


def test_everything_that_is_left_out_has_a_reason() -> None:
    assert all(len(reason) > 10 for reason in (*HARMLESS.values(), *QUIET.values()))
    assert all(re.compile(message) for message in HARMLESS)
