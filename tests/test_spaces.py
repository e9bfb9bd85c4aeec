"""The spaces that teach: the README lists each by its own words, and each can be trained."""

import re
from pathlib import Path

import pytest

from fuse_search.preflight import preflight
from fuse_search.space import read_space

SPACES = sorted(Path("spaces").glob("*.yaml"))
MINIMAL = """\
study: minimal
data: {source: multidigits}
tasks:
  left: {type: classification}
  right: {type: classification}
branches:
  small: {network: conv3x3}
  wide: {network: conv5x5}
merge:
  topology: {parallel: {fusion: {type: categorical, choices: [concat, gated]}}}
"""


def test_the_table_in_the_readme_is_that_of_the_files():
    listed = re.findall(
        r"^\| \[`(\w+)`\]\((spaces/\w+\.yaml)\) \| (.*) \|$", Path("README.md").read_text(), re.M
    )
    assert sorted(file for _, file, _ in listed) == [str(file) for file in SPACES]
    for name, file, about in listed:
        schema, first, *_ = Path(file).read_text().splitlines()
        assert schema == "# yaml-language-server: $schema=schema.json"
        assert first == f"# {about}"
        assert read_space(file).study == name


@pytest.mark.parametrize("file", SPACES, ids=lambda file: file.stem)
def test_each_fits_together(file, tmp_path):
    space = read_space(file)
    assert "image_size" in space.tree["data"]  # small enough for a laptop
    found = preflight(space, "cpu", tmp_path)
    assert found.corners
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_minimal_space_has_ten_lines(tmp_path):
    file = tmp_path / "minimal.yaml"
    file.write_text(MINIMAL)
    assert len(MINIMAL.splitlines()) == 10
    assert preflight(read_space(file), "cpu", tmp_path).corners
