"""Compiled training: one block for all layers, one graph whatever the number of latents, and the same features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.oracles.passes import media_at, on_table
from tests.oracles.tiny import tiny_model
from unimodal.model.branches.base import MediaTokens
from unimodal.model.cache import KVCache
from unimodal.model.config import FlowConfig
from unimodal.model.inference.compiling import compile_blocks, sizes_vary, tag_cache
from unimodal.model.model import LATENTS


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.fx.GraphModule]]:
    """The graphs that are made, traced whole and run as they are: a compiler would take minutes here."""
    made: list[torch.fx.GraphModule] = []
    compiled = nn.Module.compile

    def noted(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        del inputs
        made.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled(module, backend=noted, fullgraph=True))
    monkeypatch.setattr("unimodal.model.inference.compiling.can_build_for_cpu", lambda: True)
    with torch._dynamo.config.patch(allow_unspec_int_on_nn_module=True):
        yield made


def media_of(count: int, rows: int, length: int) -> MediaTokens:
    standing = torch.zeros(rows, length, dtype=torch.bool)
    standing.view(-1)[1 : 1 + count] = True
    latents, times = torch.randn(count, 3, dtype=torch.float64), torch.rand(count, dtype=torch.float64)
    return media_at(standing, latents, on_table(torch.arange(count) % 4, 2), times)


@pytest.mark.slow
def test_one_block_is_compiled_for_all_layers(graphs: list[torch.fx.GraphModule]) -> None:
    model, compiled = tiny_model(num_layers=12), tiny_model(num_layers=12)
    compile_blocks(compiled)
    tokens = torch.randint(24, (3, 10))
    torch.testing.assert_close(compiled(tokens), model(tokens))
    (graph,) = graphs
    products = [node for node in graph.graph.nodes if node.target is torch.nn.functional.linear]
    assert len(products) == 7, "queries, keys, values, output, gate, up, down"


@pytest.mark.slow
def test_a_graph_serves_batches_of_any_number_of_latents(graphs: list[torch.fx.GraphModule]) -> None:
    flow = FlowConfig(latent_dim=3, grid_size=2, time_channels=8, axial_rope_max=1.5)
    model, compiled = (tiny_model(num_layers=3, mixture=True, flow=flow) for _ in range(2))
    compile_blocks(compiled)
    tokens = torch.randint(24, (3, 10))
    for count in (8, 5, 12):
        media = media_of(count, *tokens.shape)
        sizes_vary(tensor for tensor in media if isinstance(tensor, Tensor))
        torch.testing.assert_close(compiled(tokens, media={LATENTS: media}), model(tokens, media={LATENTS: media}))
    assert len(graphs) == 1


def test_what_decodes_while_it_trains_makes_no_graph(graphs: list[torch.fx.GraphModule]) -> None:
    """Samples are drawn between training steps: a graph for each layer and length would use up what dynamo allows."""
    model, compiled = tiny_model(num_layers=4), tiny_model(num_layers=4)
    compile_blocks(compiled)
    tokens = torch.randint(24, (2, 10))
    compiled(tokens).sum().backward()
    caches = [KVCache(each.config.trunk, 2, 16, each.dtype) for each in (model, compiled)]
    with torch.inference_mode():
        for length in (6, 1, 1):
            start = caches[0].used
            positions = torch.arange(start, start + length).expand(2, -1)
            found = []
            for each, cache in zip((model, compiled), caches, strict=True):
                cache.reserve(start + length)
                found.append(each(tokens[:, start : start + length], positions, cache=cache))
            torch.testing.assert_close(*found, rtol=0, atol=0)
    compiled(tokens).sum().backward()
    assert len(graphs) == 1


@pytest.mark.parametrize("start", ["", "mine "])
def test_vector_units_have_compiled_code_of_their_own(start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    with torch.compiler.config.patch(cache_key_tag=start):  # pyright: ignore[reportAttributeAccessIssue]
        tag_cache()
        tag_cache()
        assert torch.compiler.config.cache_key_tag == f"{start}cpu AVX2"
