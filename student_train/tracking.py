"""MLflow, where a run's configuration names a tracking server: parameters, curves, model and caches."""

import logging
import time
from pathlib import Path
from typing import Any

from student_train.run_folder import RunDescription
from teacher_cache.errors import UserError
from teacher_cache.storage.store import Store

RUN_ID_KEY = "mlflow_run_id"
MAX_PARAMETER_LENGTH = 500
"""Of a value that MLflow takes."""
EXPERIMENT = "student-train"
SEND_EVERY_S = 2.0
"""A request takes longer than many a step."""
MAX_POINTS = 1000
"""That MLflow takes in one request."""
MAX_WAITING = 100_000
"""Points that are kept while it does not answer."""


class Tracker:
    """Tells MLflow of a run, or nobody.

    Raises:
        UserError: MLflow is not installed, or cannot be reached.
    """

    def __init__(self, uri: str | None, store: Store, description: RunDescription, *, resumed: bool) -> None:
        self._client: Any = None
        self._points: list[Any] = []
        self._sent = time.monotonic()
        if uri is None:
            return
        try:
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
        except ImportError:
            raise UserError("execution.mlflow needs MLflow: pip install mlflow-skinny, or mlflow") from None
        try:
            self._client = MlflowClient(tracking_uri=uri)
            self._run_id = self._old_run(store) if resumed else None
            if self._run_id is None:
                self._run_id = self._new_run(store, description)
        except MlflowException as error:
            reason = " ".join(str(error).split())
            raise UserError(f"execution.mlflow: {uri} cannot be used: {reason}") from None

    def _old_run(self, store: Store) -> str | None:
        """That an attempt before began; None where it is not known."""
        try:
            run_id = store.read(RUN_ID_KEY, max_bytes=100).decode()
        except FileNotFoundError:
            return None
        from mlflow.exceptions import MlflowException

        try:
            self._client.set_terminated(run_id, status="RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None  # of another server, or deleted there
        return run_id

    def _new_run(self, store: Store, description: RunDescription) -> str:
        found = self._client.get_experiment_by_name(EXPERIMENT)
        experiment = found.experiment_id if found else self._client.create_experiment(EXPERIMENT)
        name = store.url.rstrip("/").rsplit("/", 1)[-1]
        run_id: str = self._client.create_run(experiment, run_name=name).info.run_id
        for key, value in parameters(description).items():
            self._client.log_param(run_id, key, value[:MAX_PARAMETER_LENGTH])
        store.replace(RUN_ID_KEY, run_id.encode())
        return run_id

    def log(self, scalars: dict[str, float], step: int) -> None:
        """Notes points of curves."""
        if self._client is None:
            return
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        self._points += [Metric(name, value, now_ms, step) for name, value in scalars.items()]
        del self._points[:-MAX_WAITING]
        if time.monotonic() - self._sent > SEND_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Sends the points noted so far; those that cannot be sent wait for the next time."""
        self._sent = time.monotonic()
        while self._points and self._try("log_batch", metrics=self._points[:MAX_POINTS]):
            del self._points[:MAX_POINTS]

    def log_model(self, folder: Path) -> None:
        """Keeps the finished model."""
        if self._client is not None:
            self._try("log_artifacts", local_dir=str(folder), artifact_path="model")

    def finish(self, status: str = "FINISHED") -> None:
        if self._client is not None:
            self.flush()
            self._try("set_terminated", status=status)

    def _try(self, request: str, **arguments: Any) -> bool:
        """No run ends because nobody takes note of it."""
        try:
            getattr(self._client, request)(self._run_id, **arguments)
        except Exception as error:  # MLflow's own, its HTTP client's, or its file store's
            logging.getLogger(__name__).warning("MLflow: %s: %s", request, " ".join(str(error).split()))
            return False
        return True


def parameters(description: RunDescription) -> dict[str, str]:
    """What MLflow shows of a run's configuration, by dotted keys."""
    flat = {"fingerprints": ", ".join(cache.fingerprint for cache in description.caches)}
    for name in ("model_type", "num_layers", "width", "num_parameters", "num_steps", "device"):
        flat[name] = str(getattr(description, name))
    return flat | flattened(description.spec)


def flattened(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings by dotted keys."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        flat |= flattened(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": str(value)}
    return flat
