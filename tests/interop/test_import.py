"""Import: an export of ours comes back as it was, and models of others speak on with our tokens beside theirs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import unimodal
from tests.interop.test_export import SHAPES, TEXTS, TOLERANCE
from tests.oracles.foreign import PADDED, foreign_chameleon, foreign_llama, foreign_tokenizer, saved
from tests.oracles.passes import logits
from tests.oracles.tiny import tiny_bundle, tiny_image_tokenizer, tiny_pipeline
from tokenizers_vq.bundle_files import IMAGE_TOKENIZER, TEXT_TOKENIZER
from tokenizers_vq.token_space import SPECIAL_STRINGS
from unimodal.interop.export import export_hf
from unimodal.interop.importing import import_hf

KNOWN = foreign_tokenizer().get_vocab_size()
ROWS = KNOWN + PADDED


@pytest.fixture
def codes(tmp_path: Path) -> Path:
    """A trained image tokenizer's folder."""
    tiny_image_tokenizer().save(tmp_path / "codes")
    return tmp_path / "codes"


def changed(path: Path, **fields: Any) -> None:
    """Set fields of a JSON file; None takes one away."""
    values = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", SHAPES)
def test_an_export_comes_back_with_the_bits_of_every_weight_and_the_same_token_space(
    kind: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    before = tiny_pipeline(dtype=dtype, **SHAPES[kind], norm_eps=1e-6)
    before.save(tmp_path / "model")
    export_hf(tmp_path / "model", tmp_path / "theirs")
    import_hf(tmp_path / "theirs", tmp_path / "back")
    after = unimodal.load(tmp_path / "back")
    assert after.model.config == before.model.config
    assert after.token_space.fingerprint == before.token_space.fingerprint
    weights = after.model.state_dict()
    for name, tensor in before.model.state_dict().items():
        assert weights[name].dtype == dtype and torch.equal(weights[name], tensor), name
    names = [
        f"{TEXT_TOKENIZER}/tokenizer.json",
        *(f"{IMAGE_TOKENIZER}/{n}" for n in ("config.json", "model.safetensors")),
    ]
    for name in names:
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()


def test_an_export_without_an_image_tokenizer_comes_back_without_and_dropout_stays_behind(tmp_path: Path) -> None:
    tiny_pipeline(with_images=False, dropout=0.1).save(tmp_path / "model")
    export_hf(tmp_path / "model", tmp_path / "theirs")
    import_hf(tmp_path / "theirs", tmp_path / "back")
    after = unimodal.load(tmp_path / "back")
    assert after.image_tokenizer is None and after.model.config.trunk.dropout == 0


def test_an_export_that_their_library_saved_anew_in_shards_comes_back(tmp_path: Path) -> None:
    tiny_pipeline(qk_norm=None).save(tmp_path / "model")
    export_hf(tmp_path / "model", tmp_path / "theirs")
    shutil.copytree(tmp_path / "theirs", tmp_path / "tuned")
    (tmp_path / "tuned" / "model.safetensors").unlink()
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        theirs.model.norm.weight.fill_(2.5)
    theirs.save_pretrained(tmp_path / "tuned", max_shard_size="8KB")
    assert len(list((tmp_path / "tuned").glob("model-*.safetensors"))) > 1
    import_hf(tmp_path / "tuned", tmp_path / "back")
    assert bool((unimodal.load(tmp_path / "back").model.get_parameter("trunk.norm.weight") == 2.5).all())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard_size", ["5GB", "20KB"])
def test_a_llama_of_others_gives_their_logits_for_their_ids(
    tied: bool, shard_size: str, codes: Path, tmp_path: Path
) -> None:
    theirs = foreign_llama(ROWS, tie_word_embeddings=tied)
    folder = saved(theirs, tmp_path / "theirs", max_shard_size=shard_size)
    assert (folder / "model.safetensors.index.json").exists() == (shard_size == "20KB")
    import_hf(folder, tmp_path / "ours", codes)
    ids = torch.randint(KNOWN, (2, 40))
    with torch.no_grad():
        found = logits(unimodal.load(tmp_path / "ours").model, ids)[..., :KNOWN]
        torch.testing.assert_close(found, theirs(ids).logits[..., :KNOWN], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("swin", [True, False])
def test_a_chameleon_of_others_gives_their_logits_for_all_but_their_masked_image_code(
    swin: bool, codes: Path, tmp_path: Path
) -> None:
    theirs = foreign_chameleon(ROWS, swin_norm=swin)
    done = import_hf(saved(theirs, tmp_path / "theirs"), tmp_path / "ours", codes)
    assert done.skipped == len(theirs.model.vqmodel.state_dict())
    ids = torch.randint(KNOWN, (2, 40))
    with torch.no_grad():
        found = logits(unimodal.load(tmp_path / "ours").model, ids)[..., :KNOWN]
        expected = theirs(ids).logits[..., :KNOWN]
    assert bool((expected[..., 9] < -1e30).all()) and bool((found[..., 9].abs() < 1e3).all())
    expected[..., 9] = found[..., 9]
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


def test_a_chameleon_trained_in_parts_gives_each_head_the_norm_of_its_part(codes: Path, tmp_path: Path) -> None:
    folder = saved(foreign_chameleon(ROWS, model_parallel_size=2), tmp_path / "theirs")
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.self_attn.q_norm.bias"
    parts = torch.randn(2, weights[name].shape[1])
    save_file({**weights, name: parts}, folder / "model.safetensors", metadata={"format": "pt"})
    import_hf(folder, tmp_path / "ours", codes)
    bias = unimodal.load(tmp_path / "ours").model.get_parameter("trunk.blocks.1.attention.qkv.q_norm.bias")
    assert torch.equal(bias, parts[[0, 0, 1, 1]])


def test_rotary_angles_in_the_words_of_older_versions_are_read(codes: Path, tmp_path: Path) -> None:
    folder = saved(foreign_llama(ROWS), tmp_path / "theirs")
    changed(folder / "config.json", rope_parameters=None, rope_theta=777.0)
    weights = load_file(folder / "model.safetensors")
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file({**weights, **buffer}, folder / "model.safetensors", metadata={"format": "pt"})
    import_hf(folder, tmp_path / "ours", codes)
    assert unimodal.load(tmp_path / "ours").model.config.trunk.rope.theta == 777.0


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_their_special_tokens_become_ours_and_text_that_looks_like_them_does_not(
    kind: str, codes: Path, tmp_path: Path
) -> None:
    tokenizer = foreign_tokenizer(kind)
    folder = saved(foreign_llama(tokenizer.get_vocab_size()), tmp_path / "theirs", tokenizer)
    done = import_hf(folder, tmp_path / "ours", codes)
    assert done.found == {"<eos>": "</s>", "<bos>": "<s>"}
    text, specials = unimodal.load(tmp_path / "ours").text_tokenizer, done.space.specials
    assert (specials.bos, specials.eos) == (1, 2)
    made = [getattr(specials, name) for name in ("pad", "boi", "eoi", "sep", "null")]
    assert made == list(range(tokenizer.get_vocab_size(), done.space.text_size))
    for typed in (*SPECIAL_STRINGS, "<s>", "</s>", "a<boi>b"):
        ids = text.encode(typed)
        assert not {1, 2, *made} & set(ids)
        assert text.decode(ids) == typed


def test_text_gets_the_ids_that_their_tokenizer_gives_it(codes: Path, tmp_path: Path) -> None:
    folder = saved(foreign_llama(ROWS), tmp_path / "theirs")
    changed_config = {"tokenizer_class": "PreTrainedTokenizerFast", "split_special_tokens": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(changed_config))
    theirs = AutoTokenizer.from_pretrained(folder)
    import_hf(folder, tmp_path / "ours", codes)
    ours = unimodal.load(tmp_path / "ours").text_tokenizer
    for text in TEXTS:
        assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"bos_token_id": 1, "eos_token_id": [2, 7]}, {"<eos>": "</s>", "<bos>": "<s>"}),
        ({"bos_token_id": 2, "eos_token_id": 2}, {"<eos>": "</s>"}),
        ({"bos_token_id": 20, "eos_token_id": 900}, {}),
        ({"bos_token_id": None, "eos_token_id": None}, {}),
        ({"pad_token_id": 0}, {"<eos>": "</s>", "<bos>": "<s>", "<pad>": "<unk>"}),
    ],
)
def test_only_special_tokens_of_theirs_take_our_names_and_each_takes_one(
    fields: dict[str, Any], found: dict[str, str], codes: Path, tmp_path: Path
) -> None:
    folder = saved(foreign_llama(ROWS), tmp_path / "theirs")
    changed(folder / "config.json", **fields)
    done = import_hf(folder, tmp_path / "ours", codes)
    assert done.found == found
    specials = [getattr(done.space.specials, name.strip("<>")) for name in SPECIAL_STRINGS]
    assert len(set(specials)) == len(specials)
    assert done.space.text_size == KNOWN + len(SPECIAL_STRINGS) - len(found)


def test_new_rows_lie_near_the_mean_differ_and_are_the_same_each_time(codes: Path, tmp_path: Path) -> None:
    theirs = foreign_llama(ROWS)
    with torch.no_grad():
        theirs.model.embed_tokens.weight[KNOWN:] = 1e6  # padding, which no token ever trained
    folder = saved(theirs, tmp_path / "theirs")
    tensors = []
    for name in ("first", "second"):
        import_hf(folder, tmp_path / name, codes)
        tensors.append(load_file(tmp_path / name / "model.safetensors"))
    for name in ("trunk.embedding.weight", "heads.tokens.weight"):
        rows = tensors[0][name]
        assert torch.equal(rows, tensors[1][name])
        old, new = rows[:KNOWN], rows[KNOWN:]
        assert len(new) == 5 + 16 and len(new.unique(dim=0)) == len(new)
        spread = (new - old.mean(0)) / old.std(0)
        assert 0.08 < float(spread.std()) < 0.12
    assert not torch.equal(tensors[0]["trunk.embedding.weight"][KNOWN:], tensors[0]["heads.tokens.weight"][KNOWN:])


def test_an_imported_model_writes_and_draws_and_can_be_exported(codes: Path, tmp_path: Path) -> None:
    import_hf(saved(foreign_llama(ROWS), tmp_path / "theirs"), tmp_path / "ours", codes)
    model = unimodal.load(tmp_path / "ours")
    [[picture]] = model.generate(["a red circle"], mode="image", guidance=2.0)
    assert not isinstance(picture, str) and picture.size == (16, 16)
    model.generate(["a red circle"], mode="text", max_new_tokens=4)
    export_hf(tmp_path / "ours", tmp_path / "again")
    import_hf(tmp_path / "again", tmp_path / "back")
    assert unimodal.load(tmp_path / "back").token_space == model.token_space


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def indexed(*names: Any) -> Callable[[Path], None]:
    """Weights in shards of these names, which are not there."""

    def damage(folder: Path) -> None:
        without_weights(folder)
        table = {"weight_map": {str(index): name for index, name in enumerate(names)}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(table))

    return damage


def configured(**fields: Any) -> Callable[[Path], None]:
    """Other fields in the config."""
    return lambda folder: changed(folder / "config.json", **fields)


def weighted(name: str, tensor: torch.Tensor | None) -> Callable[[Path], None]:
    """Another weight, or one less."""

    def damage(folder: Path) -> None:
        weights: dict[str, Any] = {**load_file(folder / "model.safetensors"), name: tensor}
        kept = {key: value for key, value in weights.items() if value is not None}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def written(name: str, text: str | None) -> Callable[[Path], Any]:
    """Another text in a file, or no file."""
    return lambda folder: (folder / name).unlink() if text is None else (folder / name).write_text(text)


def with_holes(folder: Path) -> None:
    """A tokenizer that skips ids."""
    plain = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = plain["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.__getitem__)
    vocabulary[last] += PADDED - 1
    (folder / "tokenizer.json").write_text(json.dumps(plain))


NORM = "model.norm.weight"
SCALED = {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}
REFUSALS: list[tuple[str, Callable[[Path], Any], str]] = [
    ("rope scaling", configured(rope_parameters=SCALED), "rotary positions are scaled (linear)"),
    ("partial rotation", configured(rope_parameters={"rope_theta": 5.0, "partial_rotary_factor": 0.5}), "a part of"),
    ("attention bias", configured(attention_bias=True), "attention_bias is true"),
    ("mlp bias", configured(mlp_bias=True), "mlp_bias is true"),
    ("head width", configured(head_dim=16), "has shape (32, 32), its config says (64, 32)"),
    ("activation", configured(hidden_act="gelu"), "'gelu', ours is silu"),
    ("quantized", configured(quantization_config={"bits": 4}), "quantized"),
    (
        "other type",
        configured(model_type="gpt2"),
        "'gpt2' cannot be imported; llama, qwen2, qwen3, chameleon, dots1, ",
    ),
    ("no type", configured(model_type=None), "model type None"),
    ("odd field", configured(hidden_size="wide"), "is not a config of llama"),
    ("heads", configured(num_key_value_heads=3), "kv heads must divide heads"),
    ("tied to another", configured(tie_word_embeddings=True), "is another tensor"),
    ("broken config", written("config.json", "{"), "cannot be read"),
    ("config of a list", written("config.json", "[1]"), "cannot be read"),
    ("no config", written("config.json", None), "give a folder as save_pretrained leaves it"),
    ("no tokenizer", written("tokenizer.json", None), "tokenizer.json is missing"),
    ("broken tokenizer", written("tokenizer.json", "{}"), "is not a tokenizer.json"),
    ("holes in the ids", with_holes, "unused ids below"),
    ("pickles", pickled, "(pytorch_model.bin), which are never opened"),
    ("no weights", without_weights, "model.safetensors is missing"),
    ("broken weights", written("model.safetensors", "no tensors"), "model.safetensors cannot be read"),
    ("absent shard", indexed("model-00001-of-00002.safetensors"), "model-00001-of-00002.safetensors cannot be read"),
    ("strange shard", indexed("../other/model.safetensors"), "outside its folder: '../other/model.safetensors'"),
    ("odd shard", indexed(3), "outside its folder: 3"),
    ("broken index", lambda f: (without_weights(f), written("model.safetensors.index.json", "[]")(f)), "not an index"),
    ("lost weight", weighted(NORM, None), "lacks 1 weights of a llama, the first is model.norm.weight"),
    ("extra weight", weighted("model.extra", torch.ones(2)), "has not 1 of these weights, the first is model.extra"),
    ("other shape", weighted(NORM, torch.ones(3)), "has shape (3,), its config says (32,)"),
    ("whole numbers", weighted(NORM, torch.ones(32, dtype=torch.int8)), "is of type torch.int8"),
]


@pytest.mark.parametrize(("damage", "reason"), [case[1:] for case in REFUSALS], ids=[case[0] for case in REFUSALS])
def test_what_cannot_be_imported_is_refused_in_one_line_and_nothing_is_written(
    damage: Callable[[Path], Any], reason: str, codes: Path, tmp_path: Path
) -> None:
    folder = saved(foreign_llama(ROWS), tmp_path / "theirs")
    damage(folder)
    with pytest.raises(ValueError) as error:
        import_hf(folder, tmp_path / "ours", codes)
    assert reason in str(error.value) and "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codes", "theirs"]


def test_a_tokenizer_with_more_ids_than_the_embedding_has_rows_is_refused(codes: Path, tmp_path: Path) -> None:
    folder = saved(foreign_llama(KNOWN - 1), tmp_path / "theirs")
    with pytest.raises(ValueError, match=f"has {KNOWN} ids, its embedding only {KNOWN - 1} rows"):
        import_hf(folder, tmp_path / "ours", codes)


def test_an_image_tokenizer_is_needed_for_models_of_others_and_for_them_alone(codes: Path, tmp_path: Path) -> None:
    folder = saved(foreign_llama(ROWS), tmp_path / "theirs")
    with pytest.raises(ValueError, match="give an image tokenizer"):
        import_hf(folder, tmp_path / "ours")
    with pytest.raises(ValueError, match="does not hold an image tokenizer"):
        import_hf(folder, tmp_path / "ours", tmp_path / "absent")
    export_hf(tiny_bundle(tmp_path / "model"), tmp_path / "export")
    with pytest.raises(ValueError, match="leave out the image tokenizer"):
        import_hf(tmp_path / "export", tmp_path / "ours", codes)
    assert not (tmp_path / "ours").exists()


def test_an_export_whose_tokenizers_were_changed_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    export_hf(tiny_bundle(tmp_path / "model"), tmp_path / "theirs")
    tiny_image_tokenizer(seed=1).save(tmp_path / "theirs" / IMAGE_TOKENIZER)
    with pytest.raises(ValueError, match=r"theirs/image_tokenizer is not the one of token_space.json"):
        import_hf(tmp_path / "theirs", tmp_path / "ours")
    foreign_tokenizer().save(str(tmp_path / "theirs" / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"theirs/tokenizer.json is not the one of token_space.json"):
        import_hf(tmp_path / "theirs", tmp_path / "ours")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "theirs"]


def test_a_full_folder_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("keep me")
    with pytest.raises(ValueError, match="not an empty folder"):
        import_hf(tmp_path / "absent", tmp_path / "full")
    with pytest.raises(ValueError, match="absent is not a folder"):
        import_hf(tmp_path / "absent", tmp_path / "ours")
