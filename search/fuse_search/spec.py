"""What one trial is: frozen records without behaviour.

A space file has the shape of a `TrialSpec` with domains in its leaves, plus a
`search` section. The line under each field is its documentation here, in the
JSON Schema and in error messages' suggestions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

# The upper limits refuse what no machine could do, before it is tried.
Count = Annotated[int, Ge(1), Le(1_000_000)]
Epochs = Annotated[int, Ge(1), Le(10_000)]
Several = Annotated[int, Ge(2), Le(1_000_000)]
Few = Annotated[int, Ge(1), Le(64)]
Side = Annotated[int, Ge(1), Le(2048)]
Width = Annotated[int, Ge(1), Le(8192)]
Whole = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Lt(1)]
Factor = Annotated[float, Gt(0), Le(1)]
Magnitude = Annotated[int, Ge(0), Le(30)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Tokenizer = Annotated[str, Field(pattern=r"^(words|characters|bytes|hf:.+)$")]


CHECKPOINTS = (".pt", ".pth", ".pth.tar", ".ckpt", ".bin", ".safetensors")
LIBRARIES = {"timm": "timm", "hf": "transformers"}
"""Whose networks are written `LIBRARY:NAME`, and the package that they need."""


class Choice(BaseModel):
    """One entry of a registry with its options, written `sum` or `{concat: {width: 64}}`."""

    model_config = ConfigDict(frozen=True)

    name: str
    options: dict[str, Any] = {}


@dataclass(frozen=True)
class Pick:
    """Marks a `Choice` that comes from the named registry.

    With a `shorthand`, a mapping that names no entry is read as the options of that entry.
    """

    registry: str
    shorthand: str | None = None


@dataclass(frozen=True)
class OneOf:
    """Marks a name (or names) that must be a key of the named table of this spec."""

    table: Literal["branches", "tasks"]


@dataclass(frozen=True)
class PerBranch:
    """Marks a value for every branch, or a mapping from branch name to value."""

    leaf: Any


@dataclass(frozen=True)
class Named:
    """Marks a mapping from names of somebody's own to values."""

    leaf: Any


def of_branch(value: Any, name: str) -> Any:
    """The value of one branch, where it may be one for all or one for each by name."""
    return value[name] if isinstance(value, dict) else value


def _distinct(items: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(items)) < len(items):
        raise ValueError("must not name one twice")
    return items


def in_order(names: Iterable[str], first: Sequence[str]) -> tuple[str, ...]:
    """These names: those among `first` in its order, and then the others."""
    there = tuple(names)
    named = [name for name in first if name in there]
    return (*named, *(name for name in there if name not in named))


Stage = Annotated[int, Le(-1)] | str
Stages = Annotated[tuple[Stage, ...], MinLen(1), AfterValidator(_distinct)]
Tap = Stage | Stages
Depth = Whole | Literal["all"]
Depths = Annotated[tuple[Depth, ...], MinLen(1)]
Classes = Annotated[tuple[str, ...], MinLen(1), AfterValidator(_distinct)]
Source = Annotated[Choice, Pick("sources")]
Reader = Annotated[Choice, Pick("readers")]
Readers = Annotated[dict[str, Choice], Named(Reader)]
Target = Annotated[Choice, Pick("targets")]
Targets = Annotated[dict[str, Choice], Named(Target)]
Network = Annotated[Choice, Pick("networks")]
Weights = Annotated[Choice, Pick("weights")]
Topology = Annotated[Choice, Pick("topologies")]
Fusion = Annotated[Choice, Pick("fusions")]
Unfreezing = Annotated[Choice, Pick("unfreezings")]
Weighting = Annotated[Choice, Pick("weightings", shorthand="fixed")]
Loss = Annotated[Choice, Pick("losses")]
Optimizer = Annotated[Choice, Pick("optimizers")]
Schedule = Annotated[Choice, Pick("schedules")]
Policy = Annotated[Choice, Pick("policies")]
Sampler = Annotated[Choice, Pick("samplers")]
Pruner = Annotated[Choice, Pick("pruners")]
BranchNames = Annotated[tuple[str, ...], OneOf("branches")]
TaskNames = Annotated[tuple[str, ...], OneOf("tasks")]


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DataSpec(Record):
    source: Source
    """Where the rows come from: multidigits, torchvision:NAME, folder, manifest (a table of files,
    numbers, texts and labels) or huggingface, with its options."""
    image_size: Side | None = None
    """Height and width of the images in pixels; left out: as the source has them."""


class Augment(Record):
    """Random changes to the training images, drawn in batches on the device."""

    flip: bool = False
    """Mirror left and right with probability 1/2."""
    shift: Annotated[float, Ge(0), Le(0.5)] = 0.0
    """Largest shift in each direction, as a share of the image's side."""
    policy: Policy = Choice(name="none")
    """none, trivial (TrivialAugment) or rand (RandAugment), with its options."""
    views: Count | None = None
    """How many fixed versions each image has, so that frozen stages run once on each; left out:
    a new one in every epoch, through all stages."""


class TaskSpec(Record):
    type: Literal["classification", "multilabel", "regression", "ordinal"]
    """What is predicted: one of several classes, any of several labels, a number, or one of several
    classes that have an order."""
    classes: Count | None = None
    """How many classes or labels there are; left out: as many as the data has."""
    order: Annotated[tuple[str, ...], Field(min_length=2)] | None = None
    """An ordinal task's classes, lowest first; left out: they are numbers, in their own order."""
    loss: Loss = Choice(name="default")
    """default (that of the type), focal or huber, with its options."""
    class_weights: Literal["balanced"] | dict[str, Positive] | None = None
    """How much the rows of each class count in the loss: balanced (in inverse proportion to how
    many there are), or a number by class; left out: all the same."""


class BranchSpec(Record):
    network: Network
    """For images conv3x3, conv5x5, a torchvision classification model by its name or timm:NAME; for
    sequences lstm, gru, transformer or conv1d; for texts hf:NAME_OR_FOLDER too; for vectors,
    categories and images mlp."""
    weights: Weights = Choice(name="none")
    """none, solo, a torchvision weights name (IMAGENET1K_V1, DEFAULT), pretrained (timm:, hf:), a
    name that a plugin's network brings, or a checkpoint file."""
    input: str = "image"
    """The input of the data that this branch reads; left out: image, or the only one there is."""
    size: Side | None = None
    """Height and width to which this branch resizes its input; left out: no resizing."""
    mean: Annotated[tuple[float, ...], MinLen(1)] | None = None
    """By which its input is normalised: a number for each channel of images in [0, 1] or for each
    number of a vector or frame. Left out: as its weights were trained, or where they don't tell
    (files don't) by the training rows."""
    std: Annotated[tuple[Positive, ...], MinLen(1)] | None = None
    """The deviations beside `mean`."""


class Merge(Record):
    use: BranchNames = ()
    """Which branches are merged; left out: all of them."""
    topology: Topology = Choice(name="parallel")
    """parallel, trunk, cascade or ensemble, with its options."""
    tap: Annotated[Tap | dict[str, Tap], PerBranch(Tap)] = -1
    """The stage whose output is taken: -1 is a branch's last stage, -2 the one before; a module's
    name means the stage that it ends in. A list takes several."""
    branch_dropout: Annotated[Share | dict[str, Share], PerBranch(Share)] = 0.0
    """Chance that a training row goes without a branch; one always stays, in a cascade all do."""


class Unfreeze(Record):
    depth: Annotated[Depth | dict[str, Depth], PerBranch(Depth)] = "all"
    """How many stages are trained, counted from the tap down; more than there are means all."""
    schedule: Annotated[Unfreezing | dict[str, Unfreezing], PerBranch(Unfreezing)] = Choice(
        name="at_once"
    )
    """at_once, gradual, stalled, lp_ft (fusion and heads first) or phases written out by hand."""
    lr_decay: Annotated[Factor | dict[str, Factor], PerBranch(Factor)] = 1.0
    """The learning rate of each stage, as a share of that of the stage above."""
    lr_factor: Annotated[Positive | dict[str, Positive], PerBranch(Positive)] = 1.0
    """The learning rate of a branch's last stage, in units of `train.lr`."""
    l2_sp: Annotated[NonNegative | dict[str, NonNegative], PerBranch(NonNegative)] = 0.0
    """Pull of the branches towards their starting weights; above 0 it replaces weight decay."""


class Losses(Record):
    weights: Weighting = Choice(name="equal")
    """equal, a weight for each task, a simplex over the tasks, or learned from losses or gradients:
    uncertainty, dwa, famo, gradnorm, mgda or pcgrad."""
    auxiliary: Annotated[NonNegative | dict[str, NonNegative], PerBranch(NonNegative)] = 0.0
    """Weight of the losses of a head on each branch alone, whose mean over the branches is added to
    those of the merged network; a branch with 0 has no such head."""


class Train(Record):
    epochs: Epochs = 6
    """How often the training rows are seen."""
    batch_size: Count = 64
    """Rows per step."""
    lr: Positive = 1e-3
    """The highest learning rate."""
    optimizer: Optimizer = Choice(name="adamw")
    """adamw, sgd or lion."""
    fusion_lr: Positive = 1.0
    """The learning rate of the fusion, in units of `lr`."""
    head_lr: Positive = 1.0
    """The learning rate of the heads, in units of `lr`."""
    weight_decay: NonNegative = 0.01
    """Decoupled for adamw and lion, L2 for sgd; biases, normalisation layers and branches
    with `unfreeze.l2_sp` are spared."""
    schedule: Schedule = Choice(name="cosine")
    """cosine (to zero), one_cycle, step, plateau or constant."""
    warmup: Share = 0.05
    """Share of all steps in which the learning rate rises linearly."""
    clip: Positive | None = 1.0
    """Largest norm of the gradient; null: no clipping."""
    dropout: Share = 0.0
    """Dropout before every head."""
    label_smoothing: Share = 0.0
    """Share of each label's probability that is spread over all classes, by the default loss and
    focal."""
    mixup: NonNegative = 0.0
    """Alpha of mixup: batches are mixed with themselves by a share from Beta(alpha, alpha)."""
    cutmix: NonNegative = 0.0
    """Alpha of CutMix: a rectangle of every image comes from another one. With mixup on too, each
    batch is mixed by one of the two."""
    drop_path: Share | None = None
    """Stochastic depth of networks that have torchvision's; left out: as the network has it."""
    ema: Share | None = None
    """Decay of the weights' moving average, which is what is measured and kept; left out: none."""
    augment: Augment = Augment()
    """Random changes to the training images."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto is bf16 autocast on a GPU that has it, else fp32."""


class TrialSpec(Record):
    study: Name
    """The study's name: its Optuna study, MLflow experiment and results folder."""
    seed: Whole = 0
    """Fixes the data's splits, the initial weights, the order of rows and the search."""
    data: DataSpec
    """The rows that are learned from."""
    tasks: dict[Name, TaskSpec]
    """What is predicted, by the names that the data gives to its targets."""
    branches: dict[Name, BranchSpec]
    """The networks that may be merged."""
    merge: Merge = Merge()
    """Which branches are merged, tapped where, and how."""
    unfreeze: Unfreeze = Unfreeze()
    """How much of the branches is trained."""
    losses: Losses = Losses()
    """How the tasks' losses are weighed."""
    train: Train = Train()
    """How the merged network is trained."""
    solo: Train = Train()
    """How a branch is trained alone; left out: like `train`, at its highest number of epochs."""


class Limits(Record):
    """What a merged network may cost at most; what would cost more is infeasible."""

    parameters: Positive | None = None
    """Parameters in all."""
    flops: Positive | None = None
    """Floating-point operations of one row's forward pass."""
    latency_ms: Positive | None = None
    """Milliseconds of one row's forward pass, on the device that trains."""
    memory_mb: Positive | None = None
    """Estimated megabytes of a training step, and of an ensemble's weights; left out: what the
    device has."""


class Search(Record):
    trials: Count = 24
    """Finished trials (complete and pruned) that the study shall hold in all."""
    maximize: str | None = None
    """The validation metric to maximise, such as mean_accuracy or left_macro_f1."""
    minimize: str | None = None
    """The validation metric to minimise, such as loss or age_mae."""
    sampler: Sampler = Choice(name="tpe")
    """tpe, random, gp, grid or nsga2."""
    pruner: Pruner = Choice(name="none")
    """none, median, hyperband or asha."""
