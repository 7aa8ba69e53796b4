"""Export: theirs opens what we write, computes what we compute, and nothing is written that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, ChameleonForConditionalGeneration

from tests.oracles.passes import logits
from tests.oracles.tiny import tiny_bundle, tiny_image_tokenizer, tiny_model, tiny_pipeline
from tokenizers_vq.bundle_files import IMAGE_TOKENIZER
from unimodal.cli import main
from unimodal.generation.pipeline import Pipeline
from unimodal.interop.export import export_hf, to_transformers
from unimodal.model.config import FlowConfig, MultiTokenConfig, QKNormConfig, RopeConfig

LLAMA = {"qk_norm": None, "dim": 32, "num_heads": 4, "num_kv_heads": 2, "rope": RopeConfig(theta=500.0)}
CHAMELEONS: dict[str, dict[str, Any]] = {
    placement: {**LLAMA, "qk_norm": QKNormConfig(), "norm_placement": placement} for placement in ("pre", "swin")
}
SHAPES: dict[str, dict[str, Any]] = {"llama": LLAMA, **CHAMELEONS}
CLASSES: dict[str, Any] = {
    "llama": AutoModelForCausalLM,
    "pre": ChameleonForConditionalGeneration,
    "swin": ChameleonForConditionalGeneration,
}
TOLERANCE = 5e-5
"""Logits are about 8; theirs computes norms and angles in float32 whatever the dtype."""
TEXTS = ("a red circle", " spaces  and\nlines ", "naïve 🙂 👩‍🚀", "<boi>", "a <eos><pad> b", "</s>", "")


def exported(folder: Path, **shape: Any) -> tuple[Pipeline, Path]:
    """A bundle's pipeline and the folder it was exported to."""
    pipeline = tiny_pipeline(**shape)
    pipeline.save(folder / "model")
    export_hf(folder / "model", folder / "theirs")
    return pipeline, folder / "theirs"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", SHAPES)
def test_an_export_opens_with_every_key_and_gives_our_logits_for_all_ids(
    kind: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    ours, folder = exported(tmp_path, dtype=dtype, **SHAPES[kind])
    theirs, keys = CLASSES[kind].from_pretrained(folder, output_loading_info=True)
    assert not any(keys.values()), keys
    assert theirs.dtype == dtype
    ids = torch.randint(ours.token_space.vocab_size, (2, 40))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, logits(ours.model, ids), rtol=0, atol=TOLERANCE)


def test_multi_token_heads_are_left_out_and_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = tiny_pipeline(**CHAMELEONS["pre"], multi_token=MultiTokenConfig(depth=2))
    ours.save(tmp_path / "model")
    assert main(["export-hf", str(tmp_path / "model"), str(tmp_path / "theirs")]) == 0
    assert "multi-token heads are left out" in capsys.readouterr().out
    theirs, keys = CLASSES["pre"].from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert not any(keys.values()), keys
    ids = torch.randint(ours.token_space.vocab_size, (2, 40))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, logits(ours.model, ids), rtol=0, atol=TOLERANCE)


def test_an_exported_chameleon_refuses_pixels_instead_of_making_wrong_codes_of_them(tmp_path: Path) -> None:
    _, folder = exported(tmp_path, **CHAMELEONS["pre"])
    theirs = ChameleonForConditionalGeneration.from_pretrained(folder)
    assert not any(parameter.any() for parameter in theirs.model.vqmodel.parameters())
    with pytest.raises(ValueError):
        theirs(input_ids=torch.zeros(1, 3, dtype=torch.int64), pixel_values=torch.zeros(1, 3, 16, 16))
    assert "stand-in" in (folder / "README.md").read_text()


def test_the_exported_tokenizer_gives_our_ids_and_spells_out_what_looks_special(tmp_path: Path) -> None:
    ours, folder = exported(tmp_path, **LLAMA)
    theirs = AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        ids = theirs(text).input_ids
        assert ids == ours.text_tokenizer.encode(text)
        assert theirs.decode(ids) == text
    specials = ours.token_space.specials
    assert (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id) == (0, 1, 2)
    assert theirs.decode([specials.bos, *theirs("red").input_ids, specials.eos], skip_special_tokens=True) == "red"


def test_their_generation_stops_at_our_end(tmp_path: Path) -> None:
    ours, folder = exported(tmp_path, **LLAMA)
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder)
    specials = ours.token_space.specials
    prompt = torch.tensor([[specials.bos, 20, specials.sep]])
    with torch.no_grad():
        theirs.lm_head.weight.zero_()
        theirs.lm_head.weight[specials.eos] = theirs.model(prompt).last_hidden_state[0, -1]
    answer = theirs.generate(prompt, max_new_tokens=5, do_sample=False)
    assert answer[0].tolist() == [*prompt[0].tolist(), specials.eos]
    assert (theirs.config.bos_token_id, theirs.generation_config.pad_token_id) == (specials.bos, specials.pad)


@pytest.mark.parametrize("kind", SHAPES)
def test_a_model_in_memory_is_a_copy_and_leaves_the_random_numbers_alone(kind: str) -> None:
    model = tiny_model(**SHAPES[kind], dropout=0.5)
    before = torch.random.get_rng_state()
    theirs = to_transformers(model)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not theirs.training
    embedding = theirs.model.embed_tokens.weight
    assert torch.equal(embedding, model.trunk.embedding.weight)
    assert embedding.data_ptr() != model.trunk.embedding.weight.data_ptr()


@pytest.mark.parametrize("kind", SHAPES)
def test_a_model_in_memory_computes_in_bfloat16_what_its_export_does(kind: str, tmp_path: Path) -> None:
    """A cast of the whole model would round the angles of the positions."""
    ours, folder = exported(tmp_path, dtype=torch.bfloat16, **SHAPES[kind])
    theirs = to_transformers(ours.model)
    ids = torch.randint(ours.token_space.vocab_size, (2, 40))
    with torch.no_grad():
        assert torch.equal(theirs(ids).logits, CLASSES[kind].from_pretrained(folder)(ids).logits)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ({"qk_norm": None, "norm_placement": "swin"}, "llama has norm_placement 'pre'"),
        ({"qk_norm": QKNormConfig(eps=1e-6)}, "eps of 1e-05, this model's is 1e-06"),
        ({"qkv_bias": True}, "chameleon has no biases of queries, keys and values"),
        ({"head_dim": 32}, "chameleon has heads of hidden_size / num_heads, this model 2 of 32 in 16"),
        ({"mixture": True}, "no class of transformers has a flow branch or a mixture"),
        ({"flow": FlowConfig(latent_dim=4, grid_size=2)}, "no class of transformers has a flow branch or a mixture"),
    ],
)
def test_what_neither_class_computes_is_refused_in_one_line_and_nothing_is_written(
    shape: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    tiny_pipeline(**shape).save(tmp_path / "model")
    with pytest.raises(ValueError, match=reason) as error:
        export_hf(tmp_path / "model", tmp_path / "theirs")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_full_folder_no_bundle_and_a_swapped_tokenizer_are_refused_in_one_line(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "model")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("keep me")
    cases = [
        (bundle, "full", "not an empty folder"),
        (bundle, "full/letter.txt", "not an empty folder"),
        (tmp_path / "absent", "theirs", "is not a folder"),
        (tmp_path / "full", "theirs", "does not hold a model"),
    ]
    for source, out, reason in cases:
        with pytest.raises(ValueError, match=reason) as error:
            export_hf(source, tmp_path / out)
        assert "\n" not in str(error.value)
    tiny_image_tokenizer(seed=1).save(bundle / IMAGE_TOKENIZER)
    with pytest.raises(ValueError, match="not the one of its token space"):
        export_hf(bundle, tmp_path / "theirs")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "model"]
    assert (tmp_path / "full" / "letter.txt").read_text() == "keep me"


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    export_hf(tiny_bundle(tmp_path / "model"), tmp_path / "theirs")
    assert (tmp_path / "theirs" / "config.json").is_file()
