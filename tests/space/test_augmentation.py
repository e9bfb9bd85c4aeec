"""How augmentation and mixing are written in a space."""

import json
from pathlib import Path

import yaml
from jsonschema import Draft7Validator

from fuse_search.space import read_space
from fuse_search.spec import Choice
from fuse_search.suggest import Corner, suggest

SCHEMA = json.loads((Path(__file__).parents[2] / "spaces/schema.json").read_text(encoding="utf-8"))
SPACE = """
study: augmented
data: {source: multidigits}
tasks: {left: classification}
branches: {conv3x3: }
train:
  mixup: {type: float, low: 0, high: 1}
  cutmix: 1
  augment:
    flip: true
    policy:
      type: categorical
      choices:
        - none
        - trivial: {share: {type: float, low: 0.5, high: 1}}
        - rand: {magnitude: {type: int, low: 0, high: 30}}
"""


class Named(Corner):
    """A corner that notes what it is asked for."""

    def __init__(self, policy: str) -> None:
        super().__init__(high=False, choices={"train.augment.policy": policy})
        self.names: list[str] = []

    def suggest_float(self, name: str, *args: float, **options: object) -> float:
        self.names.append(name)
        return super().suggest_float(name, *args, **options)

    def suggest_int(self, name: str, *args: int, **options: object) -> int:
        self.names.append(name)
        return super().suggest_int(name, *args, **options)


def test_strengths_are_searched_where_they_have_a_meaning(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(SPACE, encoding="utf-8")
    space, found = read_space(file), {}
    for policy in ("none", "trivial", "rand"):
        asked = Named(policy)
        train = suggest(space, asked).train
        found[policy] = (train.augment.policy.options, asked.names)
        assert train.augment.policy.name == policy and (train.mixup, train.cutmix) == (0, 1)
    assert found == {
        "none": ({}, ["train.mixup"]),
        "trivial": ({"share": 0.5}, ["train.mixup", "trivial.share"]),
        "rand": ({"operations": 2, "magnitude": 0}, ["train.mixup", "rand.magnitude"]),
    }
    Draft7Validator(SCHEMA).validate(yaml.safe_load(SPACE))


def test_off_is_the_default(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(SPACE.partition("train:")[0], encoding="utf-8")
    train = suggest(read_space(file), Corner(high=False)).train
    assert (train.mixup, train.cutmix, train.augment.policy) == (0, 0, Choice(name="none"))
