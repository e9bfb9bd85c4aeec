"""From the losses of a step to the gradients that a weighting makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .chance import Network, once_more, random_state

Losses = Callable[[Network], Tensor]


def _sees(weighting: object) -> str:
    return getattr(weighting, "sees", "parts")


def keeps_gradients(weighting: object, whole: bool) -> bool:
    """Whether a step keeps each task's gradient apart; `whole`: batches come in one part."""
    return _sees(weighting) == "gradients" or (_sees(weighting) == "batch" and not whole)


class Gradients:
    """The gradients of a step, gathered from the parts of its batch. See `weightings`.

    parameters: what is trained. shared: of these, what all tasks train; the others are heads.
    whole: every batch comes in one part.
    """

    def __init__(
        self,
        weighting: nn.Module,
        parameters: Iterable[nn.Parameter],
        shared: Iterable[nn.Parameter],
        tasks: int,
        whole: bool,
    ) -> None:
        self._weighting: Any = weighting
        self.adapt = _sees(weighting) != "nothing"
        """Whether the weights change in training."""
        self._apart = keeps_gradients(weighting, whole)
        self._looks_back = hasattr(weighting, "stepped")
        first = set(shared)
        self._parameters = sorted(parameters, key=lambda p: p not in first)
        self._shared = sum(p in first for p in self._parameters)
        self._tasks, self._device = tasks, self._parameters[0].device
        self._begin()

    def _begin(self) -> None:
        self._sums = torch.zeros(1 + 2 * self._tasks, device=self._device)
        self._rows: Tensor | None = None
        self._seen: list[tuple[Losses, float]] = []

    @property
    def _losses(self) -> Tensor:
        return self._sums[1 : 1 + self._tasks]

    def begin(self, known: Tensor) -> None:
        """Before a batch in which not every row's targets are known: of which tasks any is, [T]."""
        if hasattr(self._weighting, "begun"):
            self._weighting.begun(known)

    def add(self, network: nn.Module, of: Losses, share: float) -> None:
        """Take in a part that is this share of its batch; `of` gives a network's losses [T]."""
        if self._looks_back and not self._seen:
            self._drawn = random_state(self._device)
        losses = of(network)
        if self._looks_back:
            self._seen.append((of, share))
        if self._apart:
            self._losses.add_(losses.detach(), alpha=share)
            self._go_back_apart(losses * share)
        else:
            losses.retain_grad()
            total = self._weighting(losses) * share
            total.backward()
            assert losses.grad is not None  # the weights in use
            self._sums += torch.cat([total.detach()[None], losses.detach() * share, losses.grad])

    def join(self) -> Tensor:
        """Leave each parameter its gradient by the whole batch.

        Returns the total, the losses and the weights in use: [1 + 2 T].
        """
        if self._apart:
            weights = self._leave_joined()
            self._sums = torch.cat([(weights * self._losses).sum()[None], self._losses, weights])
        return self._sums

    def stepped(self, network: nn.Module) -> None:
        """After the optimizer's step: a weighting that looks back sees the batch's new losses."""
        if self._looks_back:
            with once_more(network, self._drawn, self._device) as same:
                after = torch.stack([of(same) * share for of, share in self._seen]).sum(0)
            self._weighting.stepped(self._losses, after)
        self._begin()

    def ended(self, losses: Tensor) -> None:
        """The mean losses [T] of the epoch that ended."""
        if hasattr(self._weighting, "ended"):
            self._weighting.ended(losses)

    @property
    def _trained(self) -> list[nn.Parameter]:
        """In this epoch."""
        return [p for p in self._parameters if p.requires_grad]

    def _go_back_apart(self, losses: Tensor) -> None:
        """Add each loss's gradient, as a row, to those of the parts before."""
        trained = self._trained
        if self._rows is None:
            size = sum(p.numel() for p in trained)
            self._rows = torch.zeros(self._tasks, size, device=self._device)
        for task, (loss, row) in enumerate(zip(losses, self._rows, strict=True)):
            again = task + 1 < self._tasks
            found = torch.autograd.grad(loss, trained, retain_graph=again, materialize_grads=True)
            row += torch.cat([gradient.flatten() for gradient in found])

    def _leave_joined(self) -> Tensor:
        """Give each parameter its gradients by all tasks, joined by the weights returned."""
        rows, trained = self._rows, self._trained
        assert rows is not None
        shared = sum(p.numel() for p in self._parameters[: self._shared] if p.requires_grad)
        products = rows[:, :shared] @ rows[:, :shared].T
        weights = self._weighting.weigh(self._losses, products)
        heads = weights if self._weighting.heads else torch.ones_like(weights)
        joined = torch.cat([weights @ rows[:, :shared], heads @ rows[:, shared:]])
        for p, gradient in zip(trained, joined.split([p.numel() for p in trained]), strict=True):
            # in its parameter's order in memory, which fused optimizers rely on
            p.grad = torch.empty_like(p).copy_(gradient.view(p.shape))
        return weights
