"""Does the flow branch cost discrete training anything while it is off?

The same batches train the same weights twice, in turn: on the model as it is, and on one whose code knows nothing of
media, routes, caches or slots. The losses of eager steps must be equal to the bit (compiled code is fused, and rounds,
in another way each time); medians of compiled steps are compared. One JSON line goes to stdout, the rest to stderr.
"""

from __future__ import annotations

import copy
import itertools
import json
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from unimodal.model.attention import Attention
from unimodal.model.block import FinalNorm, PreNormBlock
from unimodal.model.config import ModelConfig
from unimodal.model.context import Rotation
from unimodal.model.kernels import attend
from unimodal.model.masks import Mask, as_bias
from unimodal.model.model import UnifiedModel
from unimodal.model.rope import rotate
from unimodal.model.transformer import Transformer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, it does not see its neighbours otherwise
from benchmarks.train_step import Data, Step, config_of, sized_parser, tell

EAGER_STEPS = 4
SLOWEST = 1.02
"""Training may be this many times slower."""


class PlainBlock(PreNormBlock):
    """Attention over the tokens that are there, and a feed-forward part; no context, no route."""

    def forward(self, x: Tensor, rotation: Rotation, bias: Mask) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(B, T, D) -> (B, T, D)."""
        x = x + self.dropout(_attention(self.attention, self.attention_norm(x), rotation, bias))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


def _attention(layer: Attention, x: Tensor, rotation: Rotation, bias: Mask) -> Tensor:
    qkv = layer.qkv
    queries, keys, values = (
        projection(x).unflatten(-1, (-1, qkv.head_dim)) for projection in (qkv.q_proj, qkv.k_proj, qkv.v_proj)
    )
    queries, keys = rotate(qkv.q_norm(queries), *rotation), rotate(qkv.k_norm(keys), *rotation)
    mixed = attend(queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), bias)
    return layer.o_proj(mixed.transpose(1, 2).flatten(2))


class PlainTrunk(Transformer):
    """Llama's layers with QK-norm, written out for training alone."""

    def forward(self, tokens: Tensor, positions: Tensor, mask: Mask) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(B, T) -> (B, T, D)."""
        x = self.embedding(tokens)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        rotation, bias = self.rotary(positions, dtype), as_bias(mask, dtype)
        for block in self.blocks:
            x = block(x, rotation, bias)
        assert isinstance(self.norm, FinalNorm)
        return torch.nn.functional.rms_norm(x, self.norm.weight.shape, self.norm.weight, self.config.norm_eps)


class PlainModel(UnifiedModel):
    """The discrete model and nothing else, with the parameters and names of `UnifiedModel`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.trunk.__class__ = PlainTrunk
        for block in self.trunk.blocks:
            block.__class__ = PlainBlock

    def forward(self, tokens: Tensor, positions: Tensor, mask: Mask) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(B, T) -> (B, T, D)."""
        return self.trunk(tokens, positions, mask)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 where the losses differ at all."""
    sizes = {"dim": 256, "layers": 6, "heads": 4, "kv_heads": 4, "hidden": 704, "length": 160, "rows": 24, "rounds": 30}
    parser = sized_parser(__doc__, **sizes)
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    config = config_of(options)
    plain, model = PlainModel(config), UnifiedModel(config)
    model.load_state_dict(copy.deepcopy(plain.state_dict()))
    batches = Data.make(options.length, options.rows).batches
    eager = [Step(copy.deepcopy(each), compile=False) for each in (model, plain)]
    losses = [[step.run(batch) for batch in itertools.islice(itertools.cycle(batches), EAGER_STEPS)] for step in eager]
    difference = max(abs(a - b) for a, b in zip(*losses, strict=True))
    steps = {"with": Step(model, compile=not options.eager), "without": Step(plain, compile=not options.eager)}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number, batch in enumerate(itertools.islice(itertools.cycle(batches), options.rounds + 2)):
        for name in sorted(steps, reverse=bool(number % 2)):
            start = time.perf_counter()
            steps[name].run(batch)
            if number >= 2:  # the first two compile
                seconds[name].append(time.perf_counter() - start)
    ours, theirs = statistics.median(seconds["with"]), statistics.median(seconds["without"])
    tell(f"a step with the code of branches {ours:.4f} s, without {theirs:.4f} s; it may be {SLOWEST} times slower")
    tell(f"largest difference of a loss over {EAGER_STEPS} eager steps: {difference}")
    line = {
        "name": "discrete_unchanged",
        "unit": "s",
        "ours": ours,
        "theirs": theirs,
        "ratio": theirs / ours,
        "runs": options.rounds,
        "largest_loss_difference": difference,
        "device": f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    print(json.dumps(line))
    return int(difference > 0)


if __name__ == "__main__":
    raise SystemExit(main())
