"""A trained network of a judge in a file, with what it was trained on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tokenizers_vq.weights_file import write_weights


def save_network(path: Path, network: nn.Module, kind: str, metadata: Mapping[str, Any]) -> Path:
    """Write tensors and `metadata`, a version among it, whole or not at all: ranks may save the same one at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    write_weights(state, temporary, metadata={kind: json.dumps(dict(metadata))})
    temporary.replace(path)
    return path


def read_network(path: Path, kind: str, version: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata. Raises ValueError for a file that is none of this kind and version."""
    words = kind.replace("_", " ")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get(kind, "{}"))
            names = file.keys()
            state = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: cannot be read as a {words} ({error})") from error
    if metadata.get("version") != version:
        raise ValueError(f"{path}: {words} version {metadata.get('version')}, this code reads {version}")
    return state, metadata
