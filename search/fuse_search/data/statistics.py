"""Means and standard deviations of rows of an input, on the CPU, as float32."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS_AT_ONCE = 256


def of_numbers(values: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Of vectors [N, D], or of frames [N, T, D + 1] where there are any: both [D]."""
    frames, chunks = values.ndim == 3, rows.split(ROWS_AT_ONCE)
    count, total, squares = 0, torch.zeros(()), torch.zeros(())

    def numbers(part: Tensor) -> Tensor:
        chunk = values[part].cpu().double()
        return chunk[..., :-1][chunk[..., -1] > 0] if frames else chunk

    for part in chunks:
        chunk = numbers(part)
        count, total = count + len(chunk), total + chunk.sum(0)
    mean = total / max(count, 1)
    for part in chunks:  # around the mean: numbers may be large and alike
        squares = squares + (numbers(part) - mean).square().sum(0)
    std = (squares / max(count, 1)).sqrt().float()
    return mean.float(), torch.where(std == 0, 1.0, std)


def of_images(images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Of images [N, C, H, W] in [0, 1], for each channel: both [C]."""
    # Histograms are exact, so every device gives the same numbers.
    channels = images.shape[1]
    counts = torch.zeros(channels, 256, dtype=torch.int64, device=images.device)
    for part in rows.split(ROWS_AT_ONCE):
        chunk = images[part]
        counts += torch.stack(
            [chunk[:, c].flatten().bincount(minlength=256) for c in range(channels)]
        )
    share = counts.cpu().double() / counts[0].sum().item()
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ levels
    variance = (share * (levels - mean[:, None]) ** 2).sum(1)
    return mean.float(), variance.sqrt().clamp(min=1 / 255).float()
