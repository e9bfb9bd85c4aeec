"""A network as an MLflow model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow.models import ModelSignature
    from torch import Tensor, nn


def save(network: nn.Module, example: Tensor, record: Any, folder: Path) -> tuple[Path, str]:
    """Save as pt2, or else pickled, below `folder`; gives where, and `pt2` or `pickle (why)`."""
    import mlflow.pytorch
    import torch

    signature = _signature(network, example)
    pins = [f"{module.__name__}=={module.__version__.split('+')[0]}" for module in (mlflow, torch)]
    settings = {"mlflow_model": record, "signature": signature, "pip_requirements": pins}
    try:
        path = folder / "pt2"
        with warnings.catch_warnings():  # torch's own, about how it packs tensors that share memory
            warnings.simplefilter("ignore")
            mlflow.pytorch.save_model(
                network, path, input_example=example, serialization_format="pt2", **settings
            )
        # torch.export may have fixed the batch size without saying so.
        exported = mlflow.pytorch.load_model(str(path))
        exported(example[:1])
        exported(torch.cat([example, example]))
        return path, "pt2"
    except Exception as fault:  # torch.export's errors have no common base
        why = f"{type(fault).__name__}: {str(fault)[:200]}"
    path = folder / "pickle"
    mlflow.pytorch.save_model(network, path, serialization_format="pickle", **settings)
    return path, f"pickle ({why})"


def _signature(network: nn.Module, example: Tensor) -> ModelSignature:
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    def spec(tensor: Tensor, name: str | None = None) -> TensorSpec:
        return TensorSpec(tensor.numpy().dtype, (-1, *tensor.shape[1:]), name)

    with torch.no_grad():
        outputs = network(example)
    return ModelSignature(
        inputs=Schema([spec(example)]),
        outputs=Schema([spec(tensor, task) for task, tensor in outputs.items()]),
    )
