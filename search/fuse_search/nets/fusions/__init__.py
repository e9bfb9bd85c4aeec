"""Fusions: the taps of several branches in, one vector or map out.

An entry is a module made from the taps' widths; its options are the keyword-only parameters of
`__init__`. Its `forward` takes a list of vectors [B, width_i], or of maps with the channels last
[B, H, W, width_i] that share one grid, and returns [B, out_features] or [B, H, W, out_features].
One tap is enough for each. `on_maps = True` marks the entries that are meant for maps.
"""

from .attention import Attention, CrossAttention
from .bilinear import LMF, MUTAN
from .capsules import Routing
from .gates import Experts, Gated
from .maps import Conv, FiLM, SqueezeExcite
from .vectors import Concat, Max, Mean, Sum, Weighted

FUSIONS = {
    "concat": Concat,
    "sum": Sum,
    "mean": Mean,
    "max": Max,
    "weighted": Weighted,
    "gated": Gated,
    "experts": Experts,
    "attention": Attention,
    "cross_attention": CrossAttention,
    "lmf": LMF,
    "mutan": MUTAN,
    "film": FiLM,
    "squeeze_excite": SqueezeExcite,
    "conv": Conv,
    "routing": Routing,
}
