"""Models among MLflow's models: logged once, registered on demand."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from autoq.core.errors import UserError
from autoq.tracking.onnx_model import DeployedModel, write_mlflow_model

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

_DIGEST, _TRIAL, _SEARCH = "autoq.model_digest", "autoq.trial", "autoq.search"


def log_model(client: MlflowClient, experiment_id: str, run_id: str, model: DeployedModel) -> LoggedModel:
    """Log a model to a run, or return the one that is there already.

    A model that was broken off while it was written is replaced.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    digest = model.artifact.digest
    condition = f"source_run_id = '{run_id}' AND tags.`{_DIGEST}` = '{digest}'"
    for found in client.search_logged_models([experiment_id], condition):
        if found.status == LoggedModelStatus.READY:
            return found
        client.delete_logged_model(found.model_id)
    tags = {_DIGEST: digest, _TRIAL: str(model.trial), _SEARCH: model.search}
    logged = client.create_logged_model(
        experiment_id, name=model.name, source_run_id=run_id, tags=tags, model_type="onnx"
    )
    with tempfile.TemporaryDirectory() as around:
        folder = Path(around) / "model"
        write_mlflow_model(model, folder)
        client.log_model_artifacts(logged.model_id, str(folder))
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)


def check_registered_name(name: str) -> None:
    """Refuse a name that MLflow does not take, before anything is built.

    Raises:
        UserError: The name is empty, or has a slash or a colon.
    """
    if not name.strip() or set(name) & set("/:"):
        raise UserError(f"cannot register a model as {name!r}", hint="expected a name without / and :")


def register_model(client: MlflowClient, logged: LoggedModel, name: str) -> int:
    """Make a logged model a version of a registered one, created if need be; return the version.

    A model that is a version already stays that version.
    """
    digest = logged.tags[_DIGEST]
    if not client.search_registered_models(f"name = '{_quoted(name)}'"):
        client.create_registered_model(name, description="Compressed by autoq.")
    for known in client.search_model_versions(f"name = '{_quoted(name)}'"):
        if known.tags.get(_DIGEST) == digest and known.status == "READY":
            return int(known.version)
    made = client.create_model_version(
        name,
        source=logged.artifact_location,  # a models:/ URI is looked up in the default store, not in ours
        run_id=logged.source_run_id,
        tags=dict(logged.tags),
        model_id=logged.model_id,
    )
    return int(made.version)


def _quoted(text: str) -> str:
    return text.replace("'", "''")
