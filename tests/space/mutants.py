# ruff: noqa: E501 (hostile values stand as they are)
"""Space files with something wrong in them: in their bytes, their lines, or their values."""

from __future__ import annotations

import copy
import random
import re
from functools import cache
from typing import Any

import yaml

# As they would stand in YAML.
HOSTILE = [
    *("", "~", "true", "-1", "0", "1", "0.5", "-0.0", "1e-300", "5e-324", "1e308", "-1e308", "2e9"),
    *(".nan", ".inf", "-.inf", "1_000_000", "0x7fffffff", "2147483648", "4294967296", "1e400"),
    *("9007199254740992", "9007199254740993", "9" * 30, "9" * 5000, "0" * 5000 + "1"),
    *("2026-11-22", "12:30:45", "!!python/object/apply:os.system [touch broken_into]"),
    *("!!python/name:os.system", "!!python/module:os", "!!binary aGk=", "!!set {a, b}", "!!omap []"),
    *("!!int x", "!!float [1]", "!<tag:yaml.org,2002:python/tuple> [1]", "!x y", "*gone", "&a *a"),
    *("&a [*a]", "&a {b: *a}", "{<<: [1]}", "{<<: *gone}", "[" * 60 + "]" * 60, "{a: " * 400),
    *("[" * 20_000, "- " * 300, "? [a]", "%YAML 9.9", "---", "...", "|", ">-", "@", "`", "%", '"'),
    *('"\\0"', '"\\ud800"', '"\\x1b]0;owned\\a"', '"a\\nb"', '"\\u202e"', "\u200b", "é☃", "𝟙"),
    *("x" * 300, "x" * 70_000, "a/b", "a\\b", "..", ".", "../../../etc", "/etc/passwd", "/", "~root"),
    *("/dev/zero", "/dev/stdin.pt", "/proc/self/mem", "/nowhere/x.pt", "../x.pt", '"a\\0b.pt"'),
    *("CON", "aux", "NUL.pt", "com1", "name.", " name ", "cache", "data", "solo", "mlflow.db", "artifacts"),
    *("https://example.org/x.pt", "file:///etc/passwd", "$HOME", "${HOME}", "%APPDATA%", "$(id)"),
    *("torchvision:../x", "torchvision:CIFAR10", "torchvision:os", "os.system", "__import__", "__class__"),
    *("type", "low", "high", "*", "<<", "all", "none", "mean", "resnet18", "mlp", "cascade", "ensemble"),
    *("[]", "{}", "[[]]", "[null]", "{null: 1}", "{[a]: 1}", "{? {a: b} : c}", "[a, a]", "{a: 1, a: 2}"),
    *("{type: float}", "{type: int, low: 0, high: 9007199254740992}", "{type: int, low: 5, high: 1}"),
    *("{type: float, low: 0, high: 1, step: 1e-300}", "{type: float, low: -1e308, high: 1e308}"),
    *("{type: float, low: 0, high: 1e308, step: 1e-9}", "{type: float, low: 1e-320, high: 1, log: true}"),
    *("{type: int, low: 1, high: 2, step: 9007199254740992}", "{type: categorical, choices: []}"),
    *("{type: categorical, choices: [1, 1000000000]}", "{type: subset, min: 0}", "{type: [float]}"),
    *("{type: categorical, choices: [{type: int, low: 1, high: 2}]}", "{type: simplex, low: 1e-300}"),
    *("{type: categorical, choices: [[-1, {type: categorical, choices: [-2, -3]}], [-2, {type: categorical, choices: [-3, block1]}]]}",),
    *("[-1, -1]", "[-1, block1]", "[[-1]]", "[-1, 0]", "{a: at_once}", "{gradual: {every: 0}}"),
    *("{a: {gradual: {every: 2}}, b: lp_ft}", "{phases: {depths: []}}", "[{type: int, low: 1, high: 2}]"),
    *("{parameters: 1}", "{latency_ms: 1e-9, memory_mb: 1}", "{flops: {type: int, low: 1, high: 2}}"),
    *("{type: simplex, step: 1e-300}", "{type: simplex, low: .nan}", "{type: simplex, step: 5e-324}"),
]  # fmt: skip
NUMBERS = [
    *("-2", "-1", "0", "1", "2", "3", "5", "7", "10", "64", "300", "1000000", "1000000000"),
    *("2147483647", "4294967296", "9007199254740992", "9007199254740993", "0.0", "0.5", "0.999999"),
    *("1e-9", "1e-45", "1e-300", "5e-324", "0.1", "0.30000000000000004", "1e9", "1e38", "1.7e308"),
]

BOMB = "b0: &b0 [x]\n" + "".join(
    f"b{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 9)}]\n" for i in range(1, 9)
)
MERGES = "m0: &m0 {x: 1}\n" + "".join(
    f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 9)}]}}\n" for i in range(1, 9)
)
WHOLE = ["", "\0", BOMB, MERGES, "- 1\n", "x", "\ufeff", "--- a\n--- b\n", "%TAG ! x\n", "x: " * 99]


_parsed = cache(yaml.safe_load)


def mutated(text: str, chance: random.Random) -> bytes:
    """The space file `text` after one to three random changes."""
    if chance.random() < 0.3:
        tree = copy.deepcopy(_parsed(text))
        for _ in range(chance.choice((1, 1, 2, 3))):
            tree = _changed(tree, chance)
        return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).encode()
    for _ in range(chance.choice((1, 1, 1, 1, 2, 4))):
        text = chance.choice(TEXT)(text, chance)
    content = bytearray(text.encode("utf-8", "surrogatepass"))
    for _ in range(chance.choice((*[0] * 8, 1, 5)) if content else 0):
        content[chance.randrange(len(content))] = chance.randrange(256)
    return bytes(content)


def _value(text: str, chance: random.Random) -> str:
    """One word or number of the file replaced."""
    spots = [m.span() for m in re.finditer(r"(?<=[:\[, ])[\w.-]+(?=[\],}\n ])", text)]
    if not spots:
        return text
    start, end = chance.choice(spots)
    return text[:start] + chance.choice(HOSTILE) + text[end:]


def _inserted(text: str, chance: random.Random) -> str:
    spot = chance.randint(0, len(text))
    return text[:spot] + chance.choice(HOSTILE) + text[spot:]


def _lines(text: str, chance: random.Random) -> str:
    """A line dropped, doubled, moved, indented, or cut off with all that follows."""
    lines = text.split("\n")
    at = chance.randrange(len(lines))
    line = lines.pop(at)
    changed: list[list[str]] = [[], [line, line], [" " * chance.randint(1, 9) + line]]
    changed += [["\t" + line], [line.strip()], [line[: chance.randint(0, len(line))]]]
    lines[at:at] = chance.choice(changed)
    lines.insert(chance.randint(0, len(lines)), line) if chance.random() < 0.2 else None
    return "\n".join(lines if chance.random() < 0.9 else lines[: at + 1])


def _whole(text: str, chance: random.Random) -> str:
    found = chance.choice(WHOLE)
    return chance.choice([found, found + text, text + found])


def _number(text: str, chance: random.Random) -> str:
    """One number of the file replaced by another: such a file may well fit together."""
    spots = [m.span() for m in re.finditer(r"(?<=[:\[, ])-?[\d.e-]+(?=[\],}\n ])", text)]
    if not spots:
        return text
    start, end = chance.choice(spots)
    return text[:start] + chance.choice(NUMBERS) + text[end:]


TEXT = [*[_number] * 6, _value, _value, _inserted, _lines, _lines, _whole]


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in nested lists and mappings."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    found = []
    for key, inner in items:
        found += [(tree, key), *(_places(inner) if isinstance(inner, dict | list) else ())]
    return found


def _changed(tree: Any, chance: random.Random) -> Any:
    """A value dropped, moved, swapped, wrapped, turned into another type, or a hostile one."""
    if not isinstance(tree, dict | list) or not (places := _places(tree)):
        return tree
    (container, key), (other, name) = chance.choice(places), chance.choice(places)
    value, elsewhere = copy.deepcopy(container[key]), copy.deepcopy(other[name])
    change = chance.choice(("drop", "move", "swap", "wrap", "type", "search", "value", "value"))
    if change == "drop":
        del container[key]
    elif change == "move" and isinstance(container, dict):
        container[str(name)] = elsewhere
    elif change == "swap":
        container[key], other[name] = elsewhere, value
    elif change == "wrap":
        container[key] = chance.choice(([value], {str(name): value}, [value] * 300))
    elif change == "type":
        container[key] = chance.choice((str(value), bool(value), [], {}, None, str(key), 10**20))
    elif change == "search":
        container[key] = {"type": "categorical", "choices": [value, elsewhere]}
    else:
        container[key] = chance.choice((*HOSTILE, -1, 0, 2**31, 2**62, 1e308, 1e-300, 0.3, True))
    return tree
