"""Vocabulary: a tokenizer that was not made here gets our special tokens, and the model a row for every new id."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from tokenizers_vq.text import TOKENIZER_FILE, TextTokenizer

# Shapes: V rows of theirs, N ids of their tokenizer, D model width.

ROLES = {"<eos>": "eos_token_id", "<bos>": "bos_token_id", "<pad>": "pad_token_id"}
"""Special tokens that other models have too, and where their config says which; of one id for two, the first has it."""

GENERATION_CONFIG = "generation_config.json"

NOISE = 0.1
"""New rows differ from the mean of the old by this share of their standard deviation."""


class Adopted(NamedTuple):
    """A tokenizer with our special tokens, `known` ids of it from before, and which special was which token there.

    `also_end`: id -> name of the tokens beside <eos> that end an answer.
    """

    text: TextTokenizer
    known: int
    found: dict[str, str]
    also_end: dict[int, str]


def adopt_tokenizer(folder: Path, config: Mapping[str, Any]) -> Adopted:
    """Open tokenizer.json of a folder of theirs and give it our special tokens.

    Their special tokens for the end, the beginning and padding, as config.json names them, take our names, so that
    the model keeps what it knows of them; the others are new ids after the last. Raises ValueError for a file that is
    missing or cannot be read, and where new ids would fall among old ones.
    """
    file = folder / TOKENIZER_FILE
    if not file.is_file():
        raise ValueError(f"{file} is missing: save the tokenizer with AutoTokenizer, which writes one")
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
        found = _take_names(plain, config)
        tokenizer = Tokenizer.from_str(json.dumps(plain))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{file} is not a tokenizer.json: {' '.join(str(error).split())}") from error
    old = tokenizer.get_vocab(with_added_tokens=True)
    known = max(old.values()) + 1
    text = TextTokenizer(tokenizer)
    added = tokenizer.get_vocab(with_added_tokens=True).items() - old.items()
    if any(number < known for _, number in added):
        raise ValueError(f"{file} has unused ids below {known}, into which new special tokens would fall")
    names = {number: name for name, number in old.items()}
    also_end = {number: names[number] for number in end_ids(folder, config) if number in names}
    also_end.pop(text.specials.eos, None)
    return Adopted(text, known, found, also_end)


def end_ids(folder: Path, config: Mapping[str, Any]) -> list[int]:
    """Every id that config.json and generation_config.json name as the end of an answer; a chat model has several.

    Raises ValueError for a generation_config.json that cannot be read.
    """
    file = folder / GENERATION_CONFIG
    try:
        generation = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        named = [fields.get("eos_token_id") for fields in (config, generation)]
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file} is no JSON object: {error}") from error
    ids = [number for each in named for number in (each if isinstance(each, list) else [each])]
    return [number for number in dict.fromkeys(ids) if isinstance(number, int)]


def _take_names(plain: dict[str, Any], config: Mapping[str, Any]) -> dict[str, str]:
    """Rename tokens in the JSON of a tokenizer; returns our name -> the one it had."""
    special = {entry["id"]: entry for entry in plain["added_tokens"] if entry["special"]}
    present = {entry["content"] for entry in plain["added_tokens"]} | set(_model_tokens(plain["model"]))
    found: dict[str, str] = {}
    for ours, field in ROLES.items():
        ids = config.get(field)
        entry = special.pop(ids[0] if isinstance(ids, list) and ids else ids, None)
        if entry is not None and ours not in present:
            found[ours] = entry["content"]
            _rename(plain["model"], entry["content"], ours)
            entry["content"] = ours
    return found


def _model_tokens(model: dict[str, Any]) -> list[str]:
    vocabulary = model["vocab"]
    return [token for token, _ in vocabulary] if isinstance(vocabulary, list) else list(vocabulary)


def _rename(model: dict[str, Any], old: str, new: str) -> None:
    """A special token may stand in the vocabulary itself too: a table of ids (BPE, words) or a list (unigram)."""
    names = {old: new}
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):
        model["vocab"] = [[names.get(token, token), score] for token, score in vocabulary]
    else:
        model["vocab"] = {names.get(token, token): number for token, number in vocabulary.items()}
    if model.get("unk_token") == old:
        model["unk_token"] = new


def grow(rows: Tensor, known: int, size: int, seed: int) -> Tensor:
    """rows (V, D) -> (size, D): the first `known` as they are, the rest their mean with a little seeded noise.

    Rows of theirs past `known` belong to no token (padding of the vocabulary to a round number) and are dropped.
    """
    kept = rows[:known]
    precise = kept.to(torch.promote_types(rows.dtype, torch.float32))
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(size - known, rows.shape[1], generator=generator, dtype=precise.dtype)
    new = precise.mean(0) + NOISE * precise.std(0) * noise
    return torch.cat((kept, new.to(rows.dtype)))
