"""Which rows go together, and their values on the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fuse_search.data.layout import rows_of, there
from fuse_search.data.mixing import UNMIXED, Mix
from fuse_search.data.record import Data, absent


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

    Under `absent(name)` also which rows lack an input, bool [B], where some do. Images come as
    float32 in [0, 1], [B, C, H, W], others as they are; targets as int64 or float32 [B], of several
    labels int64 [B, K].
    """
    inputs = {name: take(values, rows, device) for name, values in data.inputs.items()}
    targets = {task: take(t.values, rows, device) for task, t in data.targets.items()}
    lacking = {absent(name): take(x, rows, device) for name, x in data.missing.items()}
    return {name: _unit(values) for name, values in inputs.items()} | lacking, targets


@dataclass(frozen=True)
class Computed:
    """What is read of an input: the values that `run` makes of it, by name."""

    input: str
    run: Callable[[Tensor], Mapping[Any, Tensor]]


@dataclass(frozen=True)
class Rows:
    """The rows of one split as what reads them wants them, by name.

    stored: values [N, ...] in the split's order, fp16 standing for fp32.
    computed: made of the inputs, batch by batch.
    change: what is done before that to the images [B, C, H, W] of an input at these positions.
    lacking: by name, the input of which it says which rows lack it.
    """

    data: Data
    split: str
    device: torch.device
    stored: Mapping[Any, Tensor]
    computed: Sequence[Computed]
    change: Callable[[str, Tensor, Tensor], Tensor] = field(default=lambda name, x, where: x)
    lacking: Mapping[Any, str] = field(default_factory=dict)

    @classmethod
    def of_inputs(cls, data: Data, split: str, device: torch.device) -> Rows:
        """Rows for a network that reads the inputs by their own names."""
        computed = [Computed(name, lambda x, name=name: {name: x}) for name in data.inputs]  # type: ignore[misc]
        lacking = {absent(name): name for name in data.missing}
        return cls(data, split, device, {}, computed, lacking=lacking)

    @property
    def positions(self) -> Tensor:
        """All places in the split: int64 [N]."""
        return torch.arange(len(self.data.splits[self.split]))

    def fetch(
        self, positions: Tensor, mix: Mix = UNMIXED
    ) -> tuple[dict[Any, Tensor], dict[str, Tensor]]:
        """What is read and the targets of the rows at these positions (int64 [B]).

        `mix` is done to the inputs, not to what is stored, and not to the targets.
        """
        rows = self._rows(positions)
        values = {name: _single(take(x, positions, self.device)) for name, x in self.stored.items()}
        inputs = {}
        for name in dict.fromkeys(source.input for source in self.computed):
            inputs[name] = _unit(take(self.data.inputs[name], rows, self.device))
            if inputs[name].ndim == 4:
                inputs[name] = self.change(name, inputs[name], positions)
            inputs[name] = mix.inputs(inputs[name])
        for each in self.computed:
            values |= each.run(inputs[each.input])
        for key, name in self.lacking.items():
            values[key] = mix.lacking(take(self.data.missing[name], rows, self.device))
        return values, self.targets(positions)

    def targets(self, positions: Tensor) -> dict[str, Tensor]:
        """The targets of the rows at these positions, by task."""
        rows = self._rows(positions)
        return {t: take(x.values, rows, self.device) for t, x in self.data.targets.items()}

    def _rows(self, positions: Tensor) -> Tensor:
        split = self.data.splits[self.split]
        return split[there(positions, split.device)]


def take(values: Tensor, rows: Tensor, device: torch.device | str) -> Tensor:
    """The values of these rows, on the device."""
    return there(rows_of(values, there(rows, values.device)), device)


def _single(values: Tensor) -> Tensor:
    return values.float() if values.dtype == torch.float16 else values


def _unit(values: Tensor) -> Tensor:
    if values.dtype == torch.uint8:
        return values.float().div_(255)
    return values.long() if values.dtype == torch.int32 else values
