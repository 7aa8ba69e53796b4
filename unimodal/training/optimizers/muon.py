"""Muon for matrices and AdamW for the rest, in one optimizer that Lightning, schedules and checkpoints understand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw as functional_adamw

from unimodal.model.sharded import local_parts
from unimodal.training.optimizers.owners import owned_updates, parts_with_gradients
from unimodal.training.precision import matmul_dtype

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: Tensor, steps: int) -> Tensor:
    """Newton-Schulz: (N, A, B) -> the nearest matrices with singular values near 1, in the type
    that the device multiplies fastest; float64 stays."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    exact = matrices.dtype == torch.float64
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(x.dtype if exact else matmul_dtype(matrices.device))
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class MuonAdamW(torch.optim.Optimizer):
    """Parameter groups with `muon=True` take Moonlight's Muon step, the others AdamW.

    Muon (arXiv 2502.16982, section 2): p -= lr * (0.2 * sqrt(max(A, B)) * orthogonalise(nesterov momentum)), with
    decoupled weight decay, so that updates have AdamW's size. Unlike torch.optim.Muon, matrices of one shape are
    orthogonalised together, which keeps small models fast, and by one rank each, which keeps many ranks busy.
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

    def prepare(self) -> None:
        """Make the state of every parameter that is trained, as a checkpoint needs it before the first step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.requires_grad:
                    _ = self._buffer(parameter) if group["muon"] else self._moments(parameter)

    def _muon(self, group: dict[str, Any]) -> None:
        parameters, parts, gradients = parts_with_gradients(group["params"])

        def nesterov(numbers: list[int]) -> list[Tensor]:
            """The gradients, led on by the momentum that they have just joined."""
            joining = [gradients[number] for number in numbers]
            buffers = local_parts([self._buffer(parameters[number]) for number in numbers])
            torch._foreach_mul_(buffers, group["momentum"])  # pyright: ignore[reportPrivateImportUsage]
            torch._foreach_add_(buffers, joining)  # pyright: ignore[reportPrivateImportUsage]
            return list(torch._foreach_add(joining, buffers, alpha=group["momentum"]))  # pyright: ignore[reportPrivateImportUsage]

        for numbers, updates in owned_updates(parameters, nesterov, lambda x: orthogonalise(x, group["steps"])):
            updated = [parts[number] for number in numbers]
            updates = [update.to(part.dtype) for update, part in zip(updates, updated, strict=True)]
            scale = 0.2 * max(parameters[numbers[0]].shape[-2:]) ** 0.5 * group["lr"]
            torch._foreach_mul_(updated, 1 - group["lr"] * group["weight_decay"])  # pyright: ignore[reportPrivateImportUsage]
            torch._foreach_add_(updated, updates, alpha=-scale)  # pyright: ignore[reportPrivateImportUsage]

    def _buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        return state["momentum"]

    def _adamw(self, group: dict[str, Any]) -> None:
        parameters, parts, gradients = parts_with_gradients(group["params"])
        if not parameters:
            return
        states = [self._moments(parameter) for parameter in parameters]
        functional_adamw(
            parts,
            gradients,
            local_parts([state["exp_avg"] for state in states]),
            local_parts([state["exp_avg_sq"] for state in states]),
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

    def _moments(self, parameter: Tensor) -> dict[str, Any]:
        """AdamW's state of a parameter. The fused kernel reads `step` where the parameter is, and Lightning leaves the
        step of a checkpoint on the CPU."""
        state = self.state[parameter]
        if "step" not in state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        if state["step"].device != parameter.device:
            state["step"] = state["step"].to(parameter.device)
        return state
