"""A chat model has several end tokens: an answer ends at each of them, and the import says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken

import unimodal
from tests.interop.test_finetune import fine_tuned, tokenized
from tests.oracles.foreign import foreign_llama, foreign_tokenizer, saved
from tests.oracles.tiny import tiny_image_tokenizer
from unimodal.generation.events import Ended, TextPiece
from unimodal.interop.export import export_hf
from unimodal.interop.importing import import_hf

EOT = foreign_tokenizer().get_vocab_size()
"""Id of the second end token."""


def chat_folder(folder: Path, *, config: object = 2, generation: object = None, special: bool = True) -> Path:
    """A Llama that generates EOT whatever it reads."""
    model = foreign_llama(EOT + 1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "o_proj" in name or "down_proj" in name or "lm_head" in name:
                weight.zero_()
            if "embed_tokens" in name or "norm" in name:
                weight.fill_(1.0)
        model.lm_head.weight[EOT] = 1.0
    tokenizer = foreign_tokenizer()
    tokenizer.add_tokens([AddedToken("<|eot|>", special=special, normalized=False)])
    path = saved(model, folder, tokenizer)
    fields = json.loads((path / "config.json").read_text()) | {"eos_token_id": config}
    (path / "config.json").write_text(json.dumps(fields))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": generation or config}))
    return path


@pytest.fixture
def codes(tmp_path: Path) -> Path:
    tiny_image_tokenizer().save(tmp_path / "codes")
    return tmp_path / "codes"


@pytest.mark.parametrize(
    ("config", "generation", "special"),
    [([2, EOT], None, True), (2, [2, EOT], True), ([2, EOT], None, False), ([EOT, 2], None, True)],
    ids=["config", "generation_config", "no special token", "first"],
)
def test_an_answer_ends_at_every_end_token(
    config: object, generation: object, special: bool, codes: Path, tmp_path: Path
) -> None:
    folder = chat_folder(tmp_path / "chat", config=config, generation=generation, special=special)
    done = import_hf(folder, tmp_path / "bundle", codes)
    model = unimodal.load(tmp_path / "bundle")
    first = config == [EOT, 2]
    assert set(done.also_end.values()) == ({"</s>"} if first else {"<|eot|>"})
    assert model.token_space.also_end == ((2,) if first else (EOT,))
    [answer] = model.generate(["a red"], mode="text", temperature=0.0, max_new_tokens=16)
    assert list(answer.ids) == [EOT] and answer.finish == "end" and "".join(map(str, answer)) == ""
    events = list(model.generate(["a red"], mode="text", temperature=0.0, max_new_tokens=16, stream=True))
    assert [type(event) for event in events] == [Ended] and events[0] == Ended(0, "end")
    assert not any(isinstance(event, TextPiece) for event in events)
    config_of = model.decode_config("text", 16, 0.0)
    [request] = model.requests(["a red"], config_of)
    scores = model.engine.score([request], [answer.ids])
    assert scores[0].tolist() == pytest.approx(list(answer.log_probs), abs=1e-5)


def test_end_tokens_are_exported_and_come_back(codes: Path, tmp_path: Path) -> None:
    import_hf(chat_folder(tmp_path / "chat", config=[2, EOT]), tmp_path / "bundle", codes)
    export_hf(tmp_path / "bundle", tmp_path / "export")
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "export" / name).read_text())["eos_token_id"] == [2, EOT]
    import_hf(tmp_path / "export", tmp_path / "back")
    assert unimodal.load(tmp_path / "back").token_space.also_end == (EOT,)


@pytest.mark.slow
def test_a_fine_tuned_chat_model_ends_where_it_did(codes: Path, tmp_path: Path) -> None:
    import_hf(chat_folder(tmp_path / "chat", config=[2, EOT]), tmp_path / "bundle", codes)
    shards = tokenized(tmp_path / "bundle", tmp_path)
    fine_tuned(tmp_path / "bundle", shards, tmp_path, trainer__max_steps=1)
    assert unimodal.load(tmp_path / "run" / "model").token_space.also_end == (EOT,)


def test_one_end_token_stays_one(codes: Path, tmp_path: Path) -> None:
    done = import_hf(chat_folder(tmp_path / "chat"), tmp_path / "bundle", codes)
    assert done.also_end == {} and "also_end" not in json.loads((tmp_path / "bundle" / "token_space.json").read_text())
    [answer] = unimodal.load(tmp_path / "bundle").generate(["a"], mode="text", temperature=0.0, max_new_tokens=5)
    assert list(answer.ids) == [EOT] * 5 and answer.finish == "length"


def test_a_generation_config_that_is_no_json_is_one_line(codes: Path, tmp_path: Path) -> None:
    folder = chat_folder(tmp_path / "chat")
    (folder / "generation_config.json").write_text("[")
    with pytest.raises(ValueError, match=r"generation_config\.json is no JSON object"):
        import_hf(folder, tmp_path / "bundle", codes)
