"""A merged network as programs that run without its code: torch.export's and ONNX."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn.utils.rnn import PackedSequence

from ..errors import TrialError, place_of

Run = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
ADVICE = ("Caused by", "For more information")
"""So begins what an exporter's error says to its developers, behind the reason."""
LOGGERS = ("torch.onnx", "torch.export", "torch.fx.experimental.symbolic_shapes", "onnxscript")


class Positional(nn.Module):
    """A network of inputs by name, called with these in order: one tensor each."""

    def __init__(self, network: nn.Module, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.inputs = network, inputs

    def forward(self, *values: Tensor) -> dict[str, Tensor]:
        return self.network(dict(zip(self.inputs, values, strict=True)))


def program(network: nn.Module, inputs: Mapping[str, Tensor]) -> ExportedProgram:
    """The network as a program of torch.export for batches of any size.

    It is called with its inputs in their order here, and gives outputs by task. `inputs`: rows for
    a network on the CPU in eval mode.
    Raises TrialError: what keeps it from being exported, such as control flow that hangs on values.
    """
    called, values = Positional(network, tuple(inputs)), tuple(two(inputs).values())
    try:
        with _quiet(), torch.no_grad():
            made = torch.export.export(
                called, values, dynamic_shapes=(({0: Dim("batch")},) * len(values),)
            )
            run = made.module()
            for rows in (1, len(values[0])):  # what it was traced with may have been fixed
                run(*(value[:rows] for value in values))
    except Exception as fault:  # torch.export's errors have no common base
        raise TrialError(f"can't be exported: {_reason(fault, fault)}") from fault
    return made


def two(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """These rows, two at least: of a single one torch.export would make a program for one."""
    return {n: v if len(v) > 1 else torch.cat([v, v]) for n, v in inputs.items()}


def steps(network: nn.Module, inputs: Mapping[str, Tensor]) -> int:
    """How many steps the recurrences in it take, which torch.export follows one by one.

    A hundredth of a second each, or so, though the program has but one operator for all.
    """
    found = 0

    def note(recurrence: nn.Module, given: tuple[Any, ...]) -> None:
        nonlocal found
        assert isinstance(recurrence, nn.RNNBase)
        packed = isinstance(given[0], PackedSequence)
        time = 1 if recurrence.batch_first else 0
        count = len(given[0].batch_sizes) if packed else given[0].shape[time]
        found += count * recurrence.num_layers * (1 + recurrence.bidirectional)

    of = [module for module in network.modules() if isinstance(module, nn.RNNBase)]
    hooks = [module.register_forward_pre_hook(note) for module in of]
    try:
        with torch.no_grad():
            network(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def save_program(made: ExportedProgram, file: Path) -> None:
    """Write an exported program as torch.export's own file (pt2)."""
    with _quiet():
        torch.export.save(made, file)


def has_onnx() -> bool:
    """Whether the packages with which ONNX is written and run are there."""
    return all(find_spec(package) for package in ("onnx", "onnxscript", "onnxruntime"))


def save_onnx(made: ExportedProgram, inputs: tuple[str, ...], file: Path) -> None:
    """Write an exported program as ONNX, with the names of its inputs and tasks.

    Raises TrialError: an operator has no counterpart in ONNX, or another reason.
    """
    tasks = made.call_spec.out_spec.context
    try:
        with _quiet():
            done = torch.onnx.export(
                made,
                (),
                input_names=list(inputs),
                output_names=list(tasks),
                dynamo=True,
                verbose=False,
            )
            assert done is not None
            done.save(file)
    except Exception as fault:  # the exporter's errors have none either
        reason = _reason(fault, fault.__cause__ or fault)
        raise TrialError(f"can't be written as ONNX: {reason}") from fault


def load_program(file: Path) -> Run:
    """A program that was saved by torch.export, called with inputs by name in its own order."""
    run = torch.export.load(file).module()
    return lambda inputs: run(*inputs.values())


def load_onnx(file: Path) -> Run:
    """A network in ONNX, run by onnxruntime on the CPU, called in the same way."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    tasks = [output.name for output in session.get_outputs()]

    def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = session.run(None, {name: values.numpy() for name, values in inputs.items()})
        return dict(zip(tasks, map(torch.from_numpy, found), strict=True))

    return run


def _reason(fault: Exception, of: BaseException) -> str:
    """Why, in a line, and where in a plugin; `of` is the one that says so."""
    text = str(of)
    for words in ADVICE:
        text = text.partition(words)[0]
    return f"{place_of(fault)}{type(fault).__name__}: {' '.join(text.split())[:300]}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters tell their developers."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
