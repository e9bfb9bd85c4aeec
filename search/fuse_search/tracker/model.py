"""A network as an MLflow model: rows of a table in, predictions out."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ..version import VERSION
from .patience import patiently

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature

TORCH = "model.pt2"
"""The program of torch.export in a model's files, where `mlflow.pytorch` looks for it."""


@dataclass(frozen=True)
class Model:
    """What an MLflow model is made of.

    files: a folder; with the file `TORCH` in it, `mlflow.pytorch.load_model` takes the model, too.
    loader: the module whose `_load_pyfunc(files, config)` loads it to predict, see mlflow.pyfunc.
    reads, gives: columns, and whether each holds numbers or else text.
    optional: those of `reads` that may be left out.
    config: what is given to the loader, where whoever loads it says nothing else.
    form: what there is to say of it, for the tag `fuse_search.model`.
    """

    files: Path
    loader: str
    reads: Mapping[str, bool]
    gives: Mapping[str, bool]
    optional: Collection[str]
    config: Mapping[str, Any]
    form: str


def log_model(client: MlflowClient, run_id: str, made: Model) -> str:
    """Store a model as that of a run; gives its URI. One that is there is replaced."""
    import mlflow.models

    uri = client.tracking_uri
    model = patiently(partial(_model_of, client, run_id), uri)
    record = mlflow.models.Model(run_id=run_id, model_uuid=model.model_id, model_id=model.model_id)
    record.artifact_path = model.artifact_location
    with TemporaryDirectory() as folder:
        stored = Path(folder, "model")
        _save(made, record, stored)
        patiently(lambda: client.log_model_artifacts(model.model_id, str(stored)), uri)
    patiently(lambda: _declare(client, run_id, model.model_id, made.form), uri)
    return model.model_uri


def fetch_model(client: MlflowClient, run_id: str, folder: Path) -> Path | None:
    """Bring the files of a run's model into `folder`; None: it has none that is whole."""
    from mlflow.artifacts import download_artifacts

    experiment = client.get_run(run_id).info.experiment_id
    query = f"source_run_id = '{run_id}'"
    for model in client.search_logged_models([experiment], query):
        if str(model.status) == "READY":
            where = {"dst_path": str(folder), "tracking_uri": client.tracking_uri}
            # by its place, since MLflow looks an ID up in its default store
            return Path(download_artifacts(f"{model.artifact_location}/data", **where))
    return None


def refusal(text: str) -> Exception:
    """What a model raises where a request is wrong, so that a server answers with this text."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

    return MlflowException(text, INVALID_PARAMETER_VALUE)


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


def _save(made: Model, record: Any, folder: Path) -> None:
    """Write a model's files and what MLflow has to know of them into a new folder."""
    import mlflow.pyfunc
    import torch

    pins = [f"{module.__name__}=={module.__version__.split('+')[0]}" for module in (mlflow, torch)]
    with warnings.catch_warnings():  # it asks for an example, beside the signature
        warnings.simplefilter("ignore")
        mlflow.pyfunc.save_model(
            folder,
            loader_module=made.loader,
            data_path=str(made.files),
            mlflow_model=record,
            signature=_signature(made),
            pip_requirements=[f"fuse-search=={VERSION}", *pins],
            model_config=dict(made.config),
        )
    if (made.files / TORCH).exists():
        files = f"data/{made.files.name}"
        record.add_flavor("pytorch", model_data=files, pytorch_version=str(torch.__version__))
        record.save(folder / "MLmodel")


def _signature(made: Model) -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    def columns(of: Mapping[str, bool]) -> Schema:
        kinds = {True: DataType.double, False: DataType.string}
        return Schema(
            [ColSpec(kinds[n], name, required=name not in made.optional) for name, n in of.items()]
        )

    return ModelSignature(inputs=columns(made.reads), outputs=columns(made.gives))
