"""Encoders and decoders between pixels and vectors, quantised or not."""

from __future__ import annotations

from torch import nn

from tokenizers_vq.backbones.config import BackboneConfig, check_sides
from tokenizers_vq.backbones.patch import PatchBackboneConfig, PatchDecoder, PatchEncoder
from tokenizers_vq.backbones.vqgan import VQGANBackboneConfig, VQGANDecoder, VQGANEncoder

__all__ = ["BackboneConfig", "PatchBackboneConfig", "VQGANBackboneConfig", "build_backbone", "check_sides"]


def build_backbone(
    config: BackboneConfig, code_dim: int, encoder_dim: int | None = None
) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder of a backbone; the encoder gives `encoder_dim` channels, None gives `code_dim`."""
    encoder_dim = code_dim if encoder_dim is None else encoder_dim
    match config:
        case PatchBackboneConfig():
            return PatchEncoder(config, encoder_dim), PatchDecoder(config, code_dim)
        case VQGANBackboneConfig():
            return VQGANEncoder(config, encoder_dim), VQGANDecoder(config, code_dim)
        case _:
            raise ValueError(f"unknown backbone {type(config).__name__}")
