"""Floating-point operations of training, counted by what a token passes through."""

from __future__ import annotations

from unimodal.model.branches.base import Expert
from unimodal.model.mixture import GENERATION, UNDERSTANDING
from unimodal.model.model import MULTI_TOKEN_WEIGHTS, PATCHES, TOKENS, UnifiedModel

OTHER: dict[Expert, Expert] = {"understanding": GENERATION, "generation": UNDERSTANDING}


def active_parameters(model: UnifiedModel, expert: Expert = "understanding") -> int:
    """Parameters that take part in the matrix products of one token.

    The embedding is a look-up. A token of understanding passes the token head, once more for each depth of multi-token
    prediction, and of routed experts those that it takes; one of generation passes the flow branch and the velocity
    head. The ViT acts on patches before they are
    tokens and is not counted.
    """
    tokens, ids = f"heads.{TOKENS}.", {id(model.trunk.embedding.weight)}
    skipped = (
        (f"branches.{PATCHES}.", tokens, MULTI_TOKEN_WEIGHTS)
        if expert == "generation"
        else ("branches.", "heads.velocity.")
    )
    moe, total = model.config.trunk.moe, 0
    chosen = moe.top_k / moe.experts if moe else 1.0
    for name, parameter in model.named_parameters(remove_duplicate=False):
        is_table = id(parameter) in ids and not (name.startswith(tokens) and expert == "understanding")
        if not (is_table or name.startswith(skipped) or f".{OTHER[expert]}." in name):
            total += parameter.numel() if ".experts." not in name else round(parameter.numel() * chosen)
    depths = model.config.multi_token.depth if model.config.multi_token and expert == "understanding" else 0
    return total + depths * model.token_head.weight.numel()


def flops_per_token(model: UnifiedModel, length: int, expert: Expert = "understanding") -> float:
    """Operations of forward and backward for one token of a row of `length` tokens.

    6 per active parameter plus 12 x layers x heads x head width x length for attention, counted without the causal half
    (PaLM, arXiv 2204.02311, appendix B).
    """
    trunk = model.config.trunk
    layers = trunk.num_layers if expert == "generation" else model.config.cached_layers
    attention = 12 * layers * trunk.num_heads * trunk.head_dim * length
    return 6 * active_parameters(model, expert) + attention
