"""Optimizer groups of a model with everything in it: a flow branch, a ViT and two sides of every layer."""

from __future__ import annotations

import pytest

from tests.oracles.tiny import tiny_flow_pipeline
from unimodal.training.optimizers.build import AdamWConfig, MuonConfig, OptimizerConfig, build_optimizer


@pytest.mark.parametrize("config", [MuonConfig(), AdamWConfig()], ids=["muon", "adamw"])
def test_every_parameter_of_every_branch_is_in_one_group_that_suits_it(config: OptimizerConfig) -> None:
    """Muon takes the matrices inside layers alone; what leads in and out of the trunk is AdamW's, as vectors are."""
    model = tiny_flow_pipeline(vit=True).model
    groups = build_optimizer(model, config).param_groups
    kinds = set()
    for name, parameter in model.named_parameters():
        [group] = [group for group in groups if any(parameter is other for other in group["params"])]
        matrix = parameter.ndim > 1 and "norm" not in name
        assert (group["weight_decay"] > 0) == matrix, name
        in_a_layer = "blocks." in name
        assert group["muon"] == (matrix and in_a_layer and isinstance(config, MuonConfig)), name
        kinds.add((name.split(".")[0], matrix, in_a_layer))
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert len(kinds) > 6
