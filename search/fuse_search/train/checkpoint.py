"""Checkpoints of a training: whole and true to the bit, or not there at all."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

KEPT = 2  # the last one may turn out to be damaged
CHUNK = 8 << 20  # bytes that are checked at once


@dataclass(frozen=True)
class State:
    """A training between two steps: tensors on the CPU that nothing changes, and plain data."""

    tensors: dict[str, Tensor]
    about: dict[str, Any]
    rest: list[tuple[str, Tensor, Tensor | None]] = field(default_factory=list)
    """Tensors that are still to be copied, by name, and the memory to copy each to."""
    _lock: Lock = field(default_factory=Lock, repr=False, compare=False)

    def complete(self) -> None:
        """Copy the rest, or wait for whoever does: what it is copied from may change now."""
        with self._lock:
            while self.rest:
                name, tensor, place = self.rest.pop()
                self.tensors[name] = copied(tensor, place)


class Checkpoints:
    """The checkpoints of one training in a folder, written in the background.

    A file's name holds its order (fence, epoch, batch) and its content's CRC-32; it appears by one
    rename once it is on the disk. Of two workers that write to the same folder, because one of them
    doesn't know yet that it lost the training, the one with the higher `fence` counts.
    """

    def __init__(self, folder: Path, fence: int = 0, held: Callable[[], bool] = lambda: True):
        self.folder, self.fence, self._held = folder, fence, held
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")

    def open(self) -> bool:
        """Make the folder: while it is there, not all that belongs to the training is done.

        False: another worker has the training, and may be done and have removed the folder.
        """
        if not self._held():
            return False
        with suppress(OSError):  # a full disk ends no training
            self.folder.mkdir(parents=True, exist_ok=True)
        return True

    def save(self, state: State) -> Future[None]:
        """Write a state. The result holds an OSError when the disk is full or can't be written."""
        return self._thread.submit(self._write, state)

    def load(self) -> State | None:
        """The last state that is whole, if there is one; damaged files are removed."""
        self._thread.submit(lambda: None).result()  # after what is being written
        for file in reversed(self._files()):
            try:
                return _read(file)
            except (ValueError, KeyError, SafetensorError):
                file.unlink(missing_ok=True)
            except OSError:  # it may be read another time
                pass
        return None

    def start(self) -> None:
        """Note that this process is at the training from here on."""
        if self.open():
            with suppress(OSError):
                self._note(self.fence)

    def left(self) -> None:
        """Note that this process did not die of it: it was asked to stop. All is written then."""
        with suppress(RuntimeError):  # it was cleared
            self._thread.submit(lambda: None).result()
        with suppress(OSError):
            self._note(-self.fence)

    @property
    def there(self) -> bool:
        """Whether there is any."""
        return bool(self._files())

    @property
    def deaths(self) -> int:
        """How many processes died of the training since the last checkpoint was written."""
        started = self._started()
        earlier = [fence for fence in started if 0 <= fence < self.fence and -fence not in started]
        files = self._files() if earlier else []
        since = int(files[-1].name.split("-")[0]) if files else 0  # its fence
        return sum(since <= fence for fence in earlier)

    def _started(self) -> set[int]:
        """The fences of those that started, and negative of those that left."""
        with suppress(OSError, ValueError):
            return {int(fence) for fence in self._starts.read_text("ascii").split()}
        return set()

    def _note(self, fence: int) -> None:
        with self._starts.open("a", encoding="ascii") as file:
            file.write(f"{fence}\n")

    def begin(self) -> None:
        """Count an epoch that is begun: those that are cut off were computed too."""
        if self.open():
            with suppress(OSError), self._count.open("ab") as file:
                file.write(b".")

    @property
    def begun(self) -> int:
        """How many epochs were begun, by all that worked on this training."""
        return self._count.stat().st_size if self._count.exists() else 0

    def note_parts(self, parts: int) -> None:
        """Note in how many parts a batch goes through the network from here on."""
        with suppress(OSError):
            self._parts.write_text(str(parts), "ascii")

    @property
    def parts(self) -> int:
        """In how many parts a batch went through the network last."""
        with suppress(OSError, ValueError):
            return int(self._parts.read_text("ascii"))
        return 1

    def clear(self) -> None:
        """Remove all of them, and wait for the one that is being written."""
        self._thread.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _parts(self) -> Path:
        return self.folder / "parts"

    @property
    def _starts(self) -> Path:
        return self.folder / "starts"

    @property
    def _count(self) -> Path:
        return self.folder / "begun"

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.safetensors"))

    def _write(self, state: State) -> None:
        state.complete()
        if not self._held():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = self.folder / f".{uuid4().hex}"
        try:
            orders = {name: _order(tensor) for name, tensor in state.tensors.items()}
            tensors = {n: t.permute(orders[n]).contiguous() for n, t in state.tensors.items()}
            metadata = {"about": json.dumps(state.about), "orders": json.dumps(orders)}
            save_file(tensors, unfinished, metadata)
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
            place = "{epoch:06}-{batch:08}".format(**state.about)
            name = f"{self.fence:06}-{place}-{_checksum(unfinished):08x}.safetensors"
            unfinished.replace(self.folder / name)
        except SafetensorError as error:  # which is how it tells of a full disk
            raise OSError(str(error)) from error
        finally:
            unfinished.unlink(missing_ok=True)
        for old in self._files()[:-KEPT]:
            old.unlink(missing_ok=True)


def _read(file: Path) -> State:
    """Raises ValueError, KeyError, OSError or SafetensorError when the file isn't whole."""
    if int(file.stem.rpartition("-")[2], 16) != _checksum(file):
        raise ValueError("the checksum differs")
    with safe_open(file, framework="pt") as opened:
        about, orders = (json.loads(opened.metadata()[key]) for key in ("about", "orders"))
        tensors = {
            name: opened.get_tensor(name).permute([order.index(i) for i in range(len(order))])
            for name, order in orders.items()
        }
        return State(tensors, about)


def _order(tensor: Tensor) -> list[int]:
    """Its dimensions as they lie in memory, the outermost first: so it is written as it lies."""
    return sorted(range(tensor.ndim), key=tensor.stride, reverse=True)


def _checksum(file: Path) -> int:
    crc = 0
    for chunk in _chunks(file):
        crc = zlib.crc32(chunk, crc)
    return crc


def _chunks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while chunk := opened.read(CHUNK):
            yield chunk


def copied(tensor: Tensor, place: Tensor | None) -> Tensor:
    """The tensor on the CPU, in this place if it fits."""
    if place is None or _form(place) != _form(tensor):
        return tensor.to("cpu", copy=True)
    return place.copy_(tensor)


def _form(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype


def named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Under names that begin with the prefix."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin with the prefix, without it."""
    start = f"{prefix}/"
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}
