"""Training steps on CUDA without a GPU: fake tensors, which know their device and type and hold no numbers.

torch makes them for a device that is not there, and stops where devices are mixed. What they do not show, kernels and
numbers, `benchmarks/gpu.py` compares on a GPU.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.nn.attention.flex_attention import BlockMask
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.gpu_parts.shapes import packed_batch
from data_pipelines.batch import PackedBatch
from tests.oracles.fake_cuda import Launches, cuda_model, fake_like
from unimodal.model.block_masks import block_mask, training_mask
from unimodal.model.branches.base import NO_MEDIA
from unimodal.model.config import QKNormConfig
from unimodal.model.feedforward.config import MoEConfig
from unimodal.model.kernels import has_flash
from unimodal.model.masks import DocumentEnds
from unimodal.model.model import UnifiedModel
from unimodal.training.gradients import gradients_of, to_means
from unimodal.training.monitors.activations import activation_sums
from unimodal.training.monitors.observed import Observer
from unimodal.training.monitors.predictions import predict, prediction_sums
from unimodal.training.monitors.weights import Updates, gain_sums
from unimodal.training.objectives.balance import ExpertBalance
from unimodal.training.objectives.base import total
from unimodal.training.objectives.next_token import counted_terms
from unimodal.training.optimizers.build import AdamWConfig, MuonConfig, OptimizerConfig, build_optimizer

pytestmark = pytest.mark.filterwarnings("ignore")


def batch() -> PackedBatch:
    """Made on the CPU, as a loader does, and moved."""
    with unset_fake_temporarily():
        made = packed_batch(2, length=512)
        facts = made.facts
    columns: dict[str, Any] = {
        name: fake_like(value) for name, value in vars(made).items() if isinstance(value, Tensor)
    }
    moved = PackedBatch(**columns)
    moved.__dict__["facts"] = facts._replace(
        counted=type(facts.counted)(*map(fake_like, facts.counted)), ends=fake_like(facts.ends)
    )
    return moved


def step(trained: UnifiedModel, optimizer: torch.optim.Optimizer, given: PackedBatch) -> Tensor:
    """What training/module.py does between two batches."""
    optimizer.zero_grad()
    facts = given.facts
    with torch.autocast("cuda", torch.bfloat16):
        ends = DocumentEnds(facts.ends, facts.max_length)
        mask = training_mask(given.documents, None, None, ends)
        features = trained(given.tokens, given.positions, mask)
        terms = counted_terms(features, trained.token_head, given.targets, facts.counted, given.modality, 1e-5)
    assert total(terms).requires_grad
    for parameter in trained.parameters():  # the backward pass wants a real device
        parameter.grad = torch.empty_like(parameter)
    norm = to_means(gradients_of(optimizer), facts.counted.weights.sum())
    torch.nn.utils.clip_grads_with_norm_(trained.parameters(), 1.0, norm)
    optimizer.step()
    return norm


@pytest.mark.parametrize("config", [AdamWConfig(), MuonConfig()])
@pytest.mark.parametrize("changes", [{}, {"qk_norm": QKNormConfig(kind="rms")}, {"norm_placement": "swin"}])
def test_a_step_waits_for_nothing_and_keeps_all_states_beside_their_parameters(
    config: OptimizerConfig, changes: dict[str, Any]
) -> None:
    trained, given = cuda_model(**changes), batch()
    optimizer = build_optimizer(trained, config)
    step(trained, optimizer, given)
    with Launches() as launches:
        norm = step(trained, optimizer, given)
    assert norm.device.type == "cuda" and not launches.waits
    states = [tensor for state in optimizer.state.values() for tensor in state.values()]
    assert len(states) > len(list(trained.parameters())) and {each.device.type for each in states} == {"cuda"}


@pytest.mark.parametrize("changes", [{}, {"qk_norm": None}, {"num_kv_heads": 2, "norm_placement": "swin"}])
def test_monitors_mix_no_devices(changes: dict[str, Any]) -> None:
    """All of a pass but what waits for numbers: which tokens have a loss, and the sums when they are logged."""
    trained, given, updates = cuda_model(**changes).train(), batch(), Updates()
    for name, parameter in trained.named_parameters():
        parameter.requires_grad_("norm" not in name)  # no vector is trained: its sums are of nothing
    updates.before(trained)
    observer = Observer(model=trained, rows=2, precision=lambda: torch.autocast("cuda", torch.bfloat16))
    observed = observer.observe(given, NO_MEDIA)
    index = given.facts.counted.index
    with torch.no_grad(), observer.precision():
        features, targets = observed.features.flatten(0, 1)[index], given.targets.flatten()[index]
        predicted = predict(trained.token_head, features, targets, 32_768)
    sums = activation_sums(observed).add(gain_sums(trained)).add(prediction_sums(observed, predicted, index))
    sums = sums.add(updates.after(trained))
    numbers = [each for pair in sums.means.values() for each in pair]
    largest = list(sums.largest.values())
    assert observed.attention.dtype == torch.float32 and predicted.log_z.dtype == torch.float32 and trained.training
    assert {each.device.type for each in (*numbers, *largest)} == {"cuda"} and "update_vectors" in sums.means


def test_the_step_counts_of_a_checkpoint_are_moved_to_their_parameters() -> None:
    trained, given = cuda_model(), batch()
    optimizer = build_optimizer(trained, AdamWConfig())
    step(trained, optimizer, given)
    for state in optimizer.state.values():
        state["step"] = torch.ones((), device="cpu")  # where Lightning leaves it
    step(trained, optimizer, given)
    assert {state["step"].device.type for state in optimizer.state.values()} == {"cuda"}


def test_attention_computes_in_half_precision_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []

    def attend(queries: Tensor, keys: Tensor, values: Tensor, bias: Any) -> Tensor:
        del bias
        seen.extend(each.dtype for each in (queries, keys, values))
        return queries

    monkeypatch.setattr("unimodal.model.attention.attend", attend)
    for kind in ("layer", "rms"):
        trained, given = cuda_model(qk_norm=QKNormConfig(kind=kind)), batch()
        with torch.autocast("cuda", torch.bfloat16):
            trained(given.tokens, given.positions)
    assert len(seen) == 12 and set(seen) == {torch.bfloat16}


@pytest.mark.parametrize("length", [512, 4096, 32_768])
def test_a_mask_is_made_of_few_kernels_that_never_meet_all_pairs(length: int) -> None:
    documents, branches, spans = (torch.zeros(4, length, dtype=torch.int64, device="cuda") for _ in range(3))
    for fields in ((documents,), (documents, branches), (documents, branches, spans)):
        with Launches() as launches:
            block_mask(*fields)
        assert sum(launches.kernels.values()) <= 40 and not launches.waits, launches.kernels
    sizes: list[int] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            sizes.extend(each.numel() for each in tree_leaves(out) if isinstance(each, Tensor))
            return out

    with Sizes():
        block_mask(documents, branches, spans)
    assert max(sizes) <= 16 * max(length, (length // 128) ** 2)


@pytest.mark.parametrize(
    ("capability", "dtype", "head_dim", "expected"),
    [
        ((9, 0), torch.bfloat16, 128, True),
        ((8, 0), torch.float16, 64, True),
        ((7, 5), torch.float16, 64, False),
        ((9, 0), torch.float32, 64, False),
        ((9, 0), torch.bfloat16, 320, False),
        ((9, 0), torch.bfloat16, 12, False),
    ],
)
def test_documents_go_to_flash_attention_where_it_can_take_them(
    capability: tuple[int, int], dtype: torch.dtype, head_dim: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    assert has_flash(torch.device("cuda"), dtype, head_dim) is expected
    given = batch()
    ends = DocumentEnds(given.facts.ends, given.facts.max_length) if expected else None
    assert isinstance(training_mask(given.documents, None, None, ends), DocumentEnds if expected else BlockMask)
    assert isinstance(training_mask(given.documents, given.branches, None, ends), BlockMask)
    assert isinstance(training_mask(given.documents, None, given.documents, ends), BlockMask)


def test_a_step_with_experts_waits_for_nothing() -> None:
    """Counts of tokens stay on the device: the products are grouped ones, and the balance is counted there too."""
    moe = MoEConfig(experts=8, top_k=2, hidden_dim=64, first_dense=0, bias_by="modality", image_ids_from=64)
    trained, given = cuda_model(moe=moe), batch()
    optimizer, balance = build_optimizer(trained, MuonConfig()), ExpertBalance()
    trained.train()
    for _ in range(2):
        with Launches() as launches:
            optimizer.zero_grad()
            facts = given.facts
            with torch.autocast("cuda", torch.bfloat16):
                mask = training_mask(given.documents, None, None, DocumentEnds(facts.ends, facts.max_length))
                features = trained(given.tokens, given.positions, mask)
                state = balance.prepare(trained, given, {}, 0).state
                terms = balance.terms(trained, features, given, state)
            for parameter in trained.parameters():
                parameter.grad = torch.empty_like(parameter)
            to_means(gradients_of(optimizer), facts.counted.weights.sum())
            optimizer.step()
            found = balance.end_step(trained, 1, sound=True)
    assert not launches.waits and {value.device.type for value in found.values()} == {"cuda"}
    assert total(terms).device.type == "cuda"
