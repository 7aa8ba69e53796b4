"""How much of the engine's rate do rollouts reach, and how much of pretraining's tokens a second do updates?

A model of the demo's shape with random weights draws 24 captions 16 times each, without guidance, and is updated on the
answers. `rollout_share`: answers a second of a whole rollout (prompts encoded, weights prepacked, pictures decoded)
against those of the engine alone on the same requests. `update_share`: tokens a second of an update's forward and
backward passes against those of next-token prediction on rows of the same size. Measured in turn, medians; one JSON
line for each goes to stdout.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, it does not see its neighbours otherwise
from data_pipelines.batch import PackedBatch
from data_pipelines.tokenize import make_token_space
from tokenizers_vq.backbones import PatchBackboneConfig
from tokenizers_vq.bundle_files import Tokenizers
from tokenizers_vq.image_tokenizer import ImageTokenizer, ImageTokenizerConfig
from tokenizers_vq.quantizers import VQConfig
from tokenizers_vq.text import TextTokenizer
from unimodal.bundle import Bundle
from unimodal.evaluation.tasks.t2i import colour_shape_captions
from unimodal.generation.answer_rows import AnswerBatch, AnswerPacker
from unimodal.generation.context import Reading
from unimodal.generation.modality import ModalityMachine
from unimodal.model.config import ModelConfig, TransformerConfig
from unimodal.model.inference.compiling import compile_blocks
from unimodal.model.masks import dense_mask
from unimodal.model.model import UnifiedModel
from unimodal.training.objectives.base import total
from unimodal.training.objectives.next_token import next_token_terms
from unimodal.training.precision import matmul_dtype
from unimodal.training.rl.data import DrawnPrompt
from unimodal.training.rl.decoding import PolicyDecoder
from unimodal.training.rl.losses.clipped import ClippedRatio
from unimodal.training.rl.prompts.base import RLPrompt
from unimodal.training.rl.prompts.drawings import Drawings
from unimodal.training.rl.rollouts import Rollout, RolloutConfig, Sampler
from unimodal.training.rl.statistics import Sums
from unimodal.training.rl.updates.base import UpdateConfig
from unimodal.training.rl.updates.tokens import TokenUpdate

DTYPE = matmul_dtype(torch.device("cpu"))


def bundle_of(options: argparse.Namespace) -> Bundle:
    """Random weights of the demo's shape; the image tokenizer's codebook is set up by one batch of noise."""
    torch.manual_seed(0)
    captions = colour_shape_captions()
    text = TextTokenizer.train(captions, 384)
    backbone = PatchBackboneConfig(patch_size=8, width=options.width, depth=3)
    quantizer = VQConfig(codebook_size=1024, dim=8, commitment=1.0, revive_below=1.0)
    image = ImageTokenizer(ImageTokenizerConfig(image_size=64, backbone=backbone, quantizer=quantizer))
    image.train()
    image(torch.rand(64, 3, 64, 64) * 2 - 1)
    image = image.eval().requires_grad_(False)
    space = make_token_space(text, image)
    trunk = TransformerConfig(
        dim=options.dim, num_layers=options.layers, num_heads=3, num_kv_heads=1, hidden_dim=512, max_length=512
    )
    model = UnifiedModel(ModelConfig(vocab_size=space.vocab_size, trunk=trunk))
    return Bundle(model, space, Tokenizers(text, image))


class Arm:
    """A model, and what rollouts and updates of it take."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.bundle, self.options = bundle_of(options), options
        self.model, self.space = self.bundle.model, self.bundle.space
        self.config = RolloutConfig(group=options.group, at_once=options.at_once, length=288, rows=8)
        prompts = [RLPrompt(name=caption, prompt=caption) for caption in colour_shape_captions()]
        self.drawn = [DrawnPrompt(0, prompt) for prompt in prompts]
        self.sampler = Sampler([Drawings(rewards={"none": 1.0})], {}, self.config, DTYPE)
        folder = Path(tempfile.mkdtemp())
        self.bundle.save(folder)
        self.decoder = PolicyDecoder(self.space, folder)
        self.packer = AnswerPacker(self.space, Reading(), rows=8, length=288, context=512)
        if not options.eager:
            compile_blocks(self.model)

    def roll(self) -> Rollout:
        """A whole rollout."""
        return self.sampler.roll(self.decoder.pipeline(self.model), self.drawn, 0)

    def decode(self, rollout: Rollout) -> None:
        """The engine alone, on the requests of a rollout."""
        self.decoder.pipeline(self.model).engine.decode(
            [each.request for each in rollout.trajectories], rows=self.config.at_once
        )

    def features(self, model: UnifiedModel, packed: PackedBatch) -> torch.Tensor:
        """In the type of a training step."""
        branches = packed.branches if packed.facts.has_branches else None
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=torch.bfloat16 == DTYPE):
            return model(packed.tokens, packed.positions, dense_mask(packed.documents, branches))

    def update(self, rollout: Rollout) -> int:
        """Forward and backward passes of an update; the tokens of its rows."""
        self.model.train()
        update = TokenUpdate(
            config=UpdateConfig(loss=ClippedRatio()),
            packer=self.packer,
            machine=ModalityMachine(self.space),
            rollout=rollout,
            advantages=torch.randn(len(rollout.trajectories)),
            forward=self.read,
            head=self.model.token_head,
        )
        tokens = 0
        for batch in self.packer.batches(rollout.trajectories, range(len(rollout.trajectories))):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=torch.bfloat16 == DTYPE):
                update.loss(self.model, batch, Sums()).backward()
            tokens += batch.packed.num_tokens
        self.model.zero_grad()
        return tokens

    def read(self, model: UnifiedModel, batch: AnswerBatch) -> torch.Tensor:
        """See `TokenUpdate`."""
        return self.features(model, batch.packed)

    def pretrain(self, rollout: Rollout) -> int:
        """Next-token prediction on the same rows; their tokens."""
        self.model.train()
        tokens = 0
        for packed in self.rows:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=torch.bfloat16 == DTYPE):
                features = self.features(self.model, packed)
                terms = next_token_terms(
                    features, self.model.token_head, packed.targets, packed.loss_weights, packed.modality, 1e-5
                )
                total(terms).backward()
            tokens += packed.num_tokens
        self.model.zero_grad()
        return tokens

    def keep_rows(self, rollout: Rollout) -> None:
        """The rows of an update, packed before, as a data loader hands them to pretraining."""
        batches = self.packer.batches(rollout.trajectories, range(len(rollout.trajectories)))
        self.rows = [batch.packed for batch in batches]


def rates(rounds: int, *actions: Callable[[], float]) -> list[list[float]]:
    """Units a second of each action, in turn, after one round that is not counted."""
    found: list[list[float]] = [[] for _ in actions]
    for number in range(rounds + 1):
        for action, values in zip(actions, found, strict=True):
            started = time.perf_counter()
            units = action()
            if number:
                values.append(units / (time.perf_counter() - started))
    return found


def line(name: str, unit: str, ours: Sequence[float], theirs: Sequence[float]) -> str:
    """One comparison, as every benchmark prints it."""
    medians = [statistics.median(values) for values in (ours, theirs)]
    device: dict[str, Any] = {"machine": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    device |= {"dtype": str(DTYPE), "capability": torch.backends.cpu.get_cpu_capability()}
    result = {"name": name, "unit": unit, "ours": medians[0], "theirs": medians[1], "ratio": medians[0] / medians[1]}
    return json.dumps({**result, "runs": len(ours), "device": device, "versions": {"torch": torch.__version__}})


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print both lines."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dim", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256, help="of the image tokenizer")
    parser.add_argument("--group", type=int, default=16)
    parser.add_argument("--at-once", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--eager", action="store_true", help="do not compile the blocks")
    options = parser.parse_args(arguments)
    arm = Arm(options)
    rollout = arm.roll()
    arm.keep_rows(rollout)
    count = len(rollout.trajectories)
    whole, alone = rates(options.rounds, lambda: len(arm.roll().trajectories), lambda: arm.decode(rollout) or count)
    print(line("rollout_share", "answers/s", whole, alone), flush=True)
    updates, pretraining = rates(options.rounds, lambda: arm.update(rollout), lambda: arm.pretrain(rollout))
    print(line("update_share", "tokens/s", updates, pretraining), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
