"""Memory of the cache: it grows by half and layer by layer, and answers wait for it."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from tests.generation.test_scheduler import requests
from tests.oracles.tiny import tiny_flow_pipeline, tiny_model, tiny_pipeline
from unimodal.generation import scheduler as scheduler_module
from unimodal.model import cache as cache_module
from unimodal.model.cache import KVCache, rows_that_fit


def test_rows_that_come_one_by_one_are_seldom_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    real = cache_module._longer
    monkeypatch.setattr(cache_module, "_longer", lambda part, missing: (made.append(missing), real(part, missing))[1])
    config = tiny_model().config.trunk
    cache = KVCache(config, 0, 8, torch.float32)
    for rows in range(1, 130):
        cache.grow(rows)
        assert cache.rows >= rows and len(cache.layers) == config.num_layers
    assert len(made) <= 14 * 2 * config.num_layers  # 129 times before


def test_a_cache_grows_layer_by_layer_and_keeps_what_it_holds() -> None:
    config = tiny_model().config.trunk
    cache = KVCache(config, 2, 8, torch.float32)
    for layer in cache.layers:
        layer.keys.normal_()
    first, beginning = [layer.keys.clone() for layer in cache.layers], cache.beginning(2)
    assert cache.beginning(2) is beginning
    before = weakref.ref(cache.layers[0].keys.untyped_storage())
    cache.grow(3)
    assert cache.beginning(2) is not beginning
    assert all(torch.equal(layer.keys[:2], old) for layer, old in zip(cache.layers, first, strict=True))
    del beginning
    gc.collect()
    assert before() is None


@pytest.mark.parametrize("fitting", [1, 3, 7])
@pytest.mark.parametrize("latents", [False, True])
def test_answers_wait_for_memory_and_stay_the_same(
    fitting: int, latents: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = tiny_flow_pipeline() if latents else tiny_pipeline()
    asked = requests(pipeline, 12)
    expected = [answer.ids for answer in pipeline.engine.decode(asked)]
    monkeypatch.setattr(scheduler_module, "rows_that_fit", lambda *_: fitting)
    scheduler = pipeline.engine.scheduler(rows=64)
    for request in asked:
        scheduler.submit(request)
    found, largest = {}, 0
    while not scheduler.idle:
        for update in scheduler.step():
            if update.decoded:
                found[update.request] = update.decoded.ids
        largest = max(largest, len(scheduler.batch.rows))
    assert [found[number] for number in range(12)] == expected and largest <= max(fitting, 3)


def test_rows_of_a_gpus_memory_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_model().config.trunk
    assert rows_that_fit(config, 100, torch.bfloat16, torch.device("cpu")) is None
    row = 2 * config.num_layers * config.num_kv_heads * 100 * config.head_dim * 2
    for name, value in (("memory_reserved", 30 * row), ("memory_allocated", 10 * row)):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100 * row, 1000 * row))
    assert rows_that_fit(config, 100, torch.bfloat16, torch.device("cuda")) == int(0.8 * 120 / 1.5)
    twice = rows_that_fit(config, 100, torch.bfloat16, torch.device("cuda"), 2 * config.num_layers)
    assert twice == int(0.8 * 60 / 1.5)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 0))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 10 * row)
    assert rows_that_fit(config, 100, torch.bfloat16, torch.device("cuda")) == 1
