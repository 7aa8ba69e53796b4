"""Configs and command lines of earlier versions give the runs that they gave."""

from __future__ import annotations

import copy
import sys
from dataclasses import fields
from fnmatch import fnmatchcase
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.oracles.tiny import tiny_model
from tests.oracles.tiny_training import ROOT
from tokenizers_vq.media import PATCHES, PatchSpec
from unimodal.model.config import FlowConfig, TransformerConfig, VisionConfig
from unimodal.model.mixture import is_understanding
from unimodal.training import old_names
from unimodal.training.branches import FlowBranchConfig, VisionBranchConfig
from unimodal.training.cli import TrainingCLI, main, run
from unimodal.training.module import TransformerModule
from unimodal.training.objectives.base import Objective
from unimodal.training.objectives.flow_matching import FlowMatching
from unimodal.training.objectives.next_token import NextToken
from unimodal.training.old_names import upgrade_arguments, upgrade_module, upgrade_run_config
from unimodal.training.start import StartConfig

NEXT_TOKEN = {"class_path": old_names.NEXT_TOKEN, "init_args": {"z_weight": 0.1}}
TRUNK: dict[str, Any] = {
    "dim": 192,
    "num_layers": 6,
    "num_heads": 3,
    "num_kv_heads": 1,
    "hidden_dim": 512,
    "max_length": 512,
}
MUON = {
    "class_path": "unimodal.training.optim.MuonConfig",
    "init_args": {"learning_rate": 0.012, "weight_decay": 0.1},
}
CODEBOOK = {"codebook_init": {"embedding": True, "head": True}}
FLOW = {"flow": {"weight": 1.0, "shift": 4.0, "place_period": 10.0, "axial_turn": 2.0}}
VISION = {"vision": {"width": 128, "num_layers": 3, "num_heads": 2, "hidden_dim": 384, "place_period": 10.0}}
OLD_RUNS: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "demo": (
        50,
        CODEBOOK | {"num_layers": 4},
        {"image_first": 0.4, "drawn_image_weight": 0.4, "max_branches": 12},
    ),
    "easy_vqa": (100, CODEBOOK, {"image_first": 0.4, "drawn_image_weight": 0.5}),
    "easy_vqa_edits": (100, CODEBOOK, {"image_first": 0.4, "shown_image_weight": 0.1, "drawn_image_weight": 0.5}),
    "easy_vqa_flow": (
        100,
        CODEBOOK | FLOW,
        {"image_first": 0.15, "max_branches": 12, "shown_image_weight": 0.3, "latents": {"whole": 0.03}},
    ),
    "easy_vqa_vit": (100, FLOW | VISION, {"image_first": 0.15, "latents": {"whole": 0.03, "vit_patch": 8}}),
}
"""configs/run of the last version with flat arguments: warm-up steps, what differs of the model, templates."""
PARTS: dict[str, type] = {
    "trunk": TransformerConfig,
    "flow": FlowBranchConfig,
    "vision": VisionBranchConfig,
    "start": StartConfig,
}
TODAY = {name: yaml.safe_load((ROOT / "configs" / "run" / f"{name}.yaml").read_text()) for name in OLD_RUNS}


def old_run(name: str) -> dict[str, Any]:
    """The same YAML in the words of the earlier version."""
    warmup, model, templates = OLD_RUNS[name]
    schedule = {"warmup_steps": warmup, "decay": "linear"}
    whole = copy.deepcopy(TODAY[name])
    whole["model"]["init_args"] = copy.deepcopy({**TRUNK, "optimizer": MUON, "schedule": schedule, **model})
    whole["data"]["init_args"]["templates"] = copy.deepcopy(templates)
    return whole


def built(objective: dict[str, Any]) -> Objective:
    """An entry of `objectives`, its class named with or without its path."""
    kinds = {"NextToken": NextToken, "FlowMatching": FlowMatching}
    return kinds[objective["class_path"].rpartition(".")[2]](**objective.get("init_args", {}))


@pytest.mark.parametrize("name", list(OLD_RUNS))
def test_a_run_config_of_the_earlier_version_becomes_that_of_today(name: str) -> None:
    old = old_run(name)
    before = copy.deepcopy(old)
    upgraded, today = upgrade_run_config(old), copy.deepcopy(TODAY[name])
    assert old == before and upgraded != old
    ours, theirs = (each["model"]["init_args"] for each in (upgraded, today))
    found, expected = ([built(each) for each in part.pop("objectives", [])] for part in (ours, theirs))
    assert found == expected
    if name == "easy_vqa_vit":
        assert upgraded["data"]["init_args"]["templates"].pop("patch_size") == 8
    assert upgraded == today
    assert upgrade_run_config({"fit": old_run(name)}) == {"fit": upgrade_run_config(old_run(name))}


@pytest.mark.parametrize("name", list(OLD_RUNS))
def test_upgrading_twice_is_upgrading_once_and_todays_configs_stay(name: str) -> None:
    once = upgrade_run_config(old_run(name))
    assert upgrade_run_config(once) == once
    assert upgrade_run_config(TODAY[name]) == TODAY[name]


def test_what_is_no_config_of_this_module_stays() -> None:
    for other in (
        None,
        "text",
        [1],
        {},
        {"model": None},
        {"model": {"class_path": "Answerer", "init_args": {"dim": 3}}},
    ):
        assert upgrade_run_config(other) == other


@pytest.mark.parametrize(("old", "new"), old_names.MOVED.items())
def test_every_moved_argument_has_a_place_today_and_its_old_name_is_free(old: str, new: str) -> None:
    arguments = signature(TransformerModule.__init__).parameters
    part, _, name = new.partition(".")
    assert part in arguments and name in {field.name for field in fields(PARTS[part])}
    owner, _, leaf = old.rpartition(".")
    assert leaf not in ({field.name for field in fields(PARTS[owner])} if owner else arguments)
    value = {owner: {leaf: 3}} if owner else {leaf: 3}
    assert upgrade_module(value) == ({owner: {}} if owner and owner != part else {}) | {part: {name: 3}}
    for prefix in ("--model.", "--model.init_args."):
        assert upgrade_arguments([f"{prefix}{old}=3", f"{prefix}{old}", "3"]) == [
            f"--model.{new}=3",
            f"--model.{new}",
            "3",
        ]


@pytest.mark.parametrize(("old", "new"), old_names.OBJECTIVE_FIELDS.items())
def test_every_argument_that_objectives_have_now_reaches_them(old: str, new: tuple[str, str]) -> None:
    kind, name = new
    module, _, class_name = kind.rpartition(".")
    objective = getattr(import_module(module), class_name)
    owner, _, leaf = old.rpartition(".")
    assert name in {field.name for field in fields(objective)}
    found = [built(each) for each in upgrade_module({owner: {leaf: 3}} if owner else {leaf: 3})["objectives"]]
    assert objective(**{name: 3}) in found and [type(each) for each in found] == [NextToken, FlowMatching][: len(found)]
    assert len(found) == (2 if owner == "flow" else 1)
    for prefix in ("--model.", "--model.init_args."):
        with pytest.raises(ValueError, match=rf"{old} is now {name} of {class_name} in --model.objectives"):
            upgrade_arguments(["fit", f"{prefix}{old}=3"])


@pytest.mark.parametrize(("old", "patterns"), old_names.FREEZE_FIELDS.items())
def test_what_was_frozen_by_a_switch_is_frozen_by_patterns(old: str, patterns: tuple[str, ...]) -> None:
    owner, _, leaf = old.partition(".")
    assert upgrade_module({owner: {leaf: True}}) == {owner: {}, "start": {"freeze": [*patterns]}}
    assert upgrade_module({owner: {leaf: False}}) == {owner: {}}
    with pytest.raises(ValueError, match=r"is now --model.start.freeze=\["):
        upgrade_arguments([f"--model.{old}=true"])


def test_the_patterns_freeze_what_the_switches_froze() -> None:
    flow = FlowConfig(latent_dim=3, grid_size=2, time_channels=8)
    patches = PatchSpec(size=4, max_patches=16, max_side=8)
    vision = VisionConfig(patches=patches, grid_size=4, dim=8, num_layers=1, num_heads=2, hidden_dim=12)
    names = [name for name, _ in tiny_model(flow=flow, vision=vision, mixture=True).named_parameters()]

    def frozen(patterns: tuple[str, ...]) -> set[str]:
        return {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}

    of_images = {name for name in names if name.startswith(f"branches.{PATCHES}.")}
    assert frozen(old_names.UNDERSTANDING) == {name for name in names if is_understanding(name)} - of_images
    assert frozen((old_names.ENCODER,)) == {name for name in of_images if ".connector." not in name}


def test_every_old_path_of_a_class_leads_to_one_of_today() -> None:
    for old, new in old_names.CLASSES.items():
        module, _, name = new.rpartition(".")
        assert getattr(import_module(module), name).__name__ == old.rpartition(".")[2]
        nested = {"class_path": old, "init_args": {"adamw": {"class_path": old}}}
        today = {"class_path": new, "init_args": {"adamw": {"class_path": new}}}
        assert upgrade_module({"optimizer": nested}) == {"optimizer": today}
        assert upgrade_arguments([f"--model.optimizer={old}"]) == [f"--model.optimizer={new}"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            {"flow": None, "vision": None, "codebook_init": None},
            {"flow": None, "vision": None, "start": {"codebook": None}},
        ),
        (
            {"codebook_init": {"head": True}, "flow": {"begin_with": "b", "freeze_understanding": True}},
            {"flow": {}, "start": {"bundle": "b", "freeze": [*old_names.UNDERSTANDING]}},
        ),
        (
            {"codebook_init": {"head": True}, "flow": {"begin_with": None}},
            {"flow": {}, "start": {"bundle": None, "codebook": {"head": True}}},
        ),
        (
            {"vision": {"begin_with": "s", "frozen": True, "width": 8}},
            {"vision": {"dim": 8}, "start": {"vision": "s", "freeze": [old_names.ENCODER]}},
        ),
        ({"dim": 8, "trunk": {"num_layers": 2}}, {"trunk": {"dim": 8, "num_layers": 2}}),
        ({"codebook_init": {}, "start": {"freeze": ["x"]}}, {"start": {"codebook": {}, "freeze": ["x"]}}),
    ],
)
def test_arguments_that_meet_are_upgraded_together(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert upgrade_module(old) == new
    assert upgrade_module(new) == new


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The real command line on a whole config, as far as to the first step."""
    monkeypatch.setattr(TrainingCLI, "_run_subcommand", lambda self, subcommand: None)
    monkeypatch.setattr(sys, "argv", ["train.py"])

    def parsed(config: dict[str, Any], *options: str) -> TrainingCLI:
        (tmp_path / "old.yaml").write_text(yaml.safe_dump(config))
        common = ["--trainer.accelerator=cpu", f"--trainer.default_root_dir={tmp_path}"]
        return run(["fit", f"--config={tmp_path / 'old.yaml'}", *common, *options])

    return parsed


SAVED = {
    **TRUNK,
    "dropout": 0.1,
    "norm_placement": "pre",
    "z_weight": 1e-4,
    "optimizer": None,
    "schedule": {"warmup_steps": 3, "decay": "linear", "decay_from": 0.0, "floor": 0.02},
    "codebook_init": None,
    "flow": None,
    "vision": None,
    "compile": False,
}
"""Arguments as a run of the earlier version saved them in its config.yaml, all of them."""


@pytest.mark.slow
def test_a_saved_config_of_a_discrete_run_trains_the_same_model(cli: Any) -> None:
    whole = old_run("demo")
    whole["model"] = {"class_path": "unimodal.training.module.TransformerModule", "init_args": SAVED}
    module = cli(whole, "--model.dim=384").model
    assert module.trunk == TransformerConfig(**{**TRUNK, "dim": 384}, dropout=0.1)
    assert list(module.objectives) == [NextToken(z_weight=1e-4)]
    assert (module.flow, module.vision, module.start, module.compile_model) == (None, None, StartConfig(), False)


@pytest.mark.slow
def test_a_saved_config_of_a_run_with_flow_and_vit_trains_the_same_model(cli: Any) -> None:
    flow = {"weight": 0.5, "shift": 2.0, "mixture": False, "time_channels": 64, "place_period": 10.0, "axial_turn": 1.5}
    flow |= {"begin_with": None, "freeze_understanding": False, "seed": 3}
    vision = {"width": 16, "num_layers": 1, "num_heads": 2, "hidden_dim": 24, "place_period": 10.0}
    vision |= {"begin_with": None, "frozen": False}
    whole = old_run("easy_vqa_vit")
    whole["model"] = {"class_path": "TransformerModule", "init_args": {**SAVED, "flow": flow, "vision": vision}}
    command = cli(whole, "--model.flow.place_period=20")
    module, templates = command.model, command.datamodule.templates
    assert module.flow == FlowBranchConfig(mixture=False, time_channels=64, pos_embed_period=20.0, axial_rope_max=1.5)
    assert module.vision == VisionBranchConfig(dim=16, num_layers=1, num_heads=2, hidden_dim=24, pos_embed_period=10.0)
    assert list(module.objectives) == [NextToken(z_weight=1e-4), FlowMatching(weight=0.5, shift=2.0, seed=3)]
    assert (module.start, templates.seen, templates.drawn) == (StartConfig(), "patches", "latents")


def test_an_option_that_cannot_be_set_alone_any_more_is_named_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--model=TransformerModule", "--model.z_weight=0.1"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "train.py: --model.z_weight is now z_weight of NextToken in --model.objectives\n"
