import pytest
import torch

from fuse_search.nets.freeze import BLOCK, run, split
from fuse_search.nets.merged import build
from tiny import choice, parallel, rows, spec

DATA = rows()
TAPS = {"a": (-1, "block1"), "b": -1}


def network(topology, **options):
    merge = {"topology": choice(topology, **options), "tap": TAPS}
    return build(spec(merge=merge), DATA).eval()


@pytest.mark.parametrize(
    ("depth", "pooled"),
    [
        (0, {("a", 1): True, ("a", 3): False, ("b", 3): False}),  # the last is a vector
        (1, {("a", 1): True, ("a", 2): False, ("b", 2): False}),
        (2, {("a", 1): False, ("b", 1): False}),  # the tap lies where the rest begins
        (3, {}),
    ],
)
def test_a_branch_has_a_prefix_up_to_every_frozen_tap_and_to_what_is_trained(depth, pooled):
    found = split(network("parallel"), {"a": depth, "b": depth})
    assert {stream: prefix.pooling is not None for stream, prefix in found.items()} == pooled


def test_what_is_joined_into_a_branch_is_in_no_prefix():
    assert list(split(network("trunk", entry=2), {"a": 0, "b": 1})) == [("a", 2), ("b", 2)]
    assert list(split(network("cascade"), {"a": 0, "b": 0})) == [("a", 3)]
    rejoined = network("cascade", rejoin=choice("sum"))
    assert list(split(rejoined, {"a": 0, "b": 0})) == [("a", 1), ("a", 3)]


def test_one_pass_comes_to_the_bits_of_one_for_each_prefix():
    for topology in (
        network("parallel"),
        network("parallel", **parallel("conv")["topology"].options),
    ):
        prefixes = [p for p in split(topology, {"a": 1, "b": 1}).values() if p.name == "a"]
        images = DATA.inputs["image"] / 255
        assert len(images) % BLOCK
        found = run(prefixes, images)
        assert all(torch.equal(x, p(images)) for x, p in zip(found, prefixes, strict=True))
