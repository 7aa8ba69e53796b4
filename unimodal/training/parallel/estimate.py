"""What a training step needs of memory, found by taking it with tensors that have shapes and no numbers.

The step runs on fake tensors under a fake process group of any size, and PyTorch's trackers of memory see what is alive
when: parameters as they are gathered, gradients, optimizer states, activations, logits. Nothing is allocated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker
from torch.testing._internal.distributed.fake_pg import FakeStore

from data_pipelines.batch import PackedBatch
from unimodal.model.block_masks import training_mask
from unimodal.model.config import ModelConfig
from unimodal.model.feedforward.experts import in_even_batches
from unimodal.model.model import UnifiedModel
from unimodal.training.gradients import clip, gradients_of, to_means
from unimodal.training.objectives.balance import expert_parts
from unimodal.training.objectives.base import Terms, total
from unimodal.training.objectives.usual import usual_objectives
from unimodal.training.optimizers.build import OptimizerConfig, build_optimizer
from unimodal.training.parallel.activations import checkpoint_activations
from unimodal.training.parallel.sharding import Checkpointing, ParallelConfig, rank_mesh, shard

RankLayout = Literal["ddp", "sharded"]


@dataclass(frozen=True, kw_only=True)
class PlannedSetting:
    """How a run is laid out: ranks, what they share, and the batch of each."""

    ranks: int = 1
    layout: RankLayout = "sharded"
    replicate: int = 1
    rows: int
    length: int
    activation_checkpointing: Checkpointing = "none"
    dtype: torch.dtype | None = torch.bfloat16
    """Of autocast and of gathered matrices; None is float32 throughout."""

    @property
    def title(self) -> str:
        """In a few words."""
        where = self.layout if self.replicate == 1 else f"{self.replicate} x sharded"
        kept = "" if self.activation_checkpointing == "none" else f", {self.activation_checkpointing} checkpointing"
        return f"{where}{kept}"


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one rank: at the peak of the step, by what they are, and beside it."""

    peak: int
    parts: dict[str, int]
    """At the peak: parameters, gradients, optimizer, activations, temporaries, collectives."""
    host_load: int
    """Of host memory while a bundle is opened: the largest tensor, beside this rank's share."""
    checkpoint: int
    """That a checkpoint of all ranks takes on disk."""


def trace_memory(
    config: ModelConfig, optimizer: OptimizerConfig, setting: PlannedSetting, batch: PackedBatch
) -> Memory:
    """The memory of the second step, when the optimizer has its states. Text and codes alone: media of branches are not
    traced. A GPU's allocator takes some percent more.

    batch: of `setting.rows` rows; its numbers matter for the sizes of what depends on them.
    """
    batch = batch.to("cpu")  # with its facts, which need numbers
    with _process_group(setting.ranks):
        sharded = setting.layout == "sharded"
        parallel = ParallelConfig(replicate=setting.replicate)
        mesh = rank_mesh(parallel, torch.device("cpu")) if sharded else None
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            with torch.device("meta" if sharded else "cpu"):
                model = UnifiedModel(replace(config, flow=None, vision=None))
            checkpoint_activations(model, setting.activation_checkpointing)
            for part in expert_parts(model):
                part.experts.products = in_even_batches
            if mesh is not None:
                shard(model, mesh, torch.device("cpu"), setting.dtype)
            steps: Any = build_optimizer(model, optimizer)
            steps.prepare()
            given = batch.map(mode.from_tensor)
            tracker: Any = FSDPMemTracker(model, steps) if sharded else MemTracker()
            tracker.track_inputs((given.tokens, given.targets)) if sharded else tracker.track_external(model, steps)
            with tracker:
                take_step(model, steps, given, setting)
            parts = _parts(tracker.get_tracker_snapshot("peak"))
        if not sharded and setting.ranks > 1:
            buckets = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
            parts["collectives"] = parts.get("collectives", 0) + buckets  # of DDP, as large as all gradients
        whole = [parameter.numel() * parameter.element_size() for parameter in model.parameters()]
        states = sum(s.numel() * s.element_size() for state in steps.state.values() for s in state.values())
        share = setting.ranks // setting.replicate if sharded else 1
    return Memory(
        peak=sum(parts.values()),
        parts=parts,
        host_load=max(whole) + sum(whole) // share,
        checkpoint=sum(whole) + states,
    )


FEW, MORE = 4, 6
"""Layers that are traced of a deep model: what is alive grows by the same for each layer more."""


def estimate_memory(
    config: ModelConfig, optimizer: OptimizerConfig, setting: PlannedSetting, batch: PackedBatch
) -> Memory:
    """As `trace_memory`, faster for deep models: two shallow ones are traced, and a line is drawn through them."""
    layers = config.trunk.num_layers
    if layers <= MORE or setting.activation_checkpointing == "block":  # whose peak may lie elsewhere in a deep model
        return trace_memory(config, optimizer, setting, batch)
    few, more = (
        trace_memory(replace(config, trunk=replace(config.trunk, num_layers=count)), optimizer, setting, batch)
        for count in (FEW, MORE)
    )

    def at_depth(small: int, large: int) -> int:
        return max(small + (large - small) * (layers - FEW) // (MORE - FEW), 0)

    names = dict.fromkeys((*few.parts, *more.parts))
    parts = {name: at_depth(few.parts.get(name, 0), more.parts.get(name, 0)) for name in names}
    return Memory(
        peak=sum(parts.values()),
        parts=parts,
        host_load=at_depth(few.host_load, more.host_load),
        checkpoint=at_depth(few.checkpoint, more.checkpoint),
    )


def take_step(
    model: UnifiedModel, optimizer: torch.optim.Optimizer, batch: PackedBatch, setting: PlannedSetting
) -> None:
    """An optimizer step as TransformerModule takes it, with the usual objectives of text and codes."""
    with torch.autocast("cpu", setting.dtype or torch.bfloat16, enabled=setting.dtype is not None):
        loss = _Loss(model)(batch)
    loss.backward()
    norm = to_means(gradients_of(optimizer), batch.facts.counted.weights.sum())
    clip(gradients_of(optimizer), 1.0, norm)
    optimizer.step()
    optimizer.zero_grad()


class _Loss(nn.Module):
    """A root module, under which PyTorch's trackers let a head be called once for each depth of predicted tokens."""

    def __init__(self, model: UnifiedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: PackedBatch) -> Tensor:
        model, terms = self.model, Terms()
        mask = training_mask(batch.documents, batch.branches if batch.facts.has_branches else None)
        features = model(batch.tokens, batch.positions, mask)
        for objective in usual_objectives(
            flow=False, multi_token=model.multi_token_head is not None, experts=bool(model.config.trunk.moe)
        ):
            terms |= objective.terms(model, features, batch, objective.prepare(model, batch, {}, 0).state)
        return total(terms)


NAMES = {
    "param": "parameters",
    "grad": "gradients",
    "opt": "optimizer",
    "act": "activations",
    "temp": "temporaries",
    "all gather": "collectives",
    "reduce scatter": "collectives",
}


def _parts(snapshot: dict[torch.device, dict[Any, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for kinds in snapshot.values():
        for kind, size in kinds.items():
            text = str(getattr(kind, "value", kind)).lower()
            if "total" in text or not size:
                continue
            name = next((name for key, name in NAMES.items() if key in text), "other")
            found[name] = found.get(name, 0) + size
    return found


@contextmanager
def _process_group(ranks: int) -> Iterator[None]:
    """A process group of `ranks` of which the others do not exist. Raises ValueError inside a real one."""
    if dist.is_initialized():
        raise ValueError("a plan is made outside of a distributed run")
    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def packed_text(rows: int, length: int, document: int, vocab_size: int) -> PackedBatch:
    """A batch of documents of `document` tokens, every one of which is learnt."""
    positions = torch.arange(length).expand(rows, length)
    documents = positions // max(document, 1)
    tokens = (positions % vocab_size).contiguous()
    weights = torch.ones(rows, length)
    zeros: Tensor = torch.zeros(rows, length, dtype=torch.long)
    return PackedBatch(
        tokens=tokens,
        targets=tokens,
        loss_weights=weights,
        positions=(positions % max(document, 1)).contiguous(),
        documents=documents.contiguous(),
        modality=zeros + 1,
        branches=zeros,
    )
