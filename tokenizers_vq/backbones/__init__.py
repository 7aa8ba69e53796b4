"""Encoders and decoders between pixels and the vectors that are quantised."""

from __future__ import annotations

from torch import nn

from tokenizers_vq.backbones.config import BackboneConfig
from tokenizers_vq.backbones.patch import PatchBackboneConfig, PatchDecoder, PatchEncoder
from tokenizers_vq.backbones.vqgan import VQGANBackboneConfig, VQGANDecoder, VQGANEncoder

__all__ = ["BackboneConfig", "PatchBackboneConfig", "VQGANBackboneConfig", "build_backbone"]


def build_backbone(config: BackboneConfig, code_dim: int) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder of a backbone."""
    match config:
        case PatchBackboneConfig():
            return PatchEncoder(config, code_dim), PatchDecoder(config, code_dim)
        case VQGANBackboneConfig():
            return VQGANEncoder(config, code_dim), VQGANDecoder(config, code_dim)
        case _:
            raise ValueError(f"unknown backbone {type(config).__name__}")
