"""What keeps the branches from forgetting: a pull towards where they started, and lost blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from ..nets.branch import Branch
from ..nets.merged import Merged
from ..spec import TrialSpec, of_branch


class StartingPoint:
    """L2-SP: a penalty of alpha/2 · |w - w0|² on the branches' trained stages (Li et al. 2018).

    w0 are the weights that the network has now. As in the paper, weight decay is left to what has
    no such start: fusion, heads, and branches without the penalty.
    """

    def __init__(self, network: Merged, spec: TrialSpec) -> None:
        self._starts: list[tuple[nn.Parameter, Tensor, float]] = []
        for name, branch in network.branches.items():
            alpha = of_branch(spec.unfreeze.l2_sp, name)
            pulled = network.trained(spec, branch.stages) if alpha else []
            self._starts += [(p, p.detach().clone(), alpha) for p in pulled]

    @property
    def pulled(self) -> list[nn.Parameter]:
        """What it pulls."""
        return [parameter for parameter, _, _ in self._starts]

    @torch.no_grad()
    def pull(self) -> None:
        """Add the penalty's gradient to that of each parameter that has one."""
        for parameter, start, alpha in self._starts:
            if parameter.grad is not None:
                parameter.grad.add_(parameter - start, alpha=alpha)


def drop_path(branch: Branch) -> float:
    """The highest chance that a block of this branch is left out; 0: it has no stochastic depth."""
    chances = (m.p for m in branch.stages.modules() if isinstance(m, StochasticDepth))
    return max(chances, default=0.0)


def set_drop_path(network: Merged, spec: TrialSpec) -> None:
    """Stochastic depth (Huang et al. 2016) where a branch has torchvision's and is trained.

    The chance that a branch's last block is left out becomes `train.drop_path`, and those of the
    blocks below in proportion. Never trained stages, which are shared by trials, stay as they are.
    """
    if spec.train.drop_path is None:
        return
    depths = network.deepest(spec)
    for name, branch in network.branches.items():
        highest = drop_path(branch)
        for module in branch.stages[len(branch.stages) - depths[name] :].modules():
            if isinstance(module, StochasticDepth) and highest:
                module.p *= spec.train.drop_path / highest
