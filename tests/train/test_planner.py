import math

import pytest
import torch
from torch import nn

from fuse_search.data.record import Shape
from fuse_search.data.room import free_ram
from fuse_search.nets.branch import Branch, Entry
from fuse_search.nets.stages import find_stages
from fuse_search.spec import Choice
from fuse_search.train.machine import Machine, free_disk, measure_stages
from fuse_search.train.memory import Memory
from fuse_search.train.planner import Cost, Planner

# per second: 1000 bytes from RAM, 100 from the disk, 50 to it
SLOW = Machine(device=10_000.0, ram=1000.0, disk=100.0, write=50.0)


def pays(planner, cost, place="ram", epochs=5, views=1, there=False, key="k"):
    return planner.pays(key, cost, place, epochs, views, there)[0]


def test_what_is_slower_to_read_than_to_compute_is_computed():
    planner, cost = Planner(SLOW), Cost(10, seconds=1.0, nbytes=500)
    assert planner.gain(cost, "ram") == 0.5 and planner.gain(cost, "disk") == -4.0
    assert not pays(planner, cost, "disk", there=True)
    assert pays(planner, cost, "ram", there=True)


def test_storing_must_pay_within_the_trial():
    # a pass computes in 10 s, reads in 1 s and is written in 20 s: 30 + 1 * epochs < 10.5 * epochs
    cost = Cost(10, seconds=10.0, nbytes=1000)
    assert [epochs for epochs in range(1, 6) if pays(Planner(SLOW), cost, epochs=epochs)] == [4, 5]
    assert not pays(Planner(SLOW), cost, epochs=5, views=2)  # each view is filled: 60 s
    assert pays(Planner(SLOW), cost, epochs=12, views=2)
    assert not pays(Planner(SLOW), cost, epochs=12, views=20)  # no view comes twice


def test_what_was_computed_again_counts_for_the_next_trial():
    planner, cost = Planner(SLOW), Cost(10, seconds=10.0, nbytes=1000)
    asked = [pays(planner, cost, epochs=1) for _ in range(5)]
    assert asked == [False, False, False, True, True]  # 31 s against 10.5 s and 9 s for each before
    assert not pays(planner, cost, epochs=1, key="another")


def test_reasons_say_the_times():
    planner = Planner(SLOW)
    cost = Cost(10, seconds=10.0, nbytes=1000)
    assert planner.pays("k", cost, "ram", 4, 1, False)[1] == (
        "computing takes 10.00 s a pass, reading 1.00 s, storing 30.00 s"
    )
    assert "not worth it for 1 passes yet" in planner.pays("k", cost, "ram", 1, 1, False)[1]
    assert "no gain" in planner.pays("k", Cost(1, 0.002, 1000), "ram", 1, 1, True)[1]


def test_this_machine_can_be_measured(tmp_path):
    machine = Machine.measure(tmp_path / "new", torch.device("cpu"))
    assert all(0 < speed < math.inf for speed in vars(machine).values())
    assert machine.disk < machine.ram
    assert list((tmp_path / "new").iterdir()) == []
    assert free_ram() > 0 and free_disk(tmp_path / "not/there") > 0
    with pytest.raises(OSError):
        (tmp_path / "file").write_text("")
        Machine.measure(tmp_path / "file/cache", torch.device("cpu"))


def test_memory_holds_what_is_worth_most_within_its_budget():
    memory = Memory({"ram": 100}, torch.device("cpu"))
    some = torch.arange(10, dtype=torch.float32)  # 40 bytes
    kept, place = memory.hold("a", some, worth=1.0)
    assert place == "ram" and torch.equal(kept, some) and kept.data_ptr() != some.data_ptr()
    assert memory.get("a") == (kept, "ram") and memory.get("b") is None
    assert memory.hold("b", some, 3.0)[1] == "ram"
    assert memory.hold("poor", some, 0.5) == (some, "disk")
    assert memory.hold("c", some, 2.0)[1] == "ram"  # and a is gone
    memory.kept = {"c"}
    assert memory.hold("d", some, 2.5) == (some, "disk")
    assert memory.get("a") is None and memory.get("b")[1] == memory.get("c")[1] == "ram"
    assert memory.used("ram") == 80 <= 100
    assert [memory.place(n) for n in (100, 101)] == ["ram", "disk"]


def test_stages_whose_bits_hang_on_a_rows_place_are_found_where_few_numbers_would_show_it():
    """Of one row in 32, and that only at every second place."""

    class Placed(nn.Linear):
        def __init__(self, row):
            super().__init__(1, 1)
            self.row = row

        def forward(self, x):
            return x + self.weight * (x[:, :1] == self.row) * (torch.arange(len(x)) % 2)[:, None]

    x, entry = torch.arange(32.0)[:, None], Entry(Shape((1,)), torch.zeros(1), torch.ones(1))
    for row in (2, 4, 6, 8, 10):
        network = nn.Sequential(nn.Linear(1, 1), Placed(row))
        network[0].load_state_dict({"weight": torch.ones(1, 1), "bias": torch.zeros(1)})
        chain = find_stages(network, x[:2], classifier=False)
        branch = Branch(chain, entry, input="x", network=Choice(name="placed"))
        with torch.inference_mode():
            assert measure_stages(branch, x).steady == 1


def test_stages_that_take_something_of_all_rows_are_not_steady():
    """In whatever order: the rows beside a row must be others."""

    class Scaled(nn.Linear):
        def forward(self, x):
            return super().forward(x / x.abs().amax(0))

    network, x = nn.Sequential(nn.Linear(3, 3), Scaled(3, 64), nn.Linear(64, 2)), torch.randn(32, 3)
    chain = find_stages(network, x[:2], classifier=False)
    entry = Entry(Shape((3,)), torch.zeros(3), torch.ones(3))
    branch = Branch(chain, entry, input="x", network=Choice(name="scaled"))
    assert len(branch.stages) == 3 and measure_stages(branch, x).steady < 2
