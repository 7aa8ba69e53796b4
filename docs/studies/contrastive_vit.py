"""Trains the ViT of a bundle against captions before the decoder reads through it, as SigLIP's was (arXiv 2303.15343).

    python docs/studies/contrastive_vit.py --model runs/eyes/start/model --out runs/eyes/contrastive

Features of an image, a mean over the tokens that the connector makes, find its caption among all captions. The
decoder stays as it is; a training starts from the bundle with `--model.start.bundle`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_pipelines.failures import FailureLog
from data_pipelines.sources.registry import open_source
from unimodal.bundle import Bundle
from unimodal.evaluation.dual_encoder import EMBEDDING, DualNetwork, captioned_pictures
from unimodal.evaluation.judge import to_unit
from unimodal.model.branches.base import MediaTokens, grid_positions
from unimodal.model.model import PATCHES
from unimodal.terminal import say
from unimodal.training.optimizers.build import MuonConfig, build_optimizer

RATE = 0.003


class BranchNetwork(DualNetwork):
    """A dual encoder whose pictures go through the vision branch of a decoder."""

    def __init__(self, branch: nn.Module, size: int, dim: int) -> None:
        super().__init__()
        self.branch, self.size = branch, size
        self.log_scale.data.fill_(3.0)
        self.pixels, self.of_pixels = nn.Identity(), nn.Linear(dim, EMBEDDING)

    def pictures(self, images: Tensor) -> Tensor:
        """See `DualNetwork`."""
        with torch.autocast("cpu", torch.bfloat16):
            features = self.branch(as_media(images, self.size)).embeddings
        return F.normalize(self.of_pixels(features.float().unflatten(0, (len(images), -1)).mean(1)), dim=-1)


def as_media(images: Tensor, size: int) -> MediaTokens:
    """(B, 3, S, S) in [-1, 1] -> the bytes of its tokens, channel by channel."""
    batch, side = len(images), images.shape[-1] // size
    blocks = images.unflatten(2, (side, size)).unflatten(4, (side, size)).permute(0, 2, 4, 1, 3, 5)
    values = ((blocks.reshape(batch * side**2, -1) + 1) * 127.5).clamp(0, 255)
    places = grid_positions(side, side).repeat(batch, 1)
    return MediaTokens(torch.arange(len(values)), values, places, ((side, side),) * batch)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and write the bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a bundle with a ViT")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    bundle = Bundle.open(options.model)
    config = bundle.model.config
    if config.vision is None:
        raise SystemExit(f"{options.model} has no ViT")
    pictures, captions = captioned_pictures(open_source("easy_vqa", path=None, split="train", failures=FailureLog()))
    distinct = list(dict.fromkeys(captions))
    classes = torch.tensor([distinct.index(caption) for caption in captions])
    torch.manual_seed(options.seed)
    network = BranchNetwork(bundle.model.branches[PATCHES], config.vision.patches.size, config.trunk.dim).train()
    rest = [each for name, each in network.named_parameters() if not name.startswith("branch.")]
    optimizers = [build_optimizer(network.branch, MuonConfig(learning_rate=RATE)), torch.optim.AdamW(rest, lr=RATE)]
    groups = [(group, group["lr"]) for optimizer in optimizers for group in optimizer.param_groups]
    generator = torch.Generator().manual_seed(options.seed)
    for step in range(options.steps):
        share = min((step + 1) / 50, (options.steps - step) / (options.steps / 2), 1.0)
        for group, rate in groups:
            group["lr"] = rate * share
        chosen = torch.randint(len(captions), (64,), generator=generator)
        mirrored = torch.rand(len(chosen), 1, 1, 1, generator=generator) < 0.5
        images = to_unit(pictures[chosen])
        images = torch.where(mirrored, images.flip(3), images)
        logits = network.log_scale.exp() * network.pictures(images) @ network.captions(distinct).T
        loss = F.cross_entropy(logits, classes[chosen])
        network.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        if (step + 1) % 100 == 0:
            say(f"step {step + 1}/{options.steps}  loss {loss.item():.3f}")
    bundle.model.eval()
    bundle.save(options.out)


if __name__ == "__main__":
    main()
