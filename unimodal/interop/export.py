"""Export: a model bundle becomes a folder that Hugging Face's transformers open."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from torch import Tensor
from transformers import ChameleonConfig, ChameleonForConditionalGeneration, LlamaConfig, LlamaForCausalLM
from transformers.generation.configuration_utils import GenerationConfig
from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig

from tokenizers_vq.bundle_files import IMAGE_TOKENIZER, TEXT_TOKENIZER, Tokenizers
from tokenizers_vq.text import TOKENIZER_FILE
from tokenizers_vq.token_space import TokenSpace
from unimodal.interop.configs import their_shape
from unimodal.interop.fresh_folder import check_fresh, fresh_folder
from unimodal.interop.names import Architecture, architecture_of, name_table
from unimodal.model.checkpoint import open_model
from unimodal.model.model import UnifiedModel

TheirModel = LlamaForCausalLM | ChameleonForConditionalGeneration

STAND_IN = ChameleonVQVAEConfig(
    embed_dim=1,
    num_embeddings=1,
    latent_channels=1,
    base_channels=32,
    channel_multiplier=[1],
    num_res_blocks=0,
    attn_type="none",
)
"""The smallest image encoder that their class can be built with; see `to_chameleon`."""

CARD = """# A model of pictures and text, exported from unimodal

{opens}

A prompt is `<bos> text <sep>`, a picture in it `<boi> codes <eoi>`; an answer ends with `<eos>`. Image code k has id
{image_offset} + k, for k below {codebook_size}. The tokenizer spells out special tokens that stand in a text: put their
ids around the ids of the text. `image_tokenizer/` turns pictures into codes and back, with unimodal.

`unimodal import-hf` makes a model bundle of this folder again.
"""
OPENS_LLAMA = "Opens with `AutoModelForCausalLM.from_pretrained`."
OPENS_CHAMELEON = """Opens with `ChameleonForConditionalGeneration.from_pretrained`.

**The image encoder in here is a stand-in.** That class cannot be built without one (`model.vqmodel`). Its weights are
all zero, and no image code has a name in `vocabulary_map`, so `pixel_values` raise an error: give pictures as ids.
Because the codes have no names the class does not mask them either, and scores text and image ids alike."""


def export_hf(bundle: Path, out: Path) -> Architecture:
    """Write a bundle as a folder of theirs, with what is needed to come back. Returns the architecture it has there.

    Without QK-norm it is a `LlamaForCausalLM`, with it a `ChameleonForConditionalGeneration`. Weights keep their bits
    and their type; dropout is not carried. Raises ValueError for a bundle that cannot be opened, for one that neither
    class can express, and where `out` is not empty.
    """
    check_fresh(out)
    if not bundle.is_dir():
        raise ValueError(f"{bundle} is not a folder: give a model bundle, as training leaves it")
    model, space = open_model(bundle)
    Tokenizers.open(bundle, space, latents=False)
    architecture = architecture_of(model.config)
    theirs = to_llama(model) if architecture == "llama" else to_chameleon(model)
    with fresh_folder(out) as folder:
        _write_model(theirs, space, folder)
        _write_tokenizers(bundle, model.config.trunk.max_length, folder)
        space.save(folder)
        _write_card(architecture, space, folder)
    return architecture


def to_llama(model: UnifiedModel) -> LlamaForCausalLM:
    """The same function as a `LlamaForCausalLM` on the CPU in evaluation mode; weights are copied, dropout is left out.

    Raises ValueError for a model with QK-norm or with its norms after each part.
    """
    if architecture_of(model.config) != "llama":
        raise ValueError("Llama has no QK-norm, this model does: it exports as Chameleon")
    with torch.random.fork_rng(devices=[]):  # the first weights are drawn and thrown away
        llama = LlamaForCausalLM(LlamaConfig(**their_shape(model.config)))
    llama.load_state_dict(_their_weights(model, "llama"), assign=True)
    return llama.eval()


def to_chameleon(model: UnifiedModel) -> ChameleonForConditionalGeneration:
    """The same function as a `ChameleonForConditionalGeneration`, as `to_llama`.

    Their class holds an image encoder and cannot be built without; ours is of another kind. So it gets the smallest
    there is with weights that are all zero, and no names for image codes: pictures (`pixel_values`) then raise an error
    instead of becoming wrong codes. With names it would also set the logits of all image codes to the lowest number
    (`forward` masks ids named IMGIMG...) and could neither draw nor be trained to; without, all logits are ours.

    Raises ValueError for a model without QK-norm or with an eps of QK-norm that is not theirs.
    """
    if architecture_of(model.config) != "chameleon":
        raise ValueError("Chameleon has QK-norm, this model does not: it exports as Llama")
    swin = model.config.trunk.norm_placement == "swin"
    config = ChameleonConfig(
        **their_shape(model.config), swin_norm=swin, vq_config=STAND_IN.to_dict(), vocabulary_map={}
    )
    with torch.random.fork_rng(devices=[]):
        chameleon = ChameleonForConditionalGeneration(config)
    weights, encoder = _their_weights(model, "chameleon"), chameleon.model.vqmodel.state_dict()
    dtype = weights["lm_head.weight"].dtype
    zeros = {f"model.vqmodel.{name}": torch.zeros_like(x, dtype=dtype) for name, x in encoder.items()}
    chameleon.load_state_dict({**weights, **zeros}, assign=True)
    return chameleon.eval()


def _their_weights(model: UnifiedModel, architecture: Architecture) -> dict[str, Tensor]:
    """Copies, to be assigned: a model that is cast to bfloat16 instead would round the angles of its positions too."""
    names = name_table(architecture, model.config.trunk.num_layers)
    return {names[name]: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def _write_model(model: TheirModel, space: TokenSpace, folder: Path) -> None:
    specials = space.specials
    ids = {"bos_token_id": specials.bos, "eos_token_id": specials.eos, "pad_token_id": specials.pad}
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
    opens = OPENS_LLAMA if architecture == "llama" else OPENS_CHAMELEON
    card = CARD.format(opens=opens, image_offset=space.image_offset, codebook_size=space.codebook_size)
    (folder / "README.md").write_text(card, encoding="utf-8")
