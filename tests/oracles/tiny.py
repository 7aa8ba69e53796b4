"""Real parts, very small: token space, model, tokenizers, bundle, picture folder, shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from data_pipelines.failures import FailureLog
from data_pipelines.media_makers import LatentsMaker, MediaMaker, PatchesMaker
from data_pipelines.sources.registry import open_source
from data_pipelines.tokenize import TokenizeConfig, make_token_space, tokenize
from tokenizers_vq.autoencoder import ImageAutoencoder, ImageAutoencoderConfig
from tokenizers_vq.backbones import PatchBackboneConfig
from tokenizers_vq.bundle_files import Tokenizers
from tokenizers_vq.image_tokenizer import ImageTokenizer, ImageTokenizerConfig
from tokenizers_vq.media import PatchSpec
from tokenizers_vq.quantizers import VQConfig
from tokenizers_vq.text import TextTokenizer
from tokenizers_vq.token_space import FixedLayout, TokenSpace
from unimodal.bundle import Bundle
from unimodal.generation.pipeline import Pipeline
from unimodal.model.config import FlowConfig, ModelConfig, MultiTokenConfig, TransformerConfig, VisionConfig
from unimodal.model.model import UnifiedModel

SENTENCES = ("a red circle", "a blue square", "what color is it?", "is there a red square?", "yes", "no", "red", "blue")
PAINTS = ("red", "blue", "green", "black", "white", "teal", "yellow", "gray")
IMAGE_SIZE = 16


def tiny_space(*, text_size: int = 16, codebook_size: int = 8, rows: int = 2, columns: int = 2) -> TokenSpace:
    """A vocabulary of 24 ids: 7 specials, 9 text ids, 8 image codes; four codes an image."""
    layout = FixedLayout(rows=rows, columns=columns)
    return TokenSpace(text_size=text_size, text_hash="t", codebook_size=codebook_size, image_hash="i", layout=layout)


def tiny_config(vocab_size: int = 24, **changes: Any) -> ModelConfig:
    """Two layers of two query heads that share one key/value head; `flow`, `vision`, `multi_token` are theirs."""
    branches = {name: changes.pop(name) for name in ("flow", "vision", "multi_token") if name in changes}
    shape = {"dim": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "hidden_dim": 24, "max_length": 64}
    return ModelConfig(vocab_size=vocab_size, trunk=TransformerConfig(**{**shape, **changes}), **branches)


def tiny_model(
    vocab_size: int = 24, *, dtype: torch.dtype = torch.float64, seed: int = 0, **changes: Any
) -> UnifiedModel:
    """A model in evaluation mode whose parameters, norms and biases too, are large and all different."""
    model = UnifiedModel(tiny_config(vocab_size, **changes)).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.4 * noise)
    return model.eval()


def tiny_text_tokenizer() -> TextTokenizer:
    """A byte-level BPE trained on a few sentences."""
    return TextTokenizer.train(SENTENCES, 300)


def tiny_image_tokenizer(seed: int = 0) -> ImageTokenizer:
    """Pictures of 16 pixels as four of 16 codes; one forward pass in training mode has set up the codebook."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = ImageTokenizerConfig(
            image_size=IMAGE_SIZE,
            backbone=PatchBackboneConfig(patch_size=8, width=16, depth=1),
            quantizer=VQConfig(codebook_size=16, dim=4),
        )
        tokenizer = ImageTokenizer(config).train()
        with torch.no_grad():
            tokenizer(torch.rand(16, 3, IMAGE_SIZE, IMAGE_SIZE) * 2 - 1)
    return tokenizer.eval().requires_grad_(False)


def tiny_pipeline(*, dtype: torch.dtype = torch.float32, with_images: bool = True, **changes: Any) -> Pipeline:
    """A pipeline with random weights and real tokenizers."""
    text, image = tiny_text_tokenizer(), tiny_image_tokenizer()
    space = make_token_space(text, image)
    model = tiny_model(space.vocab_size, dtype=dtype, **changes)
    return Pipeline(Bundle(model, space, Tokenizers(text, image if with_images else None)))


def tiny_bundle(folder: Path, **changes: Any) -> Path:
    """A saved `tiny_pipeline`."""
    tiny_pipeline(**changes).save(folder)
    return folder


def tiny_picture(index: int) -> Image.Image:
    """One of eight plain pictures with a corner of the next colour."""
    picture = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), PAINTS[index % len(PAINTS)])
    picture.paste(PAINTS[(index + 1) % len(PAINTS)], (0, 0, 6, 6 + index % 5))
    return picture


def tiny_picture_folder(folder: Path, count: int = 24) -> Path:
    """Pictures with metadata.jsonl, as source `imagefolder` reads them."""
    folder.mkdir(parents=True)
    rows = []
    for index in range(count):
        name, paint = f"{index:03d}.png", PAINTS[index % len(PAINTS)]
        tiny_picture(index).save(folder / name)
        questions = [{"question": "what color is it?", "answer": paint}, {"question": "is it red?", "answer": "no"}]
        rows.append({"file_name": name, "text": f"a {paint} picture", "qa": questions})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def tiny_shards(folder: Path, count: int = 24, *, latents: bool = False, patch: int | None = None) -> Path:
    """Token shards of such a folder with both tokenizers beside them, through the code that users run.

    With `latents`, those of a `tiny_autoencoder` and that autoencoder lie beside them; with `patch`, patches for a ViT.
    """
    autoencoder = tiny_autoencoder() if latents else None
    media: list[MediaMaker] = [] if autoencoder is None else [LatentsMaker(autoencoder)]
    media += [] if patch is None else [PatchesMaker(PatchSpec(size=patch, max_patches=16, max_side=8))]
    pictures = tiny_picture_folder(folder.with_name(folder.name + "-pictures"), count)
    text, image, failures = tiny_text_tokenizer(), tiny_image_tokenizer(), FailureLog()
    source = open_source("imagefolder", path=pictures, split="train", failures=failures)
    tokenize(source, text, image, folder, failures, TokenizeConfig(documents_per_shard=16), media)
    Tokenizers(text, image, autoencoder).save(folder)
    return folder


def tiny_autoencoder(latent_dim: int = 3, seed: int = 0) -> ImageAutoencoder:
    """2x2 latents for pictures of 16 pixels, with statistics that are not 0 and 1."""
    torch.manual_seed(seed)
    backbone = PatchBackboneConfig(patch_size=8, width=16, depth=1)
    config = ImageAutoencoderConfig(image_size=IMAGE_SIZE, backbone=backbone, latent_dim=latent_dim)
    autoencoder = ImageAutoencoder(config).eval().requires_grad_(False)
    autoencoder.measure([torch.rand(8, 3, IMAGE_SIZE, IMAGE_SIZE) * 2 - 1])
    return autoencoder


def tiny_flow_pipeline(
    *, mixture: bool = True, max_length: int = 128, vit: bool = False, multi_token: MultiTokenConfig | None = None
) -> Pipeline:
    """As `tiny_pipeline`, with a flow branch that draws 2x2 latents, and with `vit` one that sees pictures."""
    text, image = tiny_text_tokenizer(), tiny_image_tokenizer()
    space = make_token_space(text, image)
    autoencoder = tiny_autoencoder()
    flow = FlowConfig(latent_dim=3, grid_size=2, time_channels=8, axial_rope_max=1.5, autoencoder=autoencoder.hash)
    vision = VisionConfig(
        patches=PatchSpec(size=4, max_patches=16, max_side=8),
        grid_size=4,
        dim=8,
        num_layers=1,
        num_heads=2,
        hidden_dim=12,
    )
    model = tiny_model(
        space.vocab_size,
        dtype=torch.float32,
        max_length=max_length,
        mixture=mixture,
        flow=flow,
        vision=vision if vit else None,
        multi_token=multi_token,
    )
    return Pipeline(Bundle(model, space, Tokenizers(text, image, autoencoder)))
