"""YAML as people mean it, the line of every value, and overrides."""

import math
from pathlib import Path

import pytest

from fuse_search.errors import InputError
from fuse_search.space.document import Document, dotted, quote, read_document


def read(tmp_path: Path, text: str, *overrides: str) -> Document:
    file = tmp_path / "space.yaml"
    file.write_text(text, encoding="utf-8")
    return read_document(file, overrides)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E3", 1000.0),
        ("-.5", -0.5),
        ("1_000", 1000),
        ("010", 10),
        ("0x1f", 31),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("1:30", "1:30"),
        ("2026-01-31", "2026-01-31"),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
        ("'1e-4'", "1e-4"),
        ("yes", True),
        ("null", None),
        ("", None),
        ("!!str 5", "5"),
    ],
)
def test_scalars(tmp_path: Path, text: str, value: object) -> None:
    found = read(tmp_path, f"a: {text}\n").value["a"]
    assert found == value
    assert type(found) is type(value)


def test_every_value_knows_its_line(tmp_path: Path) -> None:
    document = read(tmp_path, "a:\n  b: 1\n  c:\n    - 2\n    - d: 3\n")
    file = tmp_path / "space.yaml"
    assert document.where(("a", "b")) == f"{file}:2"
    assert document.where(("a", "c", 1, "d")) == f"{file}:5"
    assert document.where(("a", "c", 1, "missing")) == f"{file}:5"
    assert document.where(("other",)) == f"{file}:1"


def test_merged_mappings(tmp_path: Path) -> None:
    text = "a: &a {x: 1, y: 2}\nb: &b {x: 3}\nc: {<<: *a, y: 5}\nd: {<<: [*a, *b]}\n"
    value = read(tmp_path, text).value
    assert value["c"] == {"x": 1, "y": 5}
    assert value["d"] == {"x": 1, "y": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: [1\nc: 2\n", ":3: isn't YAML that can be read: expected ',' or ']'"),
        ("a: *gone\n", ":1: isn't YAML that can be read: found undefined alias"),
        ("a: 1\n---\nb: 2\n", ":2: isn't YAML that can be read: but found another document"),
        ("a: &a [*a]\n", ": isn't YAML that can be read: an alias contains itself"),
        ("a: &a {<<: *a}\n", ": isn't YAML that can be read: an alias contains itself"),
        ("a: " + "[" * 60 + "]" * 60, ": isn't YAML that can be read: too deeply nested"),
        ("[" * 5000, ": isn't YAML that can be read: too deeply nested"),
        ("a: \x00\n", ": isn't YAML: special characters are not allowed, at character 4"),
        ("7\n", ":1: must be a mapping with study, data, tasks, branches, …, found 7"),
    ],
)
def test_not_a_space(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'space.yaml'}{message}")


@pytest.mark.parametrize("bomb", ["[*{0}, *{0}, *{0}, *{0}]", "{{<<: [*{0}, *{0}, *{0}, *{0}]}}"])
def test_alias_bomb(tmp_path: Path, bomb: str) -> None:
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{i}: &a{i} {bomb.format(f'a{i - 1}')}" for i in range(1, 30)]
    with pytest.raises(InputError, match="over 10000 values"):
        read(tmp_path, "\n".join(lines))


def test_not_text(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_bytes(b"a: \xff")
    with pytest.raises(InputError, match="must be UTF-8 text: byte 4: invalid start byte"):
        read_document(file)
    with pytest.raises(InputError, match="can't be read: Is a directory"):
        read_document(tmp_path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\na: 2\n", (("a",), "stands twice, on lines 1 and 2")),
        ("? [a]\n: 1\n", ((), "a key must be a word, found a list or mapping in its place")),
        ("a: !!int x\n", (("a",), "isn't a plain YAML value of type int, found x")),
        ("a: !!bool x\n", (("a",), "isn't a plain YAML value of type bool, found x")),
        ("a: !!binary eA==\n", (("a",), "isn't a plain YAML value of type binary, found eA==")),
        ("a: !!timestamp x\n", (("a",), "isn't a plain YAML value of type timestamp, found x")),
        ("a: !own x\n", (("a",), "isn't a plain YAML value of type own, found x")),
        ('a: "\\ud800"\n', (("a",), 'isn\'t valid Unicode, found "\\uD800"')),
        ("a: {<<: 5}\n", (("a", "<<"), "merges mappings only, found 5")),
    ],
)
def test_problems(tmp_path: Path, text: str, problem: object) -> None:
    assert read(tmp_path, text).problems == [problem]


def test_problems_are_listed_in_the_order_of_the_file(tmp_path: Path) -> None:
    document = read(tmp_path, "a: 1\nb: 2\n", "c=3")
    document.problem(("b",), "second", "; did you mean 7?", found=2)
    document.problem(("a",), "first")
    with pytest.raises(InputError) as caught:
        document.raise_problems()
    file = tmp_path / "space.yaml"
    assert str(caught.value).splitlines() == [
        f"{file}:1: a: first",
        f"{file}:2: b: second, found 2; did you mean 7?",
    ]


def test_too_many_problems_are_told_at_once(tmp_path: Path) -> None:
    document = read(tmp_path, "a: 1\n")
    with pytest.raises(InputError) as caught:
        for i in range(1000):
            document.problem(("a",), f"problem {i}")
    assert len(str(caught.value).splitlines()) == 100


def test_overrides(tmp_path: Path) -> None:
    text = "a: {b: 1, c: [{d: 1}, 2]}\ne: text\n"
    overrides = ("a.b=1e-4", "a.c[0].d=[x, null]", "a.c[1]=", "e.f.g={h: true}", "new=a=b")
    document = read(tmp_path, text, *overrides)
    assert document.value == {
        "a": {"b": 1e-4, "c": [{"d": ["x", None]}, None]},
        "e": {"f": {"g": {"h": True}}},
        "new": "a=b",
    }
    assert document.where(("a", "b")) == "--set a.b=1e-4"
    assert document.where(("a", "c", 0, "d", 1)) == "--set a.c[0].d=[x, null]"
    assert document.where(("a", "c")) == f"{tmp_path / 'space.yaml'}:1"


def test_the_later_override_wins(tmp_path: Path) -> None:
    assert read(tmp_path, "a: 1\n", "a=2", "a=3").value == {"a": 3}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a", "must be key.path=value, such as train.epochs=2"),
        ("=1", "must be key.path=value, such as train.epochs=2"),
        ("a..b=1", "must be key.path=value, such as train.epochs=2"),
        ("[0]=1", "must be key.path=value, such as train.epochs=2"),
        ("a[-1]=1", "must be key.path=value, such as train.epochs=2"),
        ("a=[1", ":1: isn't YAML that can be read: expected"),
        ("a[2]=1", "a has no entry [2], it has 2"),
        ("b[0]=1", "b has no entry [0], it has 0"),
    ],
)
def test_wrong_overrides(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, "a: [1, 2]\nb: 5\n", override)
    text = str(caught.value).removeprefix(f"--set {override}").removeprefix(": ")
    assert text.startswith(message)


def test_dotted() -> None:
    assert dotted(("a", 0, "b", "c")) == "a[0].b.c"
    assert dotted(("a", "line\nbreak")) == "a.'line\\nbreak'"


def test_quote() -> None:
    assert quote({"b": [1, None], "a": "x y"}) == "{b: [1, null], a: x y}"
    assert quote("x" * 100) == "x" * 59 + "…"
