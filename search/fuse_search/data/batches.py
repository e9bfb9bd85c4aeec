"""Which rows go together, and their values on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from fuse_search.data.record import Data


def batches(
    rows: Tensor, batch_size: int, generator: torch.Generator | None = None
) -> tuple[Tensor, ...]:
    """`rows` (int64 [N]) in batches of `batch_size`, shuffled when a CPU generator is given.

    The last batch may be smaller; a single row left over joins the batch before it, because
    BatchNorm can't train on one row.
    """
    if generator is not None:
        rows = rows[torch.randperm(len(rows), generator=generator).to(rows.device)]
    ends = list(range(batch_size, len(rows), batch_size))
    if ends and len(rows) % batch_size == 1:
        ends.pop()
    return rows.tensor_split(ends)


def fetch(
    data: Data, rows: Tensor, device: torch.device | str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The inputs and targets of `rows` on `device`, wherever `data` is held.

    Images come as float32 in [0, 1], [B, C, H, W]; vectors as they are, [B, D]; targets as
    int64 or float32 [B].
    """
    inputs = {name: _take(values, rows, device) for name, values in data.inputs.items()}
    targets = {task: _take(t.values, rows, device) for task, t in data.targets.items()}
    return {name: _unit(values) for name, values in inputs.items()}, targets


def _take(values: Tensor, rows: Tensor, device: torch.device | str) -> Tensor:
    return values[rows.to(values.device)].to(device)


def _unit(values: Tensor) -> Tensor:
    return values.float() / 255 if values.dtype == torch.uint8 else values
