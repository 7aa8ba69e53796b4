"""Names of BAGEL's weights, theirs and ours (arXiv 2505.14683 and its public code)."""

from __future__ import annotations

from unimodal.interop.architectures.decoder import decoder_names
from unimodal.model.config import TransformerConfig
from unimodal.model.mixture import expert_names

BAGEL_INSIDE = "language_model."
BAGEL_SECOND = "_moe_gen"
"""What BAGEL's modules of the generation side are called beyond those of the understanding side."""

BAGEL_FLOW = {
    "branches.latents.latent_in": "vae2llm",
    "heads.velocity": "llm2vae",
    "branches.latents.time_in": "time_embedder.mlp.0",
    "branches.latents.time_out": "time_embedder.mlp.2",
}

BAGEL_POSITIONS = "latent_pos_embed.pos_embed"
"""A table that both sides compute; some checkpoints store it all the same."""

BAGEL_VISION = ("vit_model.", "connector.", "vit_pos_embed.")
"""What sees pictures as pixels there, and has no counterpart here."""


def bagel_names(trunk: TransformerConfig) -> dict[str, str]:
    """Our name of every weight of a mixture with a flow branch -> BAGEL's."""
    table: dict[str, str] = {}
    for ours, theirs in decoder_names(trunk).items():
        names = (BAGEL_INSIDE + theirs, BAGEL_INSIDE + _second(theirs))
        table.update(zip(expert_names(ours) or (ours,), names, strict=False))
    for ours, theirs in BAGEL_FLOW.items():
        table.update({f"{ours}.{kind}": f"{theirs}.{kind}" for kind in ("weight", "bias")})
    return table


def _second(name: str) -> str:
    """The generation side's name: the suffix stands behind a projection, a norm, or the whole feed-forward part."""
    path = name.split(".")
    path[path.index("mlp") if "mlp" in path else -2] += BAGEL_SECOND
    return ".".join(path)
