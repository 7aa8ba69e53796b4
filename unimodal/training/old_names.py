"""Configs, command lines and checkpoints of earlier versions, in today's words.

Earlier versions kept the architecture, the flow and the start of a run in flat arguments of TransformerModule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from data_pipelines.old_names import upgrade_data_config
from tokenizers_vq.media import LATENTS, PATCHES
from unimodal.model.model import UnifiedModel
from unimodal.model.old_names import state_name
from unimodal.training.optimizers.roles import parameters_by_role

TRUNK_FIELDS = (
    "dim",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "hidden_dim",
    "max_length",
    "dropout",
    "norm_placement",
)
UNDERSTANDING = ("*.understanding.*", "trunk.embedding.*", "heads.tokens.*")
"""What `flow.freeze_understanding` froze."""
ENCODER = "branches.patches.encoder.*"
"""What `vision.frozen` froze."""
NEXT_TOKEN = "unimodal.training.objectives.next_token.NextToken"
FLOW_MATCHING = "unimodal.training.objectives.flow_matching.FlowMatching"

MOVED: dict[str, str] = {
    **{name: f"trunk.{name}" for name in TRUNK_FIELDS},
    "codebook_init": "start.codebook",
    "flow.place_period": "flow.pos_embed_period",
    "flow.axial_turn": "flow.axial_rope_max",
    "flow.begin_with": "start.bundle",
    "vision.width": "vision.dim",
    "vision.place_period": "vision.pos_embed_period",
    "vision.begin_with": "start.vision",
}
"""Old argument of TransformerModule, dots between levels -> today's."""
OBJECTIVE_FIELDS = {
    "z_weight": (NEXT_TOKEN, "z_weight"),
    "flow.weight": (FLOW_MATCHING, "weight"),
    "flow.shift": (FLOW_MATCHING, "shift"),
    "flow.seed": (FLOW_MATCHING, "seed"),
}
"""Old argument -> the objective that has it now."""
FREEZE_FIELDS = {"flow.freeze_understanding": UNDERSTANDING, "vision.frozen": (ENCODER,)}
CLASSES = {
    "unimodal.training.optim.MuonConfig": "unimodal.training.optimizers.build.MuonConfig",
    "unimodal.training.optim.AdamWConfig": "unimodal.training.optimizers.build.AdamWConfig",
}
"""Old path of a class that configs name -> today's."""
MODULES = ("TransformerModule", "unimodal.training.module.TransformerModule")
COMMANDS = ("fit", "validate", "test", "predict")


def upgrade_run_config(values: Any) -> Any:
    """A whole config of `train.py`, under a command's name or not; anything else is given back as it is."""
    if not isinstance(values, Mapping):
        return values
    upgraded = {name: upgrade_run_config(value) if name in COMMANDS else value for name, value in values.items()}
    model = upgraded.get("model")
    if isinstance(model, Mapping) and model.get("class_path") in MODULES:
        upgraded["model"] = {**model, "init_args": upgrade_module(model.get("init_args") or {})}
    return upgrade_data_config(upgraded)


def upgrade_module(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of TransformerModule in the old form, or in today's, -> in today's."""
    upgraded: dict[str, Any] = {}
    objectives: dict[str, dict[str, Any]] = {}
    for path, value in _leaves(arguments):
        if path in OBJECTIVE_FIELDS:
            kind, name = OBJECTIVE_FIELDS[path]
            objectives.setdefault(kind, {})[name] = value
        elif path in FREEZE_FIELDS:
            if value:
                _put(upgraded, "start.freeze", [*upgraded.get("start", {}).get("freeze", []), *FREEZE_FIELDS[path]])
        else:
            _put(upgraded, MOVED.get(path, path), value)
    if objectives and "objectives" not in upgraded:
        objectives.setdefault(NEXT_TOKEN, {})
        if upgraded.get("flow") is not None:
            objectives.setdefault(FLOW_MATCHING, {})
        kinds = [kind for kind in (NEXT_TOKEN, FLOW_MATCHING) if kind in objectives]
        upgraded["objectives"] = [{"class_path": kind, "init_args": objectives[kind]} for kind in kinds]
    if (start := upgraded.get("start") or {}).get("bundle") and start.get("codebook"):
        del start["codebook"]  # the bundle was loaded last
    if "optimizer" in upgraded:
        upgraded["optimizer"] = _upgrade_classes(upgraded["optimizer"])
    return upgraded


def _upgrade_classes(value: Any) -> Any:
    """The same with today's paths of classes, at any depth."""
    if isinstance(value, Mapping):
        return {name: _upgrade_classes(inner) for name, inner in value.items()}
    return CLASSES.get(value, value) if isinstance(value, str) else value


def _leaves(arguments: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Arguments, those of `flow` and `vision` one by one."""
    found: list[tuple[str, Any]] = []
    for name, value in arguments.items():
        if name in ("flow", "vision") and isinstance(value, Mapping):
            found.append((name, {}))
            found += [(f"{name}.{inner}", each) for inner, each in value.items()]
        else:
            found.append((name, value))
    return found


def _put(target: dict[str, Any], path: str, value: Any) -> None:
    """Set a value below the dicts that its path names."""
    *parents, name = path.split(".")
    for parent in parents:
        if not isinstance(target.get(parent), dict):
            target[parent] = {}
        target = target[parent]
    known = target.get(name)
    target[name] = {**known, **value} if isinstance(known, dict) and isinstance(value, Mapping) else value


def upgrade_arguments(arguments: Sequence[str]) -> list[str]:
    """A command line of `train.py` whose `--model.…` options have old names -> today's.

    Raises ValueError for an option that is now an entry of a list, which cannot be set alone.
    """
    return [_upgrade_option(argument) for argument in arguments]


def _upgrade_option(argument: str) -> str:
    for prefix in ("--model.init_args.", "--model."):
        if argument.startswith(prefix):
            path, equals, value = argument.removeprefix(prefix).partition("=")
            if path in OBJECTIVE_FIELDS:
                kind, name = OBJECTIVE_FIELDS[path]
                raise ValueError(f"{prefix}{path} is now {name} of {kind.rpartition('.')[2]} in --model.objectives")
            if path in FREEZE_FIELDS:
                raise ValueError(f"{prefix}{path} is now --model.start.freeze=[{','.join(FREEZE_FIELDS[path])}]")
            return f"--model.{MOVED.get(path, path)}{equals}{CLASSES.get(value, value)}"
    return argument


def upgrade_checkpoint(checkpoint: dict[str, Any], model: UnifiedModel) -> None:
    """Bring a checkpoint of an earlier version into today's names, in place; today's stays as it is."""
    old = "transformer."
    names = [name.removeprefix(old) for name in checkpoint["state_dict"] if name.startswith(old)]
    if not names:
        return
    shapes = {name: checkpoint["state_dict"][old + name].ndim for name in names}
    for weights in ("state_dict", "current_model_state"):  # the second is of a run with averaged weights
        if weights in checkpoint:
            values = checkpoint[weights].items()
            checkpoint[weights] = {f"model.{state_name(name.removeprefix(old))}": value for name, value in values}
    known = {state_name(name): number for number, name in enumerate(_old_order(names, shapes))}
    checkpoint["optimizer_states"] = [
        _reordered(state, known, model) for state in checkpoint.get("optimizer_states", [])
    ]
    autoencoder = checkpoint.pop("autoencoder", None)
    checkpoint["media"] = {LATENTS: autoencoder["hash"]} if autoencoder else {}
    if any(name.startswith("vision.") for name in names):
        checkpoint["media"][PATCHES] = ""


def _old_order(names: Sequence[str], dimensions: Mapping[str, int]) -> list[str]:
    """Parameters in the order in which an earlier version numbered them for its optimizer."""
    matrices, tables, vectors = [], [], []
    for name in names:
        if "norm" in name or dimensions[name] < 2:
            vectors.append(name)
        elif "embedding" in name or name.startswith(("head", "flow.", "vision.connector")):
            tables.append(name)
        else:
            matrices.append(name)
    return [*matrices, *tables, *vectors]


def _reordered(state: dict[str, Any], known: Mapping[str, int], model: nn.Module) -> dict[str, Any]:
    """An optimizer's state, numbered as today's groups are."""
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    roles = parameters_by_role(model)
    muon = any(group.get("muon") for group in state["param_groups"])
    decayed = [roles["matrix"], roles["table"]] if muon else [[*roles["matrix"], *roles["table"]]]
    groups, values, number = [], {}, 0
    for group, parameters in zip(state["param_groups"], [*decayed, roles["vector"]], strict=True):
        groups.append({**group, "params": list(range(number, number + len(parameters)))})
        for parameter in parameters:
            before = known[name_of[id(parameter)]]
            if before in state["state"]:
                values[number] = state["state"][before]
            number += 1
    return {"state": values, "param_groups": groups}
