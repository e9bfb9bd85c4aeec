"""Sounds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fuse_search.data.sound import log_mel, read_sound
from fuse_search.spec import Count, Positive, Width

from .reader import Cells, frames, open_file


class Audio:
    """A sound file (WAV, FLAC, …): its log-mel spectrogram, or with `mels: null` its samples."""

    files, vocabulary = True, 0
    learned: Mapping[str, Any] = {}

    def __init__(
        self,
        *,
        rate: Count = 16000,
        mels: Width | None = 64,
        window: Positive = 0.025,
        hop: Positive = 0.010,
        n_fft: Count | None = None,
        seconds: Positive | None = None,
        column: str | None = None,
    ) -> None:
        """rate: samples a second, to which it is resampled. window, hop: seconds. seconds: how much
        of a sound is read at most; left out: all.

        Raises ValueError for a window or hop of less than a sample.
        """
        for name, length in {"window": window, "hop": hop}.items():
            if mels is not None and round(length * rate) < 1:
                rule = f"must be a sample at least, 1/{rate} s"
                raise ValueError(f"{name}: {rule}, found {length:g}")
        self.rate, self.mels, self.seconds = rate, mels, seconds
        self.window, self.hop, self.n_fft = window, hop, n_fft
        self.columns: tuple[str, ...] = (column,) if column else ()

    def learn(self, rows: Iterable[Cells], folder: Path) -> None:
        """Nothing."""

    def read(self, cells: Cells, folder: Path) -> np.ndarray | None:
        """Frames [T, D + 1]: D mel bands at T = 1 + samples // hop times, or each sample alone."""
        (cell,) = cells
        if cell is None:
            return None
        with open_file(cell, folder) as file:
            signal = read_sound(file, self.rate, self.seconds)
        if self.mels is None:
            return frames(signal[:, None])
        return frames(log_mel(signal, self.rate, self.mels, self.window, self.hop, self.n_fft))
