"""An image tokenizer says what its reconstructions mean for drawings when its training ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.oracles.pictures import tiny_tokenizer
from unimodal.training.callbacks.ceiling import bits_a_picture, ceiling
from unimodal.training.cli import run


def test_bits_are_those_that_all_codes_choose_from() -> None:
    assert bits_a_picture(tiny_tokenizer(quantizer="vq")) == 4 * 4
    assert bits_a_picture(tiny_tokenizer(quantizer="residual")) == 8 * 3
    assert bits_a_picture(tiny_tokenizer(quantizer="lfq")) == 4 * 4


def test_what_is_lost_is_said_where_it_is() -> None:
    tokenizer = tiny_tokenizer(quantizer="vq")
    good, bad = ceiling(tokenizer, 30.0, 0.95), ceiling(tokenizer, 23.0, 0.74)
    assert good.startswith("4 codes, 16 bits, for a picture of 16 x 16: held-out pictures come back with 30.0 dB")
    assert "lost" not in good and "SSIM 0.74, and no drawing will be better than that. What is small" in bad


@pytest.mark.slow
def test_a_training_ends_with_it(tmp_path: Path, capsys: Any) -> None:
    settings = {
        "trainer.max_steps": 2,
        "trainer.val_check_interval": 2,
        "trainer.default_root_dir": tmp_path,
        "trainer.accelerator": "cpu",
        "model.init_args.out": tmp_path / "image_tokenizer",
        "data.init_args.batch_size": 4,
    }
    options = [f"--{name}={value}" for name, value in settings.items()]
    run(["fit", "--config=configs/tokenizer/demo.yaml", *options])
    assert capsys.readouterr().out.count("64 codes, 640 bits, for a picture of 64 x 64: held-out pictures") == 1
