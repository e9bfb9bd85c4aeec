"""Stored values that are held where they are read fastest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .planner import Place


@dataclass(frozen=True)
class _Held:
    place: Place
    values: Tensor
    worth: float


class Memory:
    """Copies on the device or in RAM, of no more bytes in each than its budget.

    Where there is no room, those go that save the fewest seconds per byte, but none in `kept`.
    """

    def __init__(self, budgets: Mapping[Place, int], device: torch.device) -> None:
        self.budgets, self.device = budgets, device
        self.kept: set[str] = set()
        self._held: dict[str, _Held] = {}

    def used(self, place: Place) -> int:
        """Bytes that are held there."""
        return sum(held.values.nbytes for held in self._held.values() if held.place == place)

    def place(self, nbytes: int) -> Place:
        """The fastest place in which so many bytes could be held; else they stay on disk."""
        return next((p for p, budget in self.budgets.items() if nbytes <= budget), "disk")

    def get(self, key: str) -> tuple[Tensor, Place] | None:
        """The values that are held under this name, and where."""
        held = self._held.get(key)
        return (held.values, held.place) if held else None

    def hold(self, key: str, values: Tensor, worth: float) -> tuple[Tensor, Place]:
        """The values from where they are read from now on, and where that is."""
        for place in self.budgets:
            if self._make_room(place, values.nbytes, worth):
                try:
                    copy = values.to(self.device) if place == "device" else values.clone()
                except RuntimeError:  # out of memory: others use it too
                    continue
                self._held[key] = _Held(place, copy, worth)
                return copy, place
        return values, "disk"

    def clear(self) -> None:
        """Let go of everything."""
        self._held.clear()

    def _make_room(self, place: Place, nbytes: int, worth: float) -> bool:
        excess, victims = self.used(place) + nbytes - self.budgets[place], []
        for key, held in sorted(self._held.items(), key=lambda item: item[1].worth):
            if excess <= 0:
                break
            if held.place == place and held.worth < worth and key not in self.kept:
                victims.append(key)
                excess -= held.values.nbytes
        if excess > 0:
            return False
        for key in victims:
            del self._held[key]
        return True
