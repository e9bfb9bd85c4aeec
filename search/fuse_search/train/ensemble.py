"""An ensemble on validation: what it fits, and what it comes to."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..data import Data
from ..data.batches import Rows
from ..nets.topology import Ensemble
from ..spec import TrialSpec
from .measure import predict


def fit_and_predict(
    ensemble: Ensemble, spec: TrialSpec, data: Data, device: torch.device, parts: int = 1
) -> dict[str, Tensor]:
    """The ensemble's outputs on the validation rows by task, as float32 on the CPU.

    What is fitted is fitted to all of validation and kept; these outputs are cross-fitted: each
    half of the rows is joined as fits the other half, which makes them as good as unseen.
    parts: by how much less memory than usual is to be taken.
    """
    rows = Rows.of_inputs(data, "val", device)
    outputs = {}
    for task, by_row in predict(_Members(ensemble), spec, rows, parts).items():
        chances, join = by_row.transpose(0, 1), copy.deepcopy(ensemble.joins[task]).cpu()
        joined = join(chances)
        if join.learns:
            about, places = data.targets[task], data.splits["val"]
            target, known = about.values[places].cpu(), about.known[places].cpu()
            joined = _cross_fitted(join, chances, target, known)
            if known.any():
                join.fit(chances[:, known], target[known])
            ensemble.joins[task].load_state_dict(join.state_dict())
        outputs[task] = ensemble.kinds[task].from_probabilities(joined)
    return outputs


def _cross_fitted(join: Any, chances: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Joined [B, ...]; of the rows whose target is known one after the other goes to each half.

    Where the other half knows no target, a half is joined as by what is not fitted yet.
    """
    half = (known.cumsum(0) - known.long()) % 2
    joined = torch.empty_like(chances[0])
    for unseen in (half == 1, half == 0):
        seen, fitted = known & ~unseen, copy.deepcopy(join)
        if seen.any():
            fitted.fit(chances[:, seen], target[seen])
        joined[unseen] = fitted(chances[:, unseen])
    return joined


class _Members(nn.Module):
    """Every member's output with the rows in front, so that batches can be put together."""

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        self.ensemble = ensemble

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {task: each.transpose(0, 1) for task, each in self.ensemble.each(inputs).items()}
