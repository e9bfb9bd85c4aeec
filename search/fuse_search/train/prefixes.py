"""Values of frozen prefixes, computed once and shared by all epochs, trials and processes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import torch
import torchvision
from torch import Tensor

from ..data import Data
from ..data.batches import Computed, Rows, fetch
from ..data.layout import channels_last
from ..data.room import free_ram
from ..errors import Preempted
from ..nets.freeze import Prefix, run
from ..version import made_by
from .array import About
from .machine import (
    SHARE,
    Machine,
    Measured,
    cpu,
    free_device,
    free_disk,
    measure_stages,
    rows_at_once,
)
from .memory import Memory
from .planner import Cost, Place, Planner
from .precision import autocast
from .store import Store, Writer

HALF_ERROR = 2**-10  # relative, of values that may be stored in half precision
MAPPED = 256  # arrays at a time; each takes one of the files that a process may have open
PATIENCE = 10.0  # seconds, at least, to wait for another process that computes the same
SOURCE = "source"

Change = Callable[[str, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class View:
    """A fixed version of every training image: the changes, their seed, and which one it is."""

    changes: str
    seed: int
    number: int


@dataclass(frozen=True)
class Values:
    """What a prefix comes to on all rows of a split, in a view of the images, in a precision."""

    prefix: Prefix
    split: str
    view: View | None
    bf16: bool

    def at(self, stages: int) -> Values:
        """The unpooled values above that many stages."""
        return replace(self, prefix=replace(self.prefix, stages=stages, pooling=None))


class Prefixes:
    """What the trials of one process share below their frozen boundaries.

    folder: where values are stored; None: nothing is, and all is computed when it is read.
    budget: bytes that they may take there, and again in memory; None: a share of what is free.
    sharing: how many processes share each kind of memory, where it is more than one.

    `say` is told in one line when another process is waited for; `stop` is asked, while values are
    computed to be stored, whether to leave that.
    """

    def __init__(
        self,
        data: Data,
        device: torch.device,
        folder: Path | None = None,
        budget: int | None = None,
        sharing: Mapping[Place, int] = MappingProxyType({}),
    ) -> None:
        self.data, self.device = data, device
        self.say: Callable[[str], None] = lambda line: None
        self.stop: Callable[[], bool] = lambda: False
        self.store: Store | None = None
        self.memory = Memory({}, device)
        if folder is not None and budget != 0:
            used = Store(folder, 0).used()
            most = int(SHARE * (free_disk(folder) + used)) if budget is None else budget
            free: dict[Place, int] = {"device": free_device(device), "ram": free_ram()}
            room: dict[Place, int] = {
                p: min(most, int(SHARE * n)) // sharing.get(p, 1) for p, n in free.items() if n
            }
            self.store, self.memory = Store(folder, most), Memory(room, device)
        self._mapped: dict[str, Tensor] = {}
        self._measured: dict[tuple[object, ...], Measured] = {}
        self._too_wide: set[str] = set()
        self._asked_for: set[str] = set()

    @cached_property
    def planner(self) -> Planner:
        """Made when something could be stored for the first time: it measures the machine.

        Raises OSError where nothing can be stored.
        """
        assert self.store is not None
        # beside the store, whose bytes are counted
        return Planner(Machine.measure(self.store.folder.parent, self.device))

    def keep(self, keys: set[str]) -> None:
        """These are in use: they don't make room for others."""
        self._mapped = {key: values for key, values in self._mapped.items() if key in keys}
        if self.store:
            self.store.kept = self.memory.kept = keys

    def held(self, key: str) -> tuple[Tensor, Place] | None:
        """The values of this name that were given to `hold`, and where they are."""
        if key in self._mapped:
            return self._mapped[key], "disk"
        return self.memory.get(key)

    def hold(self, key: str, values: Tensor, worth: float) -> tuple[Tensor, Place]:
        """Values from the store, from where they are read from now on, and where that is.

        On disk they stay mapped until the trial ends: mapped anew, they would be read anew over
        NFS, and another process could have removed them.
        """
        found, place = self.memory.hold(key, values, worth)
        if place == "disk" and len(self._mapped) < MAPPED:
            self._mapped[key] = found
        return found, place

    def key(self, values: Values) -> str:
        """A name for the content: all that it hangs on, and what it was computed by."""
        machine = f"{cpu()} {torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()}"
        if self.device.type == "cuda":
            machine = torch.cuda.get_device_name(self.device)
        prefix, view = values.prefix, values.view
        changes = view and [view.changes, view.seed, view.number]
        tf32 = torch.backends.cudnn.allow_tf32
        precision = [values.bf16, torch.get_float32_matmul_precision(), tf32]
        by = [*made_by(), torch.__version__, torchvision.__version__, self.device.type, machine]
        content = [prefix.digest, prefix.branch.input, self.data.digest, values.split, changes]
        whole = json.dumps([*content, *precision, *by])
        return hashlib.sha256(whole.encode()).hexdigest()[:32]

    def first_time(self, key: str) -> bool:
        """Whether this was not asked before; what is read but once is not worth measuring."""
        first = key not in self._asked_for
        self._asked_for.add(key)
        return first

    def measured(self, values: Values) -> Measured:
        """The stages of this branch, run on some rows the first time that it is asked for."""
        branch = values.prefix.branch
        known = (branch.fingerprints[: 1 + len(branch.stages)], branch.input, values.bf16)
        if known not in self._measured:
            rows = self.data.splits["train"][: rows_at_once(self.device)]
            x = fetch(self.data, rows, self.device)[0][branch.input]
            with torch.inference_mode(), autocast(values.bf16, self.device):
                self._measured[known] = measure_stages(branch, x)
        return self._measured[known]

    def cost(self, values: Values) -> Cost:
        """What they cost to compute and to keep, as measured."""
        prefix, measured = values.prefix, self.measured(values)
        with torch.inference_mode(), autocast(values.bf16, self.device):
            example = prefix(measured.examples[prefix.stages], prefix.stages)
        rows = len(self.data.splits[values.split])
        return Cost(rows, rows * measured.seconds[prefix.stages], rows * example[0].nbytes)

    def fill(self, wanted: list[Values], change: Change) -> str:
        """Store values of one branch on one split in one view, in one pass over the rows.

        Whoever comes first does it, and others wait. `change` gives the view of the images. Gives
        the reason where something could not be stored; nothing half-written stays.
        Raises Preempted when `stop` says so.

        What a network that computes in bf16 gives in fp32 is stored in fp16, if that is nearer to
        it than the bf16 that the next layer makes of it.
        """
        assert self.store is not None
        costs = [self.cost(each) for each in wanted]
        try:
            written = sum(cost.nbytes for cost in costs) / self.planner.machine.write
            patience = max(PATIENCE, 3 * (written + sum(cost.seconds for cost in costs)))
            name = self.key(wanted[0].at(1))
            with self.store.turn(name, patience, self.say, self.stop) as ours:
                if not ours:
                    return "another process takes too long to compute it"
                missing = [each for each in wanted if not self.store.has(self.key(each))]
                while missing:
                    try:
                        return self._pass(missing, *self._source(missing, change))
                    except _TooWideError as error:
                        self._too_wide.add(error.key)
                return ""
        except OSError as error:
            return f"it can't be stored: {error.strerror or error}"
        except torch.OutOfMemoryError:
            return "there is no memory to compute it at once"

    def _source(self, wanted: list[Values], change: Change) -> tuple[int, Rows]:
        """From where a pass starts: above how many stages, and the rows there."""
        assert self.store is not None
        lowest = min(wanted, key=lambda each: each.prefix.stages)
        for stages in range(lowest.prefix.stages, 0, -1):
            below = lowest.at(stages)
            if self.planner.gain(self.cost(below), "disk") > 0:
                values = self.store.get(self.key(below))
                if values is not None:
                    rows = Rows(self.data, lowest.split, self.device, {SOURCE: values}, [])
                    return stages, rows
        source = [Computed(lowest.prefix.branch.input, lambda x: {SOURCE: x})]
        return 0, Rows(self.data, lowest.split, self.device, {}, source, change)

    def _pass(self, wanted: list[Values], start: int, rows: Rows) -> str:
        assert self.store is not None
        upwards = sorted(wanted, key=lambda each: each.prefix.stages)
        writers: dict[Values, Writer | None] = {}
        try:
            for positions in rows.positions.split(rows_at_once(self.device)):
                if self.stop():
                    raise Preempted
                value = rows.fetch(positions)[0][SOURCE]
                with torch.inference_mode(), autocast(upwards[0].bf16, self.device):
                    values = run([each.prefix for each in upwards], value, start)
                for each, value in zip(upwards, values, strict=True):
                    found = self._stored_as(each, value)
                    if each not in writers:
                        writers[each] = self.store.writer(self.key(each), self._about(each, found))
                    if writer := writers[each]:
                        writer.append(found)
                if not any(writers.values()):
                    break
            for writer in filter(None, writers.values()):
                writer.finish()
        except BaseException:
            for writer in filter(None, writers.values()):
                writer.abandon()
            raise
        return "" if all(writers.values()) else "the budget has no room for it"

    def _stored_as(self, values: Values, found: Tensor) -> Tensor:
        if not values.bf16 or found.dtype != torch.float32:
            return found
        if (key := self.key(values)) in self._too_wide:
            return found
        half = found.half()
        if not (half.float() - found).norm() <= HALF_ERROR * found.norm():
            raise _TooWideError(key)
        return half

    def _about(self, values: Values, some: Tensor) -> About:
        prefix, cost = values.prefix, self.cost(values)
        return About(
            what=f"{prefix.name} above {prefix.stages} of {len(prefix.branch.stages)} stages",
            shape=(cost.rows, *some.shape[1:]),
            dtype=str(some.dtype).removeprefix("torch."),
            channels_last=channels_last(some),
            crc32=0,
            seconds=self.planner.gain(cost, "disk"),
        )


class _TooWideError(Exception):
    """These values don't fit into half precision."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key
