"""Services that show the measurements of a run: TensorBoard, Weights & Biases, trackio, MLflow, all optional packages.

Each is used through its own API and configured as it usually is: WANDB_PROJECT, WANDB_MODE, MLFLOW_TRACKING_URI, ...
"""

from __future__ import annotations

import io
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from admg.checksums import read_json, write_json
from admg.files import atomic
from admg.warn import warn

ServiceName = Literal["tensorboard", "wandb", "trackio", "mlflow"]
LogChoice = Literal["auto", "tensorboard", "wandb", "trackio", "mlflow", "none"]
EXTRAS: dict[ServiceName, str] = {"tensorboard": "train", "wandb": "wandb", "trackio": "trackio", "mlflow": "mlflow"}
"""The extra of admg that installs the package of each service."""
IDS = "services.json"
"""File in the run directory with the identifiers of the run in services."""


class Service(Protocol):
    """A service that shows the measurements and pictures of a run."""

    def scalars(self, values: Mapping[str, float], step: int) -> None: ...

    def picture(self, name: str, path: Path, step: int) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class RunFacts:
    """Facts about a run for services.

    out: run directory, whose name is that of the run
    step: number of steps done
    settings: options and provenance, with nested dictionaries
    """

    out: Path
    step: int
    settings: Mapping[str, Any]


def services_of(choices: Sequence[LogChoice]) -> list[ServiceName]:
    """Return the chosen services: "auto" is TensorBoard if it is installed.

    Raises ValueError if the package of a service is missing, or if "auto" or "none" is not the only choice.
    """
    if isinstance(choices, str) or not choices or (len(choices) > 1 and {"auto", "none"} & set(choices)):
        allowed = ", ".join(get_args(ServiceName))
        raise ValueError(f"log must be auto or none alone, or some of {allowed}, got {choices!r}")
    if "auto" in choices:
        return ["tensorboard"] if installed("tensorboard") else []
    names = [name for name in get_args(ServiceName) if name in choices]
    for name in names:
        if not installed(name):
            raise ValueError(f"log needs the package {name} for {name}: pip install 'admg[{EXTRAS[name]}]'")
    return names


def installed(package: str) -> bool:
    """Whether a package can be imported."""
    return package in sys.modules or find_spec(package) is not None


def open_services(names: Sequence[ServiceName], facts: RunFacts) -> list[TolerantService]:
    """Start the services, or continue their existing runs if the run is resumed."""
    kinds: dict[ServiceName, Callable[[RunFacts], Service]]
    kinds = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "trackio": Trackio, "mlflow": MLflow}
    return [TolerantService(name, kinds[name], facts) for name in names]


class TolerantService:
    """A service whose first error ends it with a warning, so that it never stops the training."""

    def __init__(self, name: ServiceName, kind: Callable[[RunFacts], Service], facts: RunFacts):
        self.name = name
        self.service: Service | None = None
        self._call_safely(lambda: setattr(self, "service", kind(facts)))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Show the values that are finite."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        if service := self.service:
            self._call_safely(lambda: service.scalars(finite, step))

    def picture(self, name: str, path: Path, step: int) -> None:
        """Show a PNG file."""
        if service := self.service:
            self._call_safely(lambda: service.picture(name, path, step))

    def flush(self) -> None:
        if service := self.service:
            self._call_safely(service.flush)

    def close(self) -> None:
        if service := self.service:
            self._call_safely(service.close)

    def _call_safely(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # a service may raise anything, and training goes on
            self.service = None
            reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
            warn(f"{self.name} failed and will receive no further measurements: {reason[0]}")


class TensorBoard:
    """Event files in the folder tensorboard/ of the run directory."""

    def __init__(self, facts: RunFacts):
        from torch.utils.tensorboard import SummaryWriter

        # later events of a run that was killed are hidden
        self.writer: Any = SummaryWriter(str(facts.out / "tensorboard"), purge_step=facts.step + 1)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def picture(self, name: str, path: Path, step: int) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            self.writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, in the project `admg` unless WANDB_PROJECT names another one.

    Steps that are repeated after a resumption have the same values, and wandb ignores them.
    """

    def __init__(self, facts: RunFacts):
        import wandb

        self.wandb: Any = wandb
        self.run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "admg"),
            name=facts.out.resolve().name,
            dir=str(facts.out),
            id=known_id(facts, "wandb"),
            resume="allow",
            config=dict(facts.settings),
        )
        keep_id(facts, "wandb", self.run.id)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def picture(self, name: str, path: Path, step: int) -> None:
        self.run.log({name: self.wandb.Image(str(path))}, step=step)

    def flush(self) -> None:
        pass  # another process of wandb writes it

    def close(self) -> None:
        self.run.finish()


class Trackio:
    """A run of trackio, in the project `admg` unless TRACKIO_PROJECT names another one.

    It is kept on this machine, or sent to the Space or server that TRACKIO_SPACE_ID or TRACKIO_SERVER_URL names.
    trackio knows runs by their names.
    """

    def __init__(self, facts: RunFacts):
        import trackio

        self.trackio: Any = trackio
        with redirect_stdout(io.StringIO()):  # its advice would interrupt the progress bar
            self.run: Any = trackio.init(
                project=os.environ.get("TRACKIO_PROJECT", "admg"),
                name=known_id(facts, "trackio") or facts.out.resolve().name,
                resume="allow" if facts.step else "never",
                config=dict(facts.settings),
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        keep_id(facts, "trackio", self.run.name)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def picture(self, name: str, path: Path, step: int) -> None:
        self.run.log({name: self.trackio.Image(str(path))}, step=step)

    def flush(self) -> None:
        pass  # a thread of trackio writes it

    def close(self) -> None:
        with redirect_stdout(io.StringIO()):
            self.trackio.finish()


class MLflow:
    """A run of MLflow, in the experiment `admg` unless MLFLOW_EXPERIMENT_NAME names another one."""

    def __init__(self, facts: RunFacts):
        import mlflow

        self.metric: Any = mlflow.entities.Metric
        self.client: Any = mlflow.MlflowClient()
        known = known_id(facts, "mlflow")
        if known is not None:
            self.id = known
            self.client.update_run(known, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "admg")
        experiment = self.client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self.client.create_experiment(name)
        self.id = self.client.create_run(experiment_id, run_name=facts.out.resolve().name).info.run_id
        keep_id(facts, "mlflow", self.id)
        for key, value in flat(facts.settings).items():
            self.client.log_param(self.id, key, str(value)[:250])  # the limit of older servers

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        self.client.log_batch(self.id, metrics=[self.metric(name, value, now, step) for name, value in values.items()])

    def picture(self, name: str, path: Path, step: int) -> None:
        self.client.log_artifact(self.id, str(path), "pictures")

    def flush(self) -> None:
        pass  # each call has written it

    def close(self) -> None:
        self.client.set_terminated(self.id)


def known_id(facts: RunFacts, name: ServiceName) -> str | None:
    """Return the identifier of a resumed run in a service, or None."""
    return read_ids(facts.out).get(name) if facts.step else None


def keep_id(facts: RunFacts, name: ServiceName, value: str) -> None:
    """Store the identifier of the run in the run directory."""
    ids = read_ids(facts.out) | {name: value}
    with atomic(facts.out / IDS) as temporary:
        write_json(temporary, ids)


def read_ids(out: Path) -> dict[str, str]:
    """Return the identifiers of the run. Raises ValueError if the file is damaged."""
    path = out / IDS
    return read_json(path) if path.is_file() else {}


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings with names such as train.lr."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
