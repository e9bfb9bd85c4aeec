"""Make the example's rows: a picture, a spoken sound and a sentence each, and a table of them.

What a row is called takes all three: its picture shows stripes or dots, its voice is low or high,
and its sentence is about the weather or about food, which makes 2 × 2 × 2 scenes. Whoever sees one
of the three can be right in one of four rows, and with two of them in one of two.

    python make_data.py FOLDER [--rows 368] [--seed 0]
"""

from __future__ import annotations

import argparse
import csv
from itertools import product
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image
from scipy.signal import lfilter

RATE = 16_000  # samples a second
SIDE = 64  # pixels
SHARES = {"train": 0.6, "val": 0.14, "test": 0.26}

VOICES = {"low": (120, 1.0), "high": (185, 1.12)}
"""Pitch in Hz, and how much shorter the vocal tract is than a man's: its resonances are higher."""
VOWELS = {
    "a": (730, 1090, 2440),
    "e": (530, 1840, 2480),
    "i": (270, 2290, 3010),
    "o": (570, 840, 2410),
    "u": (300, 870, 2240),
}
"""Resonances in Hz of a man's vowels (Peterson and Barney 1952, table II)."""
WIDTHS = (80, 100, 140)  # of the resonances, in Hz

SENTENCES = {
    "weather": (
        ("the rain", "a cold wind", "the fog", "some snow", "the sun", "a storm", "the frost"),
        ("will come", "stayed away", "is expected", "came late", "will not last", "is over"),
        ("in the north", "by the evening", "along the coast", "this winter", "in the mountains"),
    ),
    "food": (
        ("the soup", "a fresh bread", "the rice", "some cheese", "the pie", "a salad", "the fish"),
        ("was burnt", "tastes good", "needs salt", "is ready", "was too sweet", "got cold"),
        ("for dinner", "on my plate", "in the oven", "at the restaurant", "with a lemon"),
    ),
}
"""Subjects, verbs and places."""
ASIDES = ("as my brother says", "I heard", "which is no surprise", "or so it seems", "again", "")


def picture(rng: np.random.Generator, kind: str) -> Image.Image:
    """Stripes or dots of any colour, width and direction, behind noise."""
    turn, step = rng.uniform(0, np.pi), rng.uniform(9, 16)
    y, x = np.mgrid[:SIDE, :SIDE] + rng.uniform(0, SIDE, (2, 1, 1))
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    wave = np.cos(2 * np.pi * along / step)
    if kind == "dots":
        wave = wave + np.cos(2 * np.pi * across / step) - 0.7
    ink = 1 / (1 + np.exp(-4 * wave))[..., None]
    paper, colour = rng.uniform(0, 255, (2, 3))
    noisy = paper + (colour - paper) * ink + rng.normal(0, 25, (SIDE, SIDE, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def voice(rng: np.random.Generator, kind: str) -> np.ndarray:
    """Three to five vowels, of 0.6 to 0.9 seconds in all, in a voice of this kind, behind noise."""
    pitch, tract = VOICES[kind] * np.exp(rng.normal(0, (0.07, 0.02)))
    lengths = rng.dirichlet(np.full(rng.integers(3, 6), 8)) * rng.uniform(0.6, 0.9) * RATE
    sounds = []
    for length in lengths.astype(int):
        steps = np.cumsum(np.linspace(*pitch * np.exp(rng.normal(0, 0.05, 2)), length) / RATE)
        sound = np.diff(np.floor(steps), prepend=0) + rng.normal(0, 0.02, length)
        for middle, width in zip(VOWELS[rng.choice(list(VOWELS))], WIDTHS, strict=True):
            sound = resonance(sound, middle * tract, width)
        sounds.append(sound * np.hanning(length) ** 0.3)
    spoken = np.concatenate(sounds)
    spoken *= 0.03 / np.sqrt(np.mean(spoken**2))
    return spoken + rng.normal(0, 0.003, len(spoken))


def resonance(sound: np.ndarray, middle: float, width: float) -> np.ndarray:
    """The sound behind one resonance of so many Hz: a filter with a pair of poles."""
    radius = np.exp(-np.pi * width / RATE)
    poles = [1, -2 * radius * np.cos(2 * np.pi * middle / RATE), radius**2]
    return lfilter([1 - radius], poles, sound)


def sentence(rng: np.random.Generator, kind: str) -> str:
    """A subject, a verb, a place, and mostly words that tell nothing."""
    parts = [rng.choice(words) for words in SENTENCES[kind]]
    aside = rng.choice(ASIDES)
    return " ".join(parts).capitalize() + (f", {aside}." if aside else ".")


def make(folder: Path, rows: int = 368, seed: int = 0) -> Path:
    """Write the files and `rows.csv`, and return its path; equal seeds make equal rows."""
    rng = np.random.default_rng(seed)
    scenes = list(product(("stripes", "dots"), VOICES, SENTENCES))
    each = rows // len(scenes)
    ends = np.round(np.cumsum(list(SHARES.values())) * each)
    for name in ("photos", "voices"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with (folder / "rows.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["photo", "voice", "words", "scene", "split"])
        for number in range(each * len(scenes)):
            scene, place = scenes[number % len(scenes)], number // len(scenes)
            photo, sound = f"photos/{number}.png", f"voices/{number}.wav"
            picture(rng, scene[0]).save(folder / photo)
            soundfile.write(folder / sound, voice(rng, scene[1]), RATE)
            split = list(SHARES)[int((place >= ends).sum())]
            table.writerow([photo, sound, sentence(rng, scene[2]), "-".join(scene), split])
    return folder / "rows.csv"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make pictures, sounds and sentences.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=368)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(make(given.folder, given.rows, given.seed))
