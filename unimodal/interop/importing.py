"""Import: a folder of Hugging Face's transformers becomes a model bundle."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from data_pipelines.tokenize import make_token_space
from tokenizers_vq.bundle_files import IMAGE_TOKENIZER, TEXT_TOKENIZER, Tokenizers
from tokenizers_vq.image_tokenizer import ImageTokenizer
from tokenizers_vq.text import TOKENIZER_FILE, TextTokenizer
from tokenizers_vq.token_space import TOKEN_SPACE_FILE, TokenSpace
from unimodal.bundle import Bundle
from unimodal.interop.architectures.base import Architecture
from unimodal.interop.fresh_folder import check_fresh, fresh_folder
from unimodal.interop.registry import read_architecture
from unimodal.interop.vocabulary import Adopted, adopt_tokenizer, grow
from unimodal.interop.weights import read_weights, to_our_names
from unimodal.model.checkpoint import EMBEDDING, HEAD, assembled, save_model
from unimodal.model.config import ModelConfig

SEED = 0
"""New rows of embedding and head are drawn with this and the next."""


class HFModel(NamedTuple):
    """A folder of theirs: fields of config.json, our config, weights under our names, and how many were skipped."""

    architecture: Architecture
    written: Mapping[str, Any]
    config: ModelConfig
    weights: dict[str, Tensor]
    skipped: int


class Imported(NamedTuple):
    """What came of an import: which special tokens had which name there, and how many weights were skipped.

    `also_end`: id -> name of the tokens beside <eos> at which an answer ends.
    """

    architecture: str
    space: TokenSpace
    found: dict[str, str]
    also_end: dict[int, str]
    skipped: int


def read_hf(folder: Path) -> HFModel:
    """Read config and weights of a local folder of theirs; weights keep their bits and their type.

    Raises ValueError for an architecture that is not registered, for what our transformer cannot compute, and for
    weights that are missing, unknown, of another shape or pickled.
    """
    architecture, theirs = read_architecture(folder)
    config = architecture.config(theirs)
    weights = to_our_names(read_weights(folder), architecture, config)
    return HFModel(architecture, theirs.written, config, weights.tensors, weights.skipped)


def import_hf(source: Path, out: Path, image_tokenizer: Path | None = None) -> Imported:
    """Write a local model of a registered architecture as a bundle; weights keep their bits and their type.

    An export of ours comes back with its token space and tokenizers as they were. Any other model speaks text alone:
    its special tokens for beginning, end and padding become ours; the other special tokens and the codes of
    `image_tokenizer` get new ids after its own, and embedding and head new rows (as Liquid does, arXiv 2412.04332).
    Of a Chameleon the language part is taken, and its own image codes stay ids of the text.

    Raises ValueError as `read_hf` does, for an image tokenizer that is missing or too many, and where `out` is not
    empty.
    """
    check_fresh(out)
    if not source.is_dir():
        raise ValueError(f"{source} is not a folder: give one as save_pretrained leaves it")
    theirs = read_hf(source)
    ours = (source / TOKEN_SPACE_FILE).is_file()
    if ours and image_tokenizer is not None:
        raise ValueError(f"{source} is an export of ours with its own token space: leave out the image tokenizer")
    if not ours and image_tokenizer is None:
        raise ValueError(f"{source} has no token space of ours: give an image tokenizer, whose codes it is to learn")
    if image_tokenizer is None:
        space, found, also_end = _bring_back(source, theirs.config, theirs.weights, out), {}, {}
    else:
        adopted = adopt_tokenizer(source, theirs.written)
        space, found = _settle(adopted, theirs.config, theirs.weights, image_tokenizer, out), adopted.found
        also_end = adopted.also_end
    return Imported(theirs.architecture.model_type, space, found, also_end, theirs.skipped)


def _bring_back(source: Path, config: ModelConfig, weights: dict[str, Tensor], out: Path) -> TokenSpace:
    """The bundle that was exported."""
    space = TokenSpace.open(source)
    _check_tokenizers(source, space)
    with fresh_folder(out) as folder:
        (folder / TEXT_TOKENIZER).mkdir()
        shutil.copyfile(source / TOKENIZER_FILE, folder / TEXT_TOKENIZER / TOKENIZER_FILE)
        if (source / IMAGE_TOKENIZER).is_dir():
            shutil.copytree(source / IMAGE_TOKENIZER, folder / IMAGE_TOKENIZER)
        save_model(assembled(_with_image_ids(config, space), weights), space, folder)
    return space


def _with_image_ids(config: ModelConfig, space: TokenSpace) -> ModelConfig:
    """Experts know which ids are image codes."""
    moe = config.trunk.moe and dataclasses.replace(config.trunk.moe, image_ids_from=space.image_offset)
    return dataclasses.replace(config, trunk=dataclasses.replace(config.trunk, moe=moe))


def _check_tokenizers(source: Path, space: TokenSpace) -> None:
    hashes = {TOKENIZER_FILE: (TextTokenizer.open(source).hash, space.text_hash)}
    if (source / IMAGE_TOKENIZER).is_dir():
        hashes[IMAGE_TOKENIZER] = (ImageTokenizer.open(source / IMAGE_TOKENIZER).hash, space.image_hash)
    for name, (found, expected) in hashes.items():
        if found != expected:
            raise ValueError(f"{source / name} is not the one of {TOKEN_SPACE_FILE} beside it: take it from the export")


def _settle(
    adopted: Adopted, config: ModelConfig, weights: dict[str, Tensor], image_tokenizer: Path, out: Path
) -> TokenSpace:
    """A bundle of a model that was not ours."""
    if adopted.known > config.vocab_size:
        raise ValueError(f"its tokenizer has {adopted.known} ids, its embedding only {config.vocab_size} rows")
    image = ImageTokenizer.open(image_tokenizer)
    space = dataclasses.replace(make_token_space(adopted.text, image), also_end=tuple(adopted.also_end))
    tables = (EMBEDDING,) if config.trunk.tied_head else (EMBEDDING, HEAD)
    for seed, name in enumerate(tables, start=SEED):
        weights[name] = grow(weights[name], adopted.known, space.vocab_size, seed)
    config = _with_image_ids(dataclasses.replace(config, vocab_size=space.vocab_size), space)
    model = assembled(config, weights)
    with fresh_folder(out) as folder:
        Bundle(model, space, Tokenizers(adopted.text, image)).save(folder)
    return space
