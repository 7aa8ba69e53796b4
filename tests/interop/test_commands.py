"""`unimodal export-hf` and `import-hf`: there and back, and what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

import unimodal
from tests.oracles.foreign import foreign_chameleon, foreign_llama, foreign_tokenizer, saved
from tests.oracles.tiny import tiny_bundle, tiny_image_tokenizer, tiny_pipeline
from unimodal.cli import main


def test_a_bundle_goes_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tiny_bundle(tmp_path / "model")
    assert main(["export-hf", str(bundle), str(tmp_path / "theirs")]) == 0
    said = capsys.readouterr()
    assert "ChameleonForConditionalGeneration" in said.out and "stand-in" in said.out and said.err == ""
    assert main(["import-hf", str(tmp_path / "theirs"), str(tmp_path / "back")]) == 0
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (bundle / "model.safetensors").read_bytes()


def test_a_bundle_without_qk_norm_goes_as_a_llama(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_pipeline(qk_norm=None).save(tmp_path / "model")
    assert main(["export-hf", str(tmp_path / "model"), str(tmp_path / "theirs")]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("AutoModelForCausalLM") and "stand-in" not in said.out


def test_the_import_of_a_foreign_model_says_what_was_found_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = foreign_tokenizer().get_vocab_size()
    tiny_image_tokenizer().save(tmp_path / "codes")
    for name, model in {"llama": foreign_llama(rows), "chameleon": foreign_chameleon(rows)}.items():
        folder = saved(model, tmp_path / name)
        capsys.readouterr()
        words = ["import-hf", str(folder), str(tmp_path / f"our-{name}"), "--image-tokenizer", str(tmp_path / "codes")]
        assert main(words) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert f"a {name} with {rows + 5} text ids and 16 image codes" in said
        assert "<eos> was </s>, <bos> was <s>" in said
        assert ("weights of its image encoder were left out" in said) == (name == "chameleon")
        assert unimodal.load(tmp_path / f"our-{name}").token_space.codebook_size == 16
