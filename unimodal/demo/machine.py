"""What the machine can do, measured in two seconds, and which recipe of the demo fits it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F

from unimodal.devices import usable_device
from unimodal.training.precision import matmul_dtype

DemoBranch = Literal["discrete", "flow"]
BRANCHES: tuple[DemoBranch, ...] = ("discrete", "flow")

SHAPE = (3456, 192, 512)
"""Rows, inputs and outputs of the product that is timed: a feed-forward matrix of the demo's decoder."""
SECONDS_EACH = 0.8
FEWEST = 0.1
"""The smallest share of a recipe's steps that a budget of minutes may leave."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Device, cores, type of the matrix products in training, and how many of them it does: GFLOP/s."""

    device: Literal["cpu", "cuda"]
    cores: int
    dtype: torch.dtype
    rate: float

    @property
    def is_slow(self) -> bool:
        """Whether it trains in float32 on a CPU."""
        return self.device == "cpu" and self.dtype == torch.float32

    def __str__(self) -> str:
        where = "one GPU" if self.device == "cuda" else f"{self.cores} CPU threads"
        return f"{where}, {str(self.dtype).removeprefix('torch.')} products at {self.rate:,.0f} GFLOP/s"


def measure(seconds: float = SECONDS_EACH) -> Machine:
    """Time a product of matrices on what training would take: one GPU if there is one, else all cores."""
    device = usable_device()
    dtype = matmul_dtype(device)
    rows, inputs, outputs = SHAPE
    x, weight = (torch.randn(size, device=device, dtype=dtype) for size in ((rows, inputs), (outputs, inputs)))
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        for _ in range(4):
            product = F.linear(x, weight)
        float(product[0, 0])  # waits for the device
        best = min(best, (time.perf_counter() - started) / 4)
    rate = 2 * rows * inputs * outputs / best / 1e9
    return Machine(device=device.type, cores=torch.get_num_threads(), dtype=dtype, rate=rate)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Optimizer steps of the demo's trainings, and what they take on the machine that `Cost` was measured on."""

    branch: DemoBranch
    tokenizer_steps: int
    decoder_steps: int
    tokenizer_depth: int = 3
    autoencoder_steps: int = 0
    expected: str = ""
    """What it reaches, in words, where all of it is done."""

    def shortened(self, share: float) -> Recipe:
        """With this share of every training's steps."""
        counts = ("tokenizer_steps", "decoder_steps", "autoencoder_steps")
        return replace(self, expected="", **{name: round(getattr(self, name) * share) for name in counts})


FULL: dict[DemoBranch, Recipe] = {
    "discrete": Recipe(
        branch="discrete",
        tokenizer_steps=900,
        tokenizer_depth=2,
        decoder_steps=2200,
        expected="questions 0.98, captions 0.96, drawings 0.89",
    ),
    "flow": Recipe(
        branch="flow",
        tokenizer_steps=1200,
        autoencoder_steps=3600,
        decoder_steps=2100,
        expected="questions 0.99, captions 0.98, drawings 0.92, edits 0.95",
    ),
}
LEAN = replace(
    FULL["discrete"],
    decoder_steps=2000,
    expected="questions 0.97, captions 0.96, drawings 0.84",
)
"""For machines that train in float32: fewer steps of the decoder."""

LEAN_MINUTES, LEAN_FEWEST = 25, 1600
"""What the lean recipe may take on a machine slower than that of `Cost`, and its fewest steps of the decoder."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds, on two cores of an AMD EPYC at `rate` GFLOP/s: of a step of each training, and of all else together."""

    rate: float
    tokenizer: float
    decoder: float
    autoencoder: float
    rest: float


COSTS: dict[tuple[DemoBranch, bool], Cost] = {
    ("discrete", False): Cost(rate=410, tokenizer=0.18, decoder=0.19, autoencoder=0, rest=130),
    ("discrete", True): Cost(rate=175, tokenizer=0.28, decoder=0.32, autoencoder=0, rest=150),
    ("flow", False): Cost(rate=410, tokenizer=0.18, decoder=0.50, autoencoder=0.038, rest=190),
    ("flow", True): Cost(rate=175, tokenizer=0.28, decoder=1.0, autoencoder=0.06, rest=220),
}
"""By branch, and whether training runs in float32 on a CPU (docs/log.md)."""

ON_A_GPU: dict[DemoBranch, Cost] = {
    "discrete": Cost(rate=math.inf, tokenizer=0.019, decoder=0.04, autoencoder=0, rest=140),
    "flow": Cost(rate=math.inf, tokenizer=0.019, decoder=0.135, autoencoder=0.035, rest=180),
}
"""On an H100 beside 16 cores; the flow's `rest` is a guess. So small a model waits for launches, not for products."""


def recipe_for(branch: DemoBranch, machine: Machine) -> Recipe:
    """The recipe for a machine: float32 on a CPU takes the lean one where there is one, within LEAN_MINUTES."""
    if branch != "discrete" or not machine.is_slow:
        return FULL[branch]
    cost, slower = _cost(LEAN, machine)
    before = cost.rest + _training(replace(LEAN, decoder_steps=0), cost)
    fitting = int((60 * LEAN_MINUTES / slower - before) / cost.decoder)
    return replace(LEAN, decoder_steps=min(LEAN.decoder_steps, max(fitting, LEAN_FEWEST)))


def estimate(recipe: Recipe, machine: Machine) -> float:
    """Seconds that a recipe takes on a machine, by its rate."""
    cost, slower = _cost(recipe, machine)
    return cost.rest * slower + _training(recipe, cost) * slower


def fitted_to(recipe: Recipe, machine: Machine, minutes: float) -> Recipe:
    """The recipe with as many steps as fit into `minutes`; as it is where all fit.

    Raises ValueError for a time in which next to nothing would be learnt.
    """
    cost, slower = _cost(recipe, machine)
    share = (60 * minutes / slower - cost.rest) / _training(recipe, cost)
    if share < FEWEST:
        shortest = (FEWEST * _training(recipe, cost) + cost.rest) * slower / 60
        raise ValueError(f"the demo takes at least {shortest:.0f} minutes on this machine, got {minutes:g}")
    return recipe if share >= 1 else recipe.shortened(share)


def decoder_steps_left(recipe: Recipe, machine: Machine, seconds: float, pace: float) -> int:
    """Steps of the decoder for which `seconds` are left, with what comes after it.

    `pace`: seconds that a step of the image tokenizer took, over those that were estimated. At most the recipe's own.
    """
    cost, slower = _cost(recipe, machine)
    after = AFTER_DECODER * cost.rest * slower * pace
    steps = int((seconds - after) / (cost.decoder * slower * pace))
    return max(min(recipe.decoder_steps, steps), round(FEWEST * FULL[recipe.branch].decoder_steps))


def tokenizer_pace(recipe: Recipe, machine: Machine, seconds: float) -> float:
    """How much longer the image tokenizer's training took than was estimated; its start counts as 15 seconds."""
    cost, slower = _cost(recipe, machine)
    return max(seconds - START, 1.0) / (cost.tokenizer * _depth(recipe) * recipe.tokenizer_steps * slower)


START = 15
"""Seconds from the start of a training to its first step, without compiling."""
AFTER_DECODER = 0.6
"""The share of `Cost.rest` that comes with and after the decoder's training: compiling, evaluation, the page."""


def _cost(recipe: Recipe, machine: Machine) -> tuple[Cost, float]:
    if machine.device == "cuda":
        return ON_A_GPU[recipe.branch], 1.0
    cost = COSTS[recipe.branch, machine.is_slow]
    return cost, cost.rate / machine.rate


def _depth(recipe: Recipe) -> float:
    """Of the image tokenizer's step, most is in its blocks."""
    return (1 + 3 * recipe.tokenizer_depth) / 10


def _training(recipe: Recipe, cost: Cost) -> float:
    tokenizer = cost.tokenizer * _depth(recipe) * recipe.tokenizer_steps
    return tokenizer + cost.decoder * recipe.decoder_steps + cost.autoencoder * recipe.autoencoder_steps
