"""Contract tests for the authors of plugins: what ours keep, theirs must keep, too.

    from fuse_search.testing import check_network, check_plugin

    def test_my_plugin():
        check_plugin("mine.py")

    def test_my_network_on_larger_images():
        check_network("mine", (3, 224, 224), width=64)

Each check trains tiny networks on the CPU, and raises AssertionError: which rule is broken.
"""

from .entries import (
    SECTIONS,
    check_entry,
    check_loss,
    check_metric,
    check_network,
    check_reader,
    check_source,
)
from .plugin import check_plugin
from .sample import sample, spec
from .trainings import check_cached, check_frozen, check_gradients, check_state

__all__ = [
    "SECTIONS",
    "check_cached",
    "check_entry",
    "check_frozen",
    "check_gradients",
    "check_loss",
    "check_metric",
    "check_network",
    "check_plugin",
    "check_reader",
    "check_source",
    "check_state",
    "sample",
    "spec",
]
