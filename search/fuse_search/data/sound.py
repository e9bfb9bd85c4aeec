"""Sound files -> signals and mel spectrograms, also for what a plugin's network was made for.

A plugin's reader makes `frames` of what `mel` or `log_mel` gives, with its network's own settings.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, BinaryIO

import numpy as np

FLOOR = 1e-6  # is added to powers before the logarithm
LINEAR = 1000.0  # Hz up to which the mel scale is linear
STEP = 200 / 3  # Hz of a mel there
LOG_STEP = math.log(6.4) / 27  # of a mel above
UNKNOWN = 0x7FFFF000  # bytes of a WAV file: no size, from here on
AT_ONCE = 1024  # windows that are transformed together


def read_sound(file: BinaryIO, rate: int, seconds: float | None = None) -> np.ndarray:
    """The mean of a sound's channels at `rate` samples a second: float32 [T].

    seconds: how much of it is read at most, from its begin.
    Raises ValueError where it can't be read, is empty or cut off, or isn't finite.
    """
    import soundfile
    from scipy.signal import resample_poly

    _refuse_cut(file)
    noted = Noted(file)
    try:
        with soundfile.SoundFile(noted) as sound:
            own = sound.samplerate
            most = -1 if seconds is None else math.ceil(seconds * own)
            signal = sound.read(most, dtype="float32", always_2d=True).mean(axis=1)
    except (OSError, RuntimeError, ValueError) as error:  # soundfile's own are RuntimeErrors
        reason = str(error).splitlines()[0].partition(">: ")
        raise ValueError(f"can't be read as sound ({reason[2] or reason[0]})") from noted.error
    if noted.error:  # what was read is cut off
        raise noted.error
    if not len(signal):
        raise ValueError("the sound is empty")
    if not np.isfinite(signal).all():
        raise ValueError("the sound has a sample that is not finite")
    if own != rate:
        common = math.gcd(own, rate)
        signal = resample_poly(signal, rate // common, own // common)
    most = len(signal) if seconds is None else max(1, round(seconds * rate))
    return signal[:most].astype(np.float32)


def _refuse_cut(file: BinaryIO) -> None:
    """Raise ValueError for a WAV file with fewer bytes than it says, of which soundfile reads less.

    What is written to a pipe doesn't know its size: it says 0, or about the most.
    """
    begin = file.tell()
    if file.read(4) == b"RIFF" and file.read(8)[4:] == b"WAVE":
        while len(head := file.read(8)) == 8:
            size, place = int.from_bytes(head[4:], "little"), file.tell()
            if head[:4] == b"data":
                found = file.seek(0, 2) - place
                if found < size < UNKNOWN:
                    raise ValueError(f"is cut off: {found:,} of {size:,} bytes of sound are there")
                break
            file.seek(place + size + size % 2)
    file.seek(begin)


class Noted:
    """A file that notes its first error: soundfile, which calls it from C, loses it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._file, name)

        def noting(*arguments: Any) -> Any:
            try:
                return method(*arguments)
            except OSError as error:
                self.error = self.error or error
                return 0  # bytes or place: the end of the file

        return noting if callable(method) else method


def mel(
    signal: np.ndarray,
    rate: int,
    mels: int,
    window: float = 0.025,
    hop: float = 0.010,
    n_fft: int | None = None,
) -> np.ndarray:
    """The power in each mel band over time: float32 [T, mels], of a signal [samples].

    window, hop: seconds of a Hann window, and between two; n_fft: samples of a transform, left out:
    those of the window. Windows lie around the times 0, hop, 2 hop, …, with zeros outside of the
    signal, so that T = 1 + samples // hop. It is librosa's `melspectrogram` in its defaults.
    """
    width, step = round(window * rate), round(hop * rate)
    n_fft = max(width, n_fft or width)
    around = np.zeros(n_fft, np.float32)  # the window in the middle of the transform
    begin = (n_fft - width) // 2
    around[begin : begin + width] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(width) / width)
    padded = np.pad(signal.astype(np.float32), n_fft // 2)
    padded = np.pad(padded, (0, max(0, n_fft - len(padded))))
    windows = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::step]
    bands = filters(rate, n_fft, mels).T
    found = np.empty((len(windows), mels), np.float32)
    for start in range(0, len(windows), AT_ONCE):  # all of a long sound would take much memory
        spectrum = np.fft.rfft(windows[start : start + AT_ONCE] * around)
        found[start : start + AT_ONCE] = (spectrum.real**2 + spectrum.imag**2) @ bands
    return found


def log_mel(
    signal: np.ndarray,
    rate: int,
    mels: int,
    window: float = 0.025,
    hop: float = 0.010,
    n_fft: int | None = None,
) -> np.ndarray:
    """The natural logarithm of `mel`, of at least 1e-6."""
    return np.log(mel(signal, rate, mels, window, hop, n_fft) + np.float32(FLOOR))


@cache
def filters(rate: int, n_fft: int, mels: int) -> np.ndarray:
    """Triangles of equal area on the mel scale of Slaney 1998: float32 [mels, n_fft // 2 + 1].

    Their corners are spread evenly from 0 to half the rate.
    """
    top = _to_mel(rate / 2)
    corners = np.array([_to_hertz(top * i / (mels + 1)) for i in range(mels + 2)])
    hertz = np.fft.rfftfreq(n_fft, 1 / rate)
    left, middle, right = (corners[i : i + mels, None] for i in range(3))
    up, down = (hertz - left) / (middle - left), (right - hertz) / (right - middle)
    return (np.clip(np.minimum(up, down), 0, None) * 2 / (right - left)).astype(np.float32)


def _to_mel(hertz: float) -> float:
    if hertz < LINEAR:
        return hertz / STEP
    return LINEAR / STEP + math.log(hertz / LINEAR) / LOG_STEP


def _to_hertz(mels: float) -> float:
    if mels < LINEAR / STEP:
        return mels * STEP
    return LINEAR * math.exp((mels - LINEAR / STEP) * LOG_STEP)
