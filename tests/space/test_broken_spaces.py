# ruff: noqa: E501 (messages stand here as they are printed)
"""Broken spaces through the real command line: the messages, exit code 2, and nothing created."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fuse_search

BROKEN = Path(__file__).parent / "broken"
SOUND = Path(__file__).parent / "sound.yaml"

# What follows the file's name on every line of the message.
EXPECTED = {
    "a_list": """
:1: must be a mapping with study, data, tasks, branches, …, found [{study: broken}, {data: multidigits}]
""",
    "branch_names": """
:8: merge.use[1]: must be one of the branches, found larg; did you mean 'large'?
:8: merge.use: names one of them twice, found [small, larg, small]
:9: merge.topology.cascade.order[0]: must be one of the branches, found big; there is large, small
:10: unfreeze.depth.smal: no such branch; did you mean 'small'?
:11: losses.weights.rihgt: no such task; did you mean 'right'?
:11: losses.weights: the weight of task 'right' is missing
""",
    "empty": """
:1: is empty; it must be a mapping with study, data, tasks, branches, …
""",
    "fusion_options": """
:15: merge.topology.choices[0].parallel.fusion.choices[0].gated.heads: gated has no option of this name; there is width (heads belongs to attention, cross_attention)
:16: merge.topology.choices[0].parallel.fusion.choices[1].attention.head: attention has no option of this name; did you mean 'heads'?
:17: merge.topology.choices[0].parallel.fusion.choices[2].concat.width: must be greater than or equal to 1, found 0
:18: merge.topology.choices[0].parallel.fusion.choices[3]: no such entry of fusions, found average; there is attention, concat, conv, cross_attention, experts, film, gated, lmf, max, mean, mutan, routing, … (15 in all) (own ones need --plugin)
:19: merge.topology.choices[0].parallel.fusion.choices[4]: must be one of the fusions, written NAME or {NAME: {option: value}}, found {type: sum, width: 3}; there is attention, concat, conv, cross_attention, experts, film, gated, lmf, max, mean, mutan, routing, … (15 in all)
:20: merge.topology.choices[1].ensemble.fusion: ensemble has no option of this name; there is weights (fusion belongs to parallel, trunk)
""",
    "grid_steps": """
:7: losses.weights.fixed: a grid needs a step, or categorical, found simplex
:9: train.lr: a grid can't have log: use categorical, found float
:10: train.dropout: a grid needs a step, or categorical, found float
:11: train.batch_size: a grid of more than 1000 values needs a larger step, found 100000
""",
    "impossible_ranges": """
:8: merge.use: must be min ≤ max ≤ 2, the number of branches, found {min: 3, max: 2}
:9: merge.tap.high: must be less than or equal to -1, found 0
:11: train.epochs: holds a whole number: use type int, found float
:12: train.lr: low (0.01) must not be above high (0.0001)
:13: train.weight_decay: log needs low above 0, found 0.0
:14: train.warmup.high: must be low plus whole steps: 0.4 is the nearest, found 0.5
:15: train.clip: must be greater than 0, found -0.0001
:16: train.dropout.high: must be less than 1, found 1.0
""",
    "lists_for_mappings": """
:1: study: must be a valid string, found [broken]
:2: data: must be a mapping with source, image_size, found multidigits
:3: tasks: must be a mapping from name to settings, found [left, right]
:5: branches.small: must be a mapping with network, weights, input, size, mean, std, found [conv3x3]
:6: train: must be a mapping with epochs, batch_size, lr, optimizer, fusion_lr, head_lr, weight_decay, schedule, warmup, clip, dropout, label_smoothing, mixup, cutmix, drop_path, ema, augment, precision, found [epochs, 5]
""",
    "losses": """
:4: tasks.left.class_weights: must be 'balanced' or must be a mapping, found balnced; did you mean 'balanced'?
:5: tasks.marks.loss.focal.gamma: must be greater than or equal to 0, found -1
:6: tasks.right.loss: no such entry of losses, found focl; did you mean 'focal'? (own ones need --plugin)
:6: tasks.right.class_weights: must be greater than 0, found {low: 0}
""",
    "losses_of_types": """
:4: tasks.left.loss: huber is for regression, not for classification, found huber
:5: tasks.age.class_weights: has no meaning for regression, found {old: 2.0}
:5: tasks.age.loss: focal is for classification and multilabel, not for regression, found focal
:6: tasks.right.loss: focal is for classification and multilabel, not for ordinal, found focal
""",
    "normalisation": """
:5: branches.a.mean: needs std beside it, found [0.1]
:6: branches.b.std: needs mean beside it, found [0.2]
:7: branches.c.std: must have as many numbers as mean, which has 3, found [0.2]
""",
    "manifest": """
:4: data.source.manifest: manifest needs the option 'path'
:6: data.source.manifest.inputs.photo.image.colum: image has no option of this name; did you mean 'column'?
:6: data.source.manifest.inputs.photo.image.size: must be a valid integer, found big
:7: data.source.manifest.inputs.1st: a name is up to 64 letters, digits, - and _, and begins with a letter, found 1st
:8: data.source.manifest.inputs.words: no such entry of readers, found txt; did you mean 'text'? (own ones need --plugin)
:9: data.source.manifest.inputs.voice: must be one of the readers, written NAME or {NAME: {option: value}}, found null; there is array, audio, category, image, number, text
:10: data.source.manifest.inputs.body: data can't be searched: it is the same for all trials, found {type: float, low: 0, high: 1}
:11: data.source.manifest.inputs.age.number.columns: must be a list, found age
:12: data.source.manifest.targets: must be a mapping from name to settings, found [mood]
:13: data.source.manifest.val_share: must be less than 1, found 1
:14: data.source.manifest.on_error: must be 'fail' or 'skip', found skp; did you mean 'skip'?
:15: data.source.manifest.splits: manifest has no option of this name; did you mean 'split'?
""",
    "manifest_columns": """
:5: data.source.manifest.path: must be a file that is there, found gone.csv (in HERE)
:6: data.source.manifest.root: must be a folder that is there, found gone (in HERE)
:9: data.source.manifest.targets.moood: no such task; did you mean 'mood'?
:10: data.source.manifest.targets.mood: must be label for classification, found number
:11: data.source.manifest.targets.age: must be number for regression, found label
:14: branches.a.input: must be one of the inputs, found foto; did you mean 'photo'?
:15: branches.b.input: is missing; say which input this branch reads: photo, body
""",
    "metrics": """
:7: search: give maximize or minimize, not both, found {maximize: mean_acuracy, minimize: left_mae}
:8: search.maximize: no such metric, found mean_acuracy; did you mean 'mean_accuracy'?
:9: search.minimize: no such metric, found left_mae; did you mean 'left_macro_f1'?
:10: search.trials: must be greater than or equal to 1, found 0
:11: search.sampler: no such entry of samplers, found tpee; did you mean 'tpe'? (own ones need --plugin)
:12: search.pruner.hyperband.factr: hyperband has no option of this name; did you mean 'factor'?
""",
    "misplaced_domains": """
:2: seed: seed can't be searched: it is the same for all trials, found {type: int, low: 0, high: 9}
:5: data.image_size: data can't be searched: it is the same for all trials, found {type: categorical, choices: [24, 32]}
:8: branches.small.network: branches can't be searched: it is the same for all trials, found {type: categorical, choices: [conv3x3, conv5x5]}
:10: merge.tap.choices[1]: a choice can't be or hold a domain, but in an entry's options, found [-2, {type: int, low: -4, high: -3}]
:11: losses: must be a mapping with weights, auxiliary, found {type: subset}
:12: unfreeze.depth: a simplex fits losses.weights only, found simplex
:12: unfreeze.schedule: a range can't stand where a name is wanted, categorical can, found int
:14: train.lr.choices[1]: a choice can't be or hold a domain, but in an entry's options, found {type: float, low: 0.0001, high: 0.01}
:14: train.lr.choices[2]: names one choice twice, found 0.1
:15: train.optimizer: a subset fits merge.use only, found subset
""",
    "missing_files": """
:7: branches.third.weights: must be a file that is there, found gone.safetensors (in HERE)
:8: branches.fourth.weights.solo.tasks[0]: must be one of the tasks, found lift; did you mean 'left'?
:8: branches.fourth.weights: must be a file that is there, found gone/too.pt; there is no folder HERE/gone
""",
    "names": """
:1: study: must be up to 64 letters, digits, . - and _, and begin with a letter or digit, found my study/2
:2: data.source: no such entry of sources, found multidigit; did you mean 'multidigits'? (own ones need --plugin)
:3: tasks.left eye: a name is up to 64 letters, digits, - and _, and begins with a letter, found left eye
:4: branches: must be a mapping from name to settings, found null
""",
    "networks": """
:7: branches.third.network: no such entry of networks, found resnet19; did you mean 'resnet18'? (own ones need --plugin)
:8: branches.fourth.network.conv3x3.depth: conv3x3 has no option of this name; did you mean 'width'?
:9: branches.fifth.network.resnet18.width: resnet18 has no option of this name; it has none (width belongs to conv3x3, conv5x5, mlp, lstm, gru, transformer, conv1d)
:10: branches.sixth.network: must be one of the networks, written NAME or {NAME: {option: value}}, found [resnet18]; there is alexnet, conv1d, conv3x3, conv5x5, convnext_base, convnext_large, convnext_small, convnext_tiny, densenet121, densenet161, densenet169, densenet201, … (87 in all)
:11: branches.9th: a name is up to 64 letters, digits, - and _, and begins with a letter, found 9th
:11: branches.9th.network: no such entry of networks, found 9th; there is alexnet, conv1d, conv3x3, conv5x5, convnext_base, convnext_large, convnext_small, convnext_tiny, densenet121, densenet161, densenet169, densenet201, … (87 in all) (own ones need --plugin)
:12: branches.type: no branch can have this name, which is a key of domains
""",
    "not_yaml": """
:8: isn't YAML that can be read: expected ',' or '}', but got ':'
""",
    "numbers": """
:7: train.clip: isn't a plain YAML value of type float, found abc
:7: train.epochs: must be at most 9007199254740992 in size, found 99999999999999999999
:7: train.lr: must be finite, found .inf
:7: train.weight_decay: must be finite, found .nan
:7: train.clip: must be a valid number, found abc
""",
    "simplex": """
:8: losses.weights.low: 2 weights of at least this exceed one, found 0.6
:8: losses.weights.step: must divide one, found 0.3
""",
    "twice": """
:7: train.lr: stands twice, on lines 7 and 7
:9: branches: stands twice, on lines 4 and 9
""",
    "unknown_domains": """
:7: merge.topology.type: no such type of domain, found categorial; did you mean 'categorical'?
:8: unfreeze.depth.type: no such type of domain, found integer; did you mean 'int'?
:10: train.lr.type: no such type of domain, found loguniform; there is categorical, float, int, simplex, subset
:11: train.epochs: int needs the key 'low', found {type: int, min: 1, high: 2}
:11: train.epochs.min: int has no such key; there is high, log, low, step, type
:12: train.clip.choices: must not be empty, found []
:13: train.dropout: categorical needs the key 'choices', found {type: categorical}
:14: train.batch_size.type: no such type of domain, found [int]; did you mean 'int'?
""",
    "unknown_keys": """
:1: the key 'tasks' is missing
:3: task: no such key; did you mean 'tasks'?
:9: train.learning_rate: no such key; there is augment, batch_size, clip, cutmix, drop_path, dropout, ema, epochs, fusion_lr, head_lr, label_smoothing, lr, … (18 in all)
:10: train.optimzer: no such key; did you mean 'optimizer'?
""",
    "wrong_types": """
:7: merge.use: must be a list of branches, found 7
:7: merge.tap: must be less than or equal to -1, found [last, 0]
:8: unfreeze.depth: must be a valid integer or must be 'all', found most; there is all
:10: train.epochs: must be a valid integer, found five
:11: train.batch_size: must be a valid integer, found 2.5
:12: train.lr: must be a valid number, found fast
:13: train.augment.flip: must be a valid boolean, found 1
:14: train.precision: must be 'auto', 'fp32' or 'bf16', found fp16; did you mean 'bf16'?
""",
    "mixing": """
:7: train.batch_size: must be at least 2 for mixup and cutmix, which mix a batch's rows, found 1
:8: solo.batch_size: must be at least 2 for mixup and cutmix, which mix a batch's rows, found 1
""",
    "words": """
:3: tasks.right.type: must be 'classification', 'multilabel', 'regression' or 'ordinal', found clasification; did you mean 'classification'?
:5: merge.topology.ensemble.weights: must be 'average', 'geometric', 'fitted', 'greedy' or 'stacking', found gredy; did you mean 'greedy'?
:5: merge.tap: must not name one twice, found [-1, -1]
:6: search.trials: search can't be searched: it is the same for all trials, found {type: int, low: 1, high: 2}
""",
    "policies": """
:6: train.mixup.low: must be greater than or equal to 0, found -1.0
:7: train.cutmix: must be greater than or equal to 0, found -1
:12: train.augment.policy.choices[0]: no such entry of policies, found triviall; did you mean 'trivial'? (own ones need --plugin)
:13: train.augment.policy.choices[1].rand.share: rand has no option of this name; there is magnitude, operations (share belongs to trivial)
:13: train.augment.policy.choices[1].rand.operations: must be greater than or equal to 1, found 0
:13: train.augment.policy.choices[1].rand.magnitude: must be less than or equal to 30, found 31
:15: solo.augment.policy.trivial.share: must be greater than 0, found 0
""",
    "zero_weights": """
:8: losses.weights: at least one task needs a weight above 0, found {left: 0.0, right: 0.0}
""",
}


def check(space: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fuse_search", "check", "--space", str(space), *options]
    source_root = Path(fuse_search.__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": str(source_root), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)


def refused(space: Path, folder: Path, *options: str) -> list[str]:
    """The lines of the message, after the file's name; nothing else may have happened."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    done = check(space, folder, *options)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    return [line.removeprefix(str(space)) for line in done.stderr.splitlines()]


def test_every_broken_space_has_its_message() -> None:
    assert {file.stem for file in BROKEN.glob("*.yaml")} == set(EXPECTED)
    assert len(EXPECTED) >= 10


@pytest.mark.parametrize("name", EXPECTED)
def test_broken_space(name: str, tmp_path: Path) -> None:
    expected = EXPECTED[name].strip().splitlines()
    said = refused(BROKEN / f"{name}.yaml", tmp_path)
    assert [line.replace(str(tmp_path), "HERE") for line in said] == expected


def test_missing_space(tmp_path: Path) -> None:
    assert refused(tmp_path / "gone.yaml", tmp_path) == [
        ": can't be read: No such file or directory"
    ]


def test_overrides_are_named_in_messages(tmp_path: Path) -> None:
    override = ("--set", "train.epoch=2", "--set", "train.lr={type: float, low: 2, high: 1}")
    assert refused(SOUND, tmp_path, *override) == [
        "--set train.epoch=2: train.epoch: no such key; did you mean 'epochs'?",
        "--set train.lr={type: float, low: 2, high: 1}: train.lr: low (2.0) must not be above high (1.0)",
    ]


IMPORTS = """
import sys
from fuse_search.cli import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
slow = {"torch", "torchvision", "mlflow", "optuna", "numpy", "pandas", "matplotlib"}
print(code, sorted(slow & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["check", "--space", str(BROKEN / "fusion_options.yaml")], 2),
        (["--space", str(BROKEN / "networks.yaml")], 2),
        (["train", str(BROKEN / "numbers.yaml")], 2),
        (["--help"], 0),
    ],
)
def test_nothing_slow_is_imported(arguments: list[str], code: int, tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(Path(fuse_search.__file__).parents[1])}
    command = [sys.executable, "-c", IMPORTS, *arguments]
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == f"{code} []"
