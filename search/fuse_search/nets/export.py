"""A merged network as programs that run without its code: torch.export's and ONNX."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..errors import InputError, TrialError

Run = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


class Positional(nn.Module):
    """A network of inputs by name, called with these in order: one tensor each."""

    def __init__(self, network: nn.Module, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.inputs = network, inputs

    def forward(self, *values: Tensor) -> dict[str, Tensor]:
        return self.network(dict(zip(self.inputs, values, strict=True)))


def program(network: nn.Module, inputs: Mapping[str, Tensor]) -> ExportedProgram:
    """The network as a program of torch.export for batches of any size.

    It is called with its inputs in their order here, and gives outputs by task. `inputs`: two rows
    or more, of a network on the CPU in eval mode.
    Raises TrialError: what keeps it from being exported, such as control flow that hangs on values.
    """
    called, values = Positional(network, tuple(inputs)), tuple(inputs.values())
    try:
        with _quiet(), torch.no_grad():
            made = torch.export.export(
                called, values, dynamic_shapes=(({0: Dim("batch")},) * len(values),)
            )
            run = made.module()
            for rows in (1, len(values[0])):  # what it was traced with may have been fixed
                run(*(value[:rows] for value in values))
    except Exception as fault:  # torch.export's errors have no common base
        reason = " ".join(str(fault).split())[:300]
        raise TrialError(f"can't be exported: {type(fault).__name__}: {reason}") from fault
    return made


def save_program(made: ExportedProgram, file: Path) -> None:
    """Write an exported program as torch.export's own file (pt2)."""
    with _quiet():
        torch.export.save(made, file)


def save_onnx(made: ExportedProgram, inputs: tuple[str, ...], file: Path) -> None:
    """Write an exported program as ONNX, with the names of its inputs and tasks.

    Raises:
        InputError: the packages for it are missing.
        TrialError: an operator has no counterpart in ONNX, or another reason.
    """
    try:
        import onnxscript  # noqa: F401  torch imports it late, and says less
    except ImportError:
        raise InputError('ONNX needs more packages: pip install "fuse-search[onnx]"') from None
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
        reason = " ".join(str(fault.__cause__ or fault).split())[:300]
        raise TrialError(f"can't be written as ONNX: {type(fault).__name__}: {reason}") from fault


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


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters tell their developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
