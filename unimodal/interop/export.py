"""Export: a model bundle becomes a folder that Hugging Face's transformers open."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.generation.configuration_utils import GenerationConfig

from tokenizers_vq.bundle_files import IMAGE_TOKENIZER, TEXT_TOKENIZER, Tokenizers
from tokenizers_vq.text import TOKENIZER_FILE
from tokenizers_vq.token_space import TokenSpace
from unimodal.interop.architectures.base import Architecture
from unimodal.interop.fresh_folder import check_fresh, fresh_folder
from unimodal.interop.registry import architecture_for
from unimodal.interop.weights import to_their_names
from unimodal.model.checkpoint import open_model
from unimodal.model.model import UnifiedModel

CARD = """# A model of pictures and text, exported from unimodal

{opens}

A prompt is `<bos> text <sep>`, a picture in it `<boi> codes <eoi>`; an answer ends with `<eos>`. Image code k has id
{image_offset} + k, for k below {codebook_size}. The tokenizer spells out special tokens that stand in a text: put their
ids around the ids of the text. `image_tokenizer/` turns pictures into codes and back, with unimodal.

`unimodal import-hf` makes a model bundle of this folder again.
"""


def export_hf(bundle: Path, out: Path) -> Architecture:
    """Write a bundle as a folder of theirs, with what is needed to come back. Returns the architecture it has there.

    The architecture is the one that computes the same (`registry.architecture_for`). Weights keep their bits and their
    type; dropout is not carried. Raises ValueError for a bundle that cannot be opened, for one that no architecture can
    express, and where `out` is not empty.
    """
    check_fresh(out)
    if not bundle.is_dir():
        raise ValueError(f"{bundle} is not a folder: give a model bundle, as training leaves it")
    model, space = open_model(bundle)
    Tokenizers.open(bundle, space, latents=False)
    architecture = architecture_for(model.config)
    theirs = to_transformers(model)
    with fresh_folder(out) as folder:
        _write_model(theirs, space, folder)
        _write_tokenizers(bundle, model.config.trunk.max_length, folder)
        space.save(folder)
        _write_card(architecture, space, folder)
    return architecture


def to_transformers(model: UnifiedModel) -> PreTrainedModel:
    """The same function as a model of theirs, on the CPU in evaluation mode; weights are copied, dropout is dropped.

    Raises ValueError for a model that no architecture can express.
    """
    architecture = architecture_for(model.config)
    with torch.random.fork_rng(devices=[]):  # the first weights are drawn and thrown away
        theirs = architecture.model_class(architecture.theirs(model.config))
    weights = to_their_names(model, architecture)
    zeros = {
        name: torch.zeros_like(x, dtype=model.dtype)
        for name, x in theirs.state_dict().items()
        if name.startswith(architecture.skipped)
    }
    # assigned: a model that is cast to bfloat16 instead would round the angles of its positions too
    theirs.load_state_dict({**weights, **zeros}, assign=True)
    theirs.tie_weights()
    return theirs.eval()


def _write_model(model: PreTrainedModel, space: TokenSpace, folder: Path) -> None:
    specials = space.specials
    ends = list(space.ends) if space.also_end else specials.eos
    ids = {"bos_token_id": specials.bos, "eos_token_id": ends, "pad_token_id": specials.pad}
    for name, value in ids.items():
        setattr(model.config, name, value)
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(folder)


def _write_tokenizers(bundle: Path, max_length: int, folder: Path) -> None:
    """tokenizer.json byte for byte, with the settings that make their tokenizer spell out specials as ours does."""
    shutil.copyfile(bundle / TEXT_TOKENIZER / TOKENIZER_FILE, folder / TOKENIZER_FILE)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    if (bundle / IMAGE_TOKENIZER).is_dir():
        shutil.copytree(bundle / IMAGE_TOKENIZER, folder / IMAGE_TOKENIZER)


def _write_card(architecture: Architecture, space: TokenSpace, folder: Path) -> None:
    opens = f"Opens with `{architecture.opened_by}.from_pretrained`.\n{architecture.note}".rstrip()
    card = CARD.format(opens=opens, image_offset=space.image_offset, codebook_size=space.codebook_size)
    (folder / "README.md").write_text(card, encoding="utf-8")
