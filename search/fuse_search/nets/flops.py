"""How many operations something takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def _recurrence(x: torch.Size, weights: list[torch.Size], *_: object, **__: object) -> int:
    """Operations of recurrent layers over x [..., D]: each matrix is applied to each frame."""
    return 2 * x[:-1].numel() * sum(weight.numel() for weight in weights if len(weight) == 2)


def _layer(x: torch.Size, inner: torch.Size, outer: torch.Size, *_: object, **__: object) -> int:
    return _recurrence(x, [inner, outer])


FUSED = {torch.ops.aten._cudnn_rnn: _recurrence, torch.ops.aten.mkldnn_rnn_layer: _layer}
"""Kernels of whole recurrent layers, which the counter doesn't know."""


@contextmanager
def flop_counter() -> Iterator[FlopCounterMode]:
    """Counts the operations of what is run inside, those of fused kernels among them."""
    # fused attention hides its products from the counter, on some versions of torch
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False, custom_mapping=FUSED) as counter,
        ):
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
