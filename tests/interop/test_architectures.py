"""Every registered architecture: a random model of theirs computes the same here, and comes back to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import unimodal
from tests.oracles.foreign import LLAMA3_ROPE, foreign_model, foreign_tokenizer, saved
from tests.oracles.passes import logits
from tests.oracles.tiny import tiny_config, tiny_image_tokenizer
from unimodal.interop.export import export_hf, to_transformers
from unimodal.interop.importing import import_hf, read_hf
from unimodal.interop.registry import ARCHITECTURES, architecture_for
from unimodal.model.checkpoint import HEAD, assembled
from unimodal.model.config import FlowConfig, ModelConfig, QKNormConfig, RopeScaling
from unimodal.model.model import UnifiedModel

TOLERANCE = 1e-5
"""Logits are about 3; norms and angles of theirs are float32."""
LENGTH = 50
"""Tokens of a sequence: three times as many as LLAMA3_ROPE's original length."""
KNOWN = foreign_tokenizer().get_vocab_size()

every_architecture = pytest.mark.parametrize("model_type", ARCHITECTURES)
tied_and_untied = pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])


@pytest.fixture
def codes(tmp_path: Path) -> Path:
    """A trained image tokenizer's folder."""
    tiny_image_tokenizer().save(tmp_path / "codes")
    return tmp_path / "codes"


def opened(folder: Path) -> UnifiedModel:
    """Our model of a folder of theirs, without new rows."""
    read = read_hf(folder)
    return assembled(read.config, read.weights).eval()


def their_logits(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(ids).logits


@every_architecture
@tied_and_untied
@pytest.mark.parametrize("rope", [{}, {"rope_parameters": LLAMA3_ROPE}], ids=["plain", "scaled"])
def test_logits_equal_theirs_also_beyond_the_original_length(
    model_type: str, tied: bool, rope: dict[str, Any], tmp_path: Path
) -> None:
    theirs = foreign_model(model_type, tie_word_embeddings=tied, **rope)
    theirs.save_pretrained(tmp_path)
    ours, ids = opened(tmp_path), torch.randint(131, (2, LENGTH))
    assert (ours.config.trunk.rope.scaling is not None) == bool(rope)
    torch.testing.assert_close(logits(ours, ids), their_logits(theirs, ids), rtol=0, atol=TOLERANCE)


@every_architecture
@tied_and_untied
def test_a_model_in_shards_goes_there_and_back_to_the_bit(model_type: str, tied: bool, tmp_path: Path) -> None:
    theirs = foreign_model(model_type, tie_word_embeddings=tied, rope_parameters=LLAMA3_ROPE)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    ours = opened(tmp_path / "theirs")
    back = to_transformers(ours)
    assert type(back) is type(theirs)
    found = back.state_dict()
    for name, tensor in theirs.state_dict().items():
        if not name.startswith(ARCHITECTURES[model_type].skipped):
            assert torch.equal(found[name], tensor), name
    back.save_pretrained(tmp_path / "back")
    again = opened(tmp_path / "back")
    assert again.config == ours.config
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in again.state_dict().items())


@every_architecture
@pytest.mark.parametrize(("tied", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_import_export_import_leaves_every_byte_of_the_bundle(
    model_type: str, tied: bool, dtype: torch.dtype, codes: Path, tmp_path: Path
) -> None:
    theirs = foreign_model(model_type, vocab_size=KNOWN, tie_word_embeddings=tied, rope_parameters=LLAMA3_ROPE)
    import_hf(saved(theirs.to(dtype), tmp_path / "theirs"), tmp_path / "first", codes)
    assert export_hf(tmp_path / "first", tmp_path / "exported").model_type == model_type
    written = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert written["tie_word_embeddings"] is tied
    import_hf(tmp_path / "exported", tmp_path / "second")
    for name in ("config.json", "model.safetensors", "token_space.json"):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "first" / name).read_bytes(), name


@every_architecture
@tied_and_untied
def test_new_ids_get_rows_and_old_ids_keep_their_logits(
    model_type: str, tied: bool, codes: Path, tmp_path: Path
) -> None:
    theirs = foreign_model(model_type, vocab_size=KNOWN + 3, tie_word_embeddings=tied)
    space = import_hf(saved(theirs, tmp_path / "theirs"), tmp_path / "ours", codes).space
    model = unimodal.load(tmp_path / "ours").model
    assert model.config.vocab_size == space.vocab_size == KNOWN + 5 + 16
    assert (model.token_head.weight is model.trunk.embedding.weight) is tied
    assert (HEAD in load_file(tmp_path / "ours" / "model.safetensors")) is not tied
    ids = torch.randint(KNOWN, (2, LENGTH))
    expected = their_logits(theirs, ids)[..., :KNOWN]
    torch.testing.assert_close(logits(model, ids)[..., :KNOWN], expected, rtol=0, atol=TOLERANCE)


@every_architecture
@tied_and_untied
def test_greedy_answers_of_64_tokens_equal_theirs(model_type: str, tied: bool, codes: Path, tmp_path: Path) -> None:
    fields = {"vocab_size": KNOWN, "tie_word_embeddings": tied, "rope_parameters": LLAMA3_ROPE}
    endless = {"bos_token_id": None, "eos_token_id": None}  # `<eos>` gets a new row, which is likely nowhere
    theirs = foreign_model(model_type, noise=0.3, **fields, **endless)
    import_hf(saved(theirs, tmp_path / "theirs"), tmp_path / "ours", codes)
    export_hf(tmp_path / "ours", tmp_path / "exported")
    ours = unimodal.load(tmp_path / "ours")
    exported: Any = ARCHITECTURES[model_type].model_class.from_pretrained(tmp_path / "exported")
    prompt = torch.tensor([list(ours.coder.encode(["a red circle"])[0])])
    [answer] = ours.generate(["a red circle"], mode="text", max_new_tokens=64, temperature=0, constrained=False)
    expected = exported.generate(prompt, max_new_tokens=64, do_sample=False)
    assert len(answer.ids) == 64 and len(set(answer.ids)) > 4
    assert list(answer.ids) == expected[0, prompt.shape[1] :].tolist()


@pytest.mark.parametrize("kind", ["type", "rope_type"])
def test_scaled_rotary_positions_in_the_words_of_older_versions_are_the_same(kind: str, tmp_path: Path) -> None:
    foreign_model("llama", rope_parameters=LLAMA3_ROPE).save_pretrained(tmp_path)
    today = read_hf(tmp_path).config
    scaling = {name: value for name, value in LLAMA3_ROPE.items() if name not in ("rope_type", "rope_theta")}
    reconfigure(tmp_path, rope_parameters=None, rope_theta=500.0, rope_scaling={**scaling, kind: "llama3"})
    assert read_hf(tmp_path).config == today
    assert today.trunk.rope.scaling == RopeScaling(factor=8, original_max_length=16)


def reconfigure(folder: Path, **fields: Any) -> None:
    """Set fields of config.json; None takes one away."""
    values = {**json.loads((folder / "config.json").read_text()), **fields}
    kept = {name: value for name, value in values.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))


SLIDING = {"use_sliding_window": True, "sliding_window": 8, "layer_types": None}
YARN = {"rope_type": "yarn", "rope_theta": 5.0, "factor": 2.0, "original_max_position_embeddings": 16}
REFUSED_BY_ALL: dict[str, tuple[dict[str, Any], str]] = {
    "yarn": ({"rope_parameters": YARN}, "scaled (yarn)"),
    "partial rotation": ({"rope_parameters": {"rope_theta": 5.0, "partial_rotary_factor": 0.5}}, "(0.5)"),
    "rope by layer": ({"rope_parameters": {"full_attention": LLAMA3_ROPE}}, "by different rope_parameters"),
    "half a scaling": ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5.0}}, "Missing required keys"),
    "no band": ({"rope_parameters": {**LLAMA3_ROPE, "low_freq_factor": 4.0}}, "low below high frequencies"),
    "activation": ({"hidden_act": "gelu"}, "'gelu', ours is silu"),
    "mlp bias": ({"mlp_bias": True}, "mlp_bias is true"),
    "quantized": ({"quantization_config": {"bits": 4}}, "quantized"),
    "tied to another": ({"tie_word_embeddings": True}, "lm_head.weight is another tensor"),
}
REFUSED_BY_SOME: list[tuple[str, dict[str, Any], str]] = [
    *((name, {"attention_bias": True}, "attention_bias is true") for name in ("llama", "qwen3", "chameleon")),
    *((name, {**SLIDING, "max_window_layers": 2}, "(sliding_attention)") for name in ("qwen2", "qwen3")),
    ("chameleon", {"head_dim": 12}, "head_dim is 12, theirs is hidden_size / num_attention_heads = 8"),
    *((name, {"head_dim": 12}, "(60, 48), its config says (72, 48)") for name in ("llama", "qwen2", "qwen3")),
]


def refusal(model_type: str, fields: dict[str, Any], folder: Path) -> str:
    """The one line that a folder with these fields is refused with."""
    foreign_model(model_type).save_pretrained(folder)
    reconfigure(folder, **fields)
    with pytest.raises(ValueError) as error:
        read_hf(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


@every_architecture
@pytest.mark.parametrize("case", REFUSED_BY_ALL)
def test_what_no_architecture_may_have_is_refused_in_one_line(case: str, model_type: str, tmp_path: Path) -> None:
    fields, reason = REFUSED_BY_ALL[case]
    assert reason in refusal(model_type, fields, tmp_path)


@pytest.mark.parametrize(("model_type", "fields", "reason"), REFUSED_BY_SOME)
def test_what_one_architecture_may_not_have_is_refused_in_one_line(
    model_type: str, fields: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    assert reason in refusal(model_type, fields, tmp_path)


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_a_sliding_window_that_no_layer_uses_is_none(model_type: str, tmp_path: Path) -> None:
    theirs = foreign_model(model_type)
    theirs.save_pretrained(tmp_path)
    reconfigure(tmp_path, **SLIDING, max_window_layers=3)
    ids = torch.randint(131, (1, LENGTH))
    reopened = ARCHITECTURES[model_type].model_class.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(opened(tmp_path), ids), their_logits(reopened, ids), rtol=0, atol=TOLERANCE)


RMS = QKNormConfig(kind="rms")
CHOICES: list[tuple[dict[str, Any], str]] = [
    ({"qk_norm": None}, "llama"),
    ({"qk_norm": None, "head_dim": 6}, "llama"),
    ({"qk_norm": None, "qkv_bias": True}, "qwen2"),
    ({"qk_norm": RMS}, "qwen3"),
    ({"qk_norm": RMS, "num_heads": 3, "head_dim": 4}, "qwen3"),
    ({}, "chameleon"),
    ({"norm_placement": "swin", "tied_head": True}, "chameleon"),
]
INEXPRESSIBLE: list[tuple[dict[str, Any], str]] = [
    ({"qkv_bias": True}, "chameleon has no biases of queries, keys and values"),
    ({"qkv_bias": True, "qk_norm": RMS}, "qwen3 has no biases of queries, keys and values"),
    (
        {"qk_norm": QKNormConfig(kind="rms", eps=1e-6)},
        "qwen3 has a QK-norm with an eps of 1e-05, this model's is 1e-06",
    ),
    ({"qk_norm": QKNormConfig(eps=1e-6)}, "chameleon has a QK-norm with an eps of 1e-05, this model's is 1e-06"),
    ({"qk_norm": RMS, "norm_placement": "swin"}, "qwen3 has norm_placement 'pre'"),
    ({"qk_norm": None, "num_heads": 3, "head_dim": 4}, "llama has a number of heads that divides hidden_size"),
    ({"head_dim": 6}, "chameleon has heads of hidden_size / num_heads, this model 2 of 6 in 16"),
    ({"mixture": True}, "no class of transformers has a flow branch or a mixture"),
    ({"flow": FlowConfig(latent_dim=4, grid_size=2)}, "no class of transformers has a flow branch or a mixture"),
]


@pytest.mark.parametrize(("shape", "model_type"), CHOICES)
def test_an_export_has_the_architecture_that_computes_the_same(shape: dict[str, Any], model_type: str) -> None:
    config = tiny_config(**shape)
    architecture = architecture_for(config)
    assert architecture.model_type == model_type
    assert [name for name, each in ARCHITECTURES.items() if each.mismatch(config) is None] == [model_type]
    assert sorted(architecture.names(config)) == sorted(names_of(config))


def names_of(config: ModelConfig) -> list[str]:
    """Names of the tensors of a model."""
    with torch.device("meta"):
        return list(UnifiedModel(config).state_dict())


@pytest.mark.parametrize(("shape", "reason"), INEXPRESSIBLE)
def test_a_model_that_no_architecture_expresses_is_refused_in_one_line(shape: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError) as error:
        architecture_for(tiny_config(**shape))
    assert reason in str(error.value) and "\n" not in str(error.value)
