"""The JSON Schema with which editors check space files."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

from fuse_search.errors import InputError
from fuse_search.space import json_schema, read_space
from fuse_search.space.document import read_document

SPACES = Path(__file__).parents[2] / "spaces"
BROKEN = Path(__file__).parent / "broken"
SCHEMA = json.loads(json.dumps(json_schema()))

# What only the reader can know: names and numbers that depend on other places, and files.
BEYOND_A_SCHEMA = {
    "grid_steps",
    "losses_of_types",
    "manifest_columns",
    "missing_files",
    "mixing",
    "normalisation",
    "simplex",
    "twice",
    "zero_weights",
}

# The example of the design, with the heads that its digits have.
EXAMPLE = """
study: fusion
data: {source: multidigits, image_size: 32}
tasks:
  left: {type: classification}
  right: {type: classification}
branches:                                   # what may be merged
  conv3x3:  {network: conv3x3,  weights: solo}
  conv5x5:  {network: conv5x5,  weights: solo}
  resnet18: {network: resnet18, weights: solo}
merge:
  use: {type: subset, min: 1}               # of the branches above
  topology:
    type: categorical
    choices:
      - parallel:
          fusion:
            type: categorical
            choices:
              - concat: {width: {type: int, low: 64, high: 512, log: true}}
              - sum
              - attention: {heads: {type: categorical, choices: [1, 2, 4]}}
              - gated
      - cascade
unfreeze: {depth: {type: int, low: 0, high: 5}}   # for every branch; or per branch by name
losses: {weights: {type: simplex}}
train: {epochs: 6, lr: {type: float, low: 1e-4, high: 1e-2, log: true}}
search: {trials: 24, maximize: mean_accuracy, pruner: hyperband}
"""

SHORT_FORMS = """
study: short
data: {source: {torchvision:CIFAR10: {overlay: true}}}
tasks: {left: classification, right: regression}
branches: {conv3x3: , mlp: {network: {mlp: {width: 8}}, weights: model.pt, input: text, size: 8}}
merge: {use: conv3x3, tap: {mlp: {type: int, low: -2, high: -1}}, topology: {ensemble: {}}}
unfreeze: {depth: {conv3x3: all, mlp: 1}, schedule: {gradual: {every: 2}}}
limits: {parameters: 20e6, latency_ms: 4}
losses: {weights: {type: categorical, choices: [equal, {type: simplex}]}}
train: {clip: {type: categorical, choices: [null, 1.0]}, augment: {flip: true}}
solo: {epochs: 2}
search: {sampler: {tpe: {startup: 3}}, minimize: loss}
"""

MANIFEST = """
study: own
data:
  source:
    manifest:
      path: rows.csv
      inputs:
        photo: {image: {size: 64}}
        left: {image: {column: left eye}}
        words: text
        body: {number: {columns: [age, weight]}}
      targets: {mood: {label: {classes: [sad, happy]}}, age: number}
      split: fold
      on_error: skip
  image_size: 32
tasks: {mood: classification, age: regression, tags: multilabel}
branches: {a: {network: conv3x3, input: photo}, b: {network: mlp, input: body}}
"""

PER_BRANCH = """
study: each
data: {source: multidigits}
tasks: {left: classification}
branches: {a: {network: conv3x3}, b: {network: mlp}}
merge:
  tap:
    a: {type: categorical, choices: [-1, [-1, block1]]}
    b: [-1, {type: int, low: -3, high: -2}]
  topology: {cascade: {order: {type: categorical, choices: [[a, b], [b, a]]}, rejoin: null}}
  branch_dropout: {type: float, low: 0, high: 0.5}
unfreeze:
  schedule: {a: {phases: {depths: [0, {type: int, low: 1, high: 2}, all]}}, b: at_once}
  lr_decay: {b: {type: float, low: 0.5, high: 1}}
  l2_sp: 0.1
losses: {auxiliary: 0.2}
train: {ema: {type: categorical, choices: [null, 0.9]}}
"""


def faults(value: Any) -> list[str]:
    return [
        f"{error.json_path}: {error.message}"
        for error in Draft7Validator(SCHEMA).iter_errors(value)
    ]


def test_the_shipped_schema_is_up_to_date() -> None:
    shipped = json.loads((SPACES / "schema.json").read_text(encoding="utf-8"))
    assert shipped == SCHEMA, "run: fuse-search schema"


def test_it_is_a_schema() -> None:
    Draft7Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("file", sorted(SPACES.glob("*.yaml")), ids=lambda file: file.name)
def test_shipped_spaces(file: Path) -> None:
    read_space(file)
    assert faults(read_document(file).value) == []
    first = file.read_text(encoding="utf-8").splitlines()[0]
    assert first == "# yaml-language-server: $schema=schema.json"


@pytest.mark.parametrize(
    "text", [EXAMPLE, SHORT_FORMS, MANIFEST, PER_BRANCH], ids=["long", "short", "own", "each"]
)
def test_it_accepts_what_the_reader_accepts(text: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.pt").touch()
    Path("rows.csv").touch()
    file = tmp_path / "space.yaml"
    file.write_text(text, encoding="utf-8")
    read_space(file)
    assert faults(read_document(file).value) == []


@pytest.mark.parametrize("file", sorted(BROKEN.glob("*.yaml")), ids=lambda file: file.stem)
def test_broken_spaces(file: Path) -> None:
    try:
        value = read_document(file).value
    except InputError:  # no mapping: editors say so themselves
        return
    assert bool(faults(value)) == (file.stem not in BEYOND_A_SCHEMA)


def test_every_key_is_described() -> None:
    def walk(schema: dict[str, Any], name: str) -> None:
        for key, value in schema.get("properties", {}).items():
            assert value.get("description"), f"{name}.{key}"
            walk(value, f"{name}.{key}")

    walk({"properties": SCHEMA["properties"]}, "")
