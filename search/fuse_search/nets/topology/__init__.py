"""Topologies: how branches are joined.

`parallel`, `trunk` and `cascade` join activations. One of them is made from the branches and the
chance that a row goes without a branch. It tells of each branch in `fed`, which reads an input, by
`taps` what of it is read; its `forward` takes these values by stream, an input or a higher value in
place of what lies above, and gives `Joined` features to the heads. `ensemble` joins the outputs of
whole networks, each trained alone.
"""

from .cascade import Cascade
from .ensemble import Ensemble
from .joined import Joined
from .parallel import Parallel
from .trunk import Trunk

Joins = Parallel | Trunk | Cascade

TOPOLOGIES = {"parallel": Parallel, "trunk": Trunk, "cascade": Cascade, "ensemble": Ensemble}

__all__ = ["TOPOLOGIES", "Cascade", "Ensemble", "Joined", "Joins", "Parallel", "Trunk"]
