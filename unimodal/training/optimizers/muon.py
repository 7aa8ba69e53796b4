"""Muon for matrices and AdamW for the rest, in one optimizer that Lightning, schedules and checkpoints understand."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw as functional_adamw

from unimodal.training.precision import matmul_dtype

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)

STACK_NUMBERS = 2**27
"""Numbers that are orthogonalised together: half a GiB in float32, and as much for each product in between."""


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
    orthogonalised together, STACK_NUMBERS at a time, which keeps small models fast and large ones within memory.
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
        for parameters in _stacks(group["params"]):
            updates = torch.stack(self._nesterov(parameters, group["momentum"]))
            updates = orthogonalise(updates, group["steps"]).to(parameters[0].dtype)
            scale = 0.2 * max(parameters[0].shape) ** 0.5 * group["lr"]
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])  # pyright: ignore[reportPrivateImportUsage]
            torch._foreach_add_(parameters, updates.unbind(), alpha=-scale)  # pyright: ignore[reportPrivateImportUsage]

    def _nesterov(self, parameters: Sequence[Tensor], momentum: float) -> list[Tensor]:
        """The gradients, led on by the momentum that they have just joined."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        buffers = [self._buffer(parameter) for parameter in parameters]
        torch._foreach_mul_(buffers, momentum)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_add_(buffers, gradients)  # pyright: ignore[reportPrivateImportUsage]
        return list(torch._foreach_add(gradients, buffers, alpha=momentum))  # pyright: ignore[reportPrivateImportUsage]

    def _buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        return state["momentum"]

    def _adamw(self, group: dict[str, Any]) -> None:
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        states = [self._moments(parameter) for parameter in parameters]
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

    def _moments(self, parameter: Tensor) -> dict[str, Any]:
        """AdamW's state of a parameter. The fused kernel reads `step` where the parameter is, and Lightning leaves the
        step of a checkpoint on the CPU."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        if state["step"].device != parameter.device:
            state["step"] = state["step"].to(parameter.device)
        return state


def _stacks(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters that have gradients, those of one shape together, STACK_NUMBERS or one parameter at a time."""
    by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is not None:
            by_shape[parameter.shape].append(parameter)
    for shape, same_shape in by_shape.items():
        count = max(STACK_NUMBERS // shape.numel(), 1)
        for start in range(0, len(same_shape), count):
            yield same_shape[start : start + count]
