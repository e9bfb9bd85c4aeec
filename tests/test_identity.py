"""Equal trainings have equal identities, however they are written."""

from __future__ import annotations

import pytest

from fuse_search.identity import identity
from tiny import choice, parallel, spec

STAGES = {"a": 3, "b": 3, "c": 3}


def same(one, other) -> bool:
    return identity(one, STAGES) == identity(other, STAGES)


def unfreeze(depth, schedule="at_once", **options) -> dict:
    return {"depth": depth, "schedule": choice(schedule, **options)}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (unfreeze("all"), unfreeze(3)),
        (unfreeze(3), unfreeze(7)),
        (unfreeze(0), unfreeze(0, "gradual", every=1)),
        (unfreeze(0), unfreeze(2, "gradual", every=2)),  # two epochs: it never comes to it
        (unfreeze(1), unfreeze({"a": 1, "b": 1})),
        (unfreeze(2, "gradual", every=1), unfreeze(1, "gradual", every=1)),
        (unfreeze(3, "lp_ft", first=1), unfreeze(3, "phases", depths=[0, "all"])),
        (unfreeze(2, "stalled", start=1), unfreeze(1)),  # two epochs: nothing can stall
        (unfreeze(1), unfreeze(1) | {"lr_decay": {"a": 1.0, "b": 1.0}, "l2_sp": 0.0}),
        (unfreeze(0), unfreeze(0) | {"l2_sp": 0.5}),  # nothing is pulled
    ],
)
def test_what_is_trained_counts_not_how_it_is_written(one, other):
    assert same(spec(unfreeze=one), spec(unfreeze=other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"unfreeze": unfreeze(1)}, {"unfreeze": unfreeze(2)}),
        ({"unfreeze": unfreeze(1)}, {"unfreeze": unfreeze(1, "gradual", every=1)}),
        ({"unfreeze": unfreeze(1)}, {"unfreeze": unfreeze(1) | {"lr_decay": 0.5}}),
        ({"unfreeze": unfreeze(1)}, {"unfreeze": unfreeze(1) | {"l2_sp": {"a": 0.1, "b": 0}}}),
        (
            {"unfreeze": unfreeze(3, "stalled"), "train": {"epochs": 3}},
            {"unfreeze": unfreeze(3, "phases", depths=[0, 0, 1]), "train": {"epochs": 3}},
        ),
        ({"merge": parallel("sum")}, {"merge": parallel("gated")}),
        ({"seed": 1}, {"seed": 2}),
        ({"train": {"lr": 0.1}}, {"train": {"lr": 0.2}}),
    ],
)
def test_what_makes_a_difference_is_in_it(one, other):
    assert not same(spec(**one), spec(**other))


def test_entries_of_a_cascade_beyond_the_stages_are_one():
    def cascade(entry, order=()):
        return spec(merge={"topology": choice("cascade", entry=entry, order=order)})

    assert same(cascade(2), cascade(5)) and not same(cascade(1), cascade(2))
    assert same(cascade(1), cascade(1, ("a",))) and not same(cascade(1), cascade(1, ("b",)))


def test_a_tap_by_a_name_may_lie_anywhere_in_a_cascade():
    """Above `block1` of `b` no stage can be dropped, so each of these trains other stages."""

    def tapped(entry, depth):
        topology = choice("cascade", entry=entry, order=("a", "b"))
        merge = {"topology": topology, "tap": {"a": -1, "b": ("block1", -1)}}
        return spec(merge=merge, unfreeze=unfreeze({"a": "all", "b": depth}))

    assert not same(tapped(2, 1), tapped(2, 2)) and not same(tapped(2, 2), tapped(2, 3))
    assert not same(tapped(0, 1), tapped(1, 1)) and not same(tapped(2, 1), tapped(5, 1))
    assert same(tapped(2, 3), tapped(2, 7))


def test_what_rejoins_a_cascade_counts():
    def cascade(rejoin):
        options = {"entry": 0, "order": (), "rejoin": rejoin}
        return spec(merge={"topology": choice("cascade", **options)})

    assert not same(cascade(None), cascade(choice("sum")))


def test_taps_in_any_order_are_the_same():
    def tapped(tap):
        return spec(merge={"tap": tap, **parallel()})

    assert same(tapped(-1), tapped({"a": (-1,), "b": -1}))
    assert same(tapped((-2, -1)), tapped((-1, -2)))
    assert not same(tapped(-1), tapped((-1, -2)))
    assert not same(tapped("block1"), tapped("block2"))


def test_dropping_branches_counts_where_one_can_be_dropped():
    def dropping(chance, **merge):
        return spec(merge={"branch_dropout": chance, **parallel(), **merge})

    assert not same(dropping(0.0), dropping(0.5))
    assert same(dropping(0.5), dropping({"a": 0.5, "b": 0.5}))
    assert not same(dropping(0.5), dropping({"a": 0.5, "b": 0.0}))
    assert same(dropping(0.0, use=("a",)), dropping(0.5, use=("a",)))
    cascade = {"topology": choice("cascade", entry=0, order=())}
    assert same(dropping(0.0, **cascade), dropping(0.5, **cascade))


def test_auxiliary_losses_count_by_branch():
    def judged(weight):
        return spec(losses={"auxiliary": weight})

    assert same(judged(0.3), judged({"a": 0.3, "b": 0.3}))
    assert not same(judged(0.3), judged({"a": 0.3, "b": 0.0}))


def test_a_trunks_entry_beyond_the_hosts_stages_is_the_last():
    def entered(entry, tap=-1):
        options = {"host": ("a",), "entry": entry, "fusion": choice("sum")}
        return spec(merge={"tap": tap, "topology": choice("trunk", **options)})

    assert same(entered(2), entered(5)) and not same(entered(1), entered(2))
    assert same(entered(1, -2), entered(2, -2)) and same(entered(2, (-3, -1)), entered(5, (-3, -1)))
    assert not same(entered(2, "block1"), entered(5, "block1"))  # may lie anywhere


def test_as_many_experts_as_taps_are_all():
    def experts(k, tap=-1, use=("a", "b")):
        return spec(merge={"tap": tap, "use": use, **parallel("experts", width=4, k=k)})

    assert same(experts(None), experts(2)) and same(experts(2), experts(7))
    assert not same(experts(1), experts(2)) and same(experts(1, use=("a",)), experts(5, use=("a",)))
    three = {"a": (-1, -2), "b": -1}
    assert same(experts(3, three), experts(None, three)) and not same(experts(2, three), experts(3))
    assert not same(experts(2, three), experts(3, three))

    def others(topology, k, tap=-1, **options):
        of = "fusion" if topology == "trunk" else "rejoin"
        options |= {of: choice("experts", width=4, k=k)}
        return spec(merge={"tap": tap, "topology": choice(topology, **options)})

    trunk = {"topology": "trunk", "tap": (-1, -2), "host": ("a",), "entry": 1}
    assert same(others(k=3, **trunk), others(k=4, **trunk))  # one of the host, two of the other
    assert not same(others(k=2, **trunk), others(k=3, **trunk))
    cascade = {"topology": "cascade", "order": (), "entry": 0}
    assert same(others(k=2, **cascade), others(k=None, **cascade))


def test_taps_are_joined_as_their_fusion_is_meant():
    def joined(fusion, taps):
        options = {"fusion": choice(fusion, width=4), "taps": taps}
        return spec(merge={"topology": choice("parallel", **options)})

    assert same(joined("sum", None), joined("sum", "vectors"))
    assert same(joined("conv", None), joined("conv", "maps"))
    assert not same(joined("sum", "maps"), joined("sum", "vectors"))


def test_the_content_of_a_checkpoint_counts_and_not_its_name_alone(tmp_path):
    file = tmp_path / "weights.pt"
    branch = {"a": {"network": choice("conv3x3"), "weights": choice(str(file))}}
    file.write_bytes(b"one")
    before = identity(spec(branches=branch))
    file.write_bytes(b"other")
    assert identity(spec(branches=branch)) != before


def test_the_name_of_the_study_and_unused_branches_do_not_count():
    used = {"merge": {"use": ("a",)}}
    renamed = spec(study="renamed", **used)
    assert same(spec(**used), renamed)


def test_a_trunks_host_is_the_first_one_in_use():
    def hosted(use, host):
        fused = {"entry": 1, "fusion": choice("sum")}
        branches = {name: {"network": choice("conv3x3", width=8)} for name in "abc"}
        merge = {"use": use, "topology": choice("trunk", host=host, **fused)}
        return spec(branches=branches, merge=merge)

    assert same(hosted(("b",), ("a",)), hosted(("b",), ("b",)))
    assert same(hosted(("a", "b"), ()), hosted(("a", "b"), ("a", "b")))
    assert not same(hosted(("a", "b"), ("a",)), hosted(("a", "b"), ("b",)))
    three = ("a", "b", "c")  # whose order is that in which they are joined
    assert same(hosted(three, ("b",)), hosted(three, ("b", "a", "c")))
    assert not same(hosted(three, ("b",)), hosted(three, ("b", "c")))
