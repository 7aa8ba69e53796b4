"""Which architectures of transformers are known: by the model type of a folder, and by a config of ours."""

from __future__ import annotations

from pathlib import Path

from unimodal.interop.architectures.base import Architecture, TheirConfig
from unimodal.interop.architectures.chameleon import Chameleon
from unimodal.interop.architectures.experts import Dots1, Mixtral, Qwen3Moe
from unimodal.interop.architectures.llama import Llama
from unimodal.interop.architectures.qwen2 import Qwen2
from unimodal.interop.architectures.qwen3 import Qwen3
from unimodal.interop.their_config import BAGEL_CONFIG_FILE, completed, read_fields
from unimodal.model.checkpoint import CONFIG_FILE
from unimodal.model.config import ModelConfig

REGISTERED: tuple[Architecture, ...] = (Llama(), Qwen2(), Qwen3(), Chameleon(), Dots1(), Qwen3Moe(), Mixtral())
"""What is listed here is imported, exported and tested."""
ARCHITECTURES = {architecture.model_type: architecture for architecture in REGISTERED}


def architecture_for(config: ModelConfig) -> Architecture:
    """The architecture that computes the same. Raises ValueError with the reason of each where there is none."""
    if config.trunk.mixture or config.flow or config.vision:
        raise ValueError(
            "no class of transformers has a flow branch or a mixture, nor this ViT: `write_bagel` writes BAGEL's layout"
        )
    reasons: list[str] = []
    for architecture in ARCHITECTURES.values():
        reason = architecture.mismatch(config)
        if reason is None:
            return architecture
        reasons.append(f"{architecture.model_type} {reason}")
    raise ValueError(f"no architecture of transformers computes what this model does: {'; '.join(reasons)}")


def read_architecture(folder: Path) -> tuple[Architecture, TheirConfig]:
    """Read config.json of a folder of theirs. Raises ValueError where it is missing, broken or of another type."""
    if (folder / BAGEL_CONFIG_FILE).is_file():
        raise ValueError(f"{folder} is laid out as BAGEL's, of which no bundle is made: open it with `open_bagel`")
    path = folder / CONFIG_FILE
    written = read_fields(path, "give a folder as save_pretrained leaves it")
    kind = written.get("model_type")
    if kind not in ARCHITECTURES:
        *some, last = ARCHITECTURES
        raise ValueError(f"{path}: model type {kind!r} cannot be imported; {', '.join(some)} and {last} can")
    architecture = ARCHITECTURES[kind]
    return architecture, TheirConfig(written, completed(architecture.config_class, written, path))
