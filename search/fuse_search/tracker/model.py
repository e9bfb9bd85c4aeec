"""A network as an MLflow model."""

from __future__ import annotations

import copy
import warnings
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from .patience import patiently

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature
    from torch import Tensor, nn


def log_model(client: MlflowClient, run_id: str, network: nn.Module, example: Tensor) -> str:
    """Store `network` as the model of a run; gives its URI. One that is there is replaced."""
    from mlflow.models import Model

    network, example = copy.deepcopy(network).cpu().eval(), example.cpu()
    uri = client.tracking_uri
    model = patiently(partial(_model_of, client, run_id), uri)
    record = Model(run_id=run_id, model_uuid=model.model_id, model_id=model.model_id)
    record.artifact_path = model.artifact_location
    with TemporaryDirectory() as folder:
        stored, form = _save(network, example, record, Path(folder))
        patiently(lambda: client.log_model_artifacts(model.model_id, str(stored)), uri)
    patiently(lambda: _declare(client, run_id, model.model_id, form), uri)
    return model.model_uri


def _model_of(client: MlflowClient, run_id: str) -> Any:
    """The logged model of a run: the one that it has, perhaps half written, or a new one."""
    run = client.get_run(run_id)
    experiment = run.info.experiment_id
    found = client.search_logged_models([experiment], f"source_run_id = '{run_id}'")
    if found:
        return found[0]
    return client.create_logged_model(
        experiment, name="model", source_run_id=run_id, params=run.data.params
    )


def _declare(client: MlflowClient, run_id: str, model_id: str, form: str) -> None:
    from mlflow.entities import LoggedModelOutput

    client.finalize_logged_model(model_id, "READY")
    outputs = client.get_run(run_id).outputs
    if not outputs or not outputs.model_outputs:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
    client.set_tag(run_id, "fuse_search.model", form)


def _save(network: nn.Module, example: Tensor, record: Any, folder: Path) -> tuple[Path, str]:
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
