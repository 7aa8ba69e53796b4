"""Muon for matrices and AdamW for the rest, in one optimizer that Lightning, schedules and checkpoints understand."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw as functional_adamw

from unimodal.training.precision import matmul_dtype

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: Tensor, steps: int) -> Tensor:
    """Newton-Schulz: (N, A, B) -> the nearest matrices with singular values near 1, in the type
    that the device multiplies fastest."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(matmul_dtype(matrices.device))
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class MuonAdamW(torch.optim.Optimizer):
    """Parameter groups with `muon=True` take Moonlight's Muon step, the others AdamW.

    Muon (arXiv 2502.16982, section 2): p -= lr * (0.2 * sqrt(max(A, B)) * orthogonalise(nesterov momentum)), with
    decoupled weight decay, so that updates have AdamW's size. Unlike torch.optim.Muon, matrices of one shape are
    orthogonalised together, which keeps small models fast on CPUs.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of all groups."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["muon"]:
                self._muon(group)
            else:
                self._adamw(group)
        return loss

    def _muon(self, group: dict[str, Any]) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape[parameter.shape].append(parameter)
        for shape, parameters in by_shape.items():
            updates = torch.stack([self._momentum(parameter, group["momentum"]) for parameter in parameters])
            scale = 0.2 * max(shape) ** 0.5 * group["lr"]
            for parameter, update in zip(parameters, orthogonalise(updates, group["steps"]), strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update.to(parameter.dtype), alpha=-scale)

    def _momentum(self, parameter: Tensor, momentum: float) -> Tensor:
        assert parameter.grad is not None
        state = self.state[parameter]
        buffer = state.setdefault("momentum", torch.zeros_like(parameter))
        buffer.mul_(momentum).add_(parameter.grad)
        return parameter.grad.add(buffer, alpha=momentum)

    def _adamw(self, group: dict[str, Any]) -> None:
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = {
                    "step": torch.zeros(()),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        states = [self.state[parameter] for parameter in parameters]
        functional_adamw(
            parameters,
            [parameter.grad for parameter in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["beta1"],
            beta2=group["beta2"],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
