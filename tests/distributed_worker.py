"""One of the processes that test_distributed.py starts with torchrun: trains small networks and saves their losses."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Classifier, Model
from admg.data import batches, from_arrays
from admg.diffusion.config import DiffusionConfig
from admg.engine.device import Processes
from admg.models import ClassifierConfig, NoisyClassifier, UNet, UNetConfig
from admg.training import ClassifierTask, DiffusionTask, TrainConfig, checkpointing, distributed
from admg.training.prefetch import prefetch
from admg.training.sharding import whole
from admg.training.step import Learner
from admg.training.timesteps import Timesteps

SMALL = {"image_size": 8, "image_channels": 1, "channels": 32, "channel_mult": (1, 1), "num_res_blocks": 1,
         "attention_resolutions": (4,), "head_channels": 32, "num_classes": 3}  # fmt: skip
CPU = torch.device("cpu")
SHARDED_AND_ACCUMULATED = {"shard": True, "accumulate": 2, "batch_size": 8}
RUNS = {  # task, dtype, steps, options of TrainConfig
    "float64": ("diffusion", torch.float64, 10, {}),
    "float64 accumulated": ("diffusion", torch.float64, 10, {"accumulate": 2, "batch_size": 8}),
    "float64 classifier": ("classifier", torch.float64, 10, {}),
    "float64 sharded": ("diffusion", torch.float64, 10, {"shard": True}),
    "float64 sharded, accumulated": ("classifier", torch.float64, 10, SHARDED_AND_ACCUMULATED),
    "float64 importance": ("importance", torch.float64, 15, {"batch_size": 8, "accumulate": 2}),
    "float32": ("diffusion", torch.float32, 20, {}),
    "float32 accumulated": ("diffusion", torch.float32, 20, {"accumulate": 2, "batch_size": 8}),
    "float32 sharded": ("diffusion", torch.float32, 20, {"shard": True}),
    "float32 sharded, accumulated": ("diffusion", torch.float32, 20, SHARDED_AND_ACCUMULATED),
}
OVERFLOWING = {  # fp16, with a scale of the loss at which the first gradients overflow
    "fp16": ("diffusion", torch.float32, 8, {"precision": "fp16"}),
    "fp16 sharded": ("diffusion", torch.float32, 8, {"precision": "fp16", "shard": True}),
}
SPOILT = {  # an image of the last process is infinite at one step
    "spoilt": ("diffusion", torch.float64, 7, {}),
    "spoilt sharded": ("diffusion", torch.float64, 7, {"shard": True}),
}
SPOILT_AT = 3


def resumed(folder: Path, learner: Learner) -> int:
    """Restore the last checkpoint of a run directory, if there is one, and return its number of steps."""
    checkpoint = checkpointing.latest(folder)
    return 0 if checkpoint is None else int(checkpointing.resume(checkpoint, learner)["step"])


def task_of(kind: str, dtype: torch.dtype) -> DiffusionTask | ClassifierTask:
    torch.manual_seed(0)
    process = DiffusionConfig(diffusion_steps=50)
    if kind == "classifier":
        classifier = NoisyClassifier(ClassifierConfig(**SMALL)).to(dtype)
        return ClassifierTask(Classifier(classifier, process.build(), Labels(3), process))
    network = UNet(UNetConfig(**SMALL)).to(dtype)
    if kind == "importance":  # three timesteps, whose histories are soon full
        process = DiffusionConfig(diffusion_steps=3, noise_schedule="cosine")
        model = Model(network, process.build(), (1, 8, 8), Labels(3), process)
        return DiffusionTask(model, timesteps=Timesteps(kind="loss-second-moment"))
    return DiffusionTask(Model(network, process.build(), (1, 8, 8), Labels(3), process), label_dropout=0.3)


@dataclass(frozen=True)
class Segment:
    """A run of a name in RUNS, or a part of it.

    longer: factor of the number of steps
    folder: run directory to resume from, if it holds a checkpoint, and to save to
    until: number of the step to stop before; None for the end
    shard: whether to shard; None for what RUNS says
    """

    name: str
    longer: int = 1
    folder: str | None = None
    until: int | None = None
    shard: bool | None = None


def losses(run: Segment, processes: Processes) -> list[dict[str, float]]:
    """Return the measurements of each step."""
    kind, dtype, steps, options = (RUNS | OVERFLOWING | SPOILT)[run.name]
    options = options | ({} if run.shard is None else {"shard": run.shard})
    if processes.count == 1:
        options = options | {"shard": False}
    images = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    data = from_arrays(images, list(range(3)) * 10, value_range=(0, 1), flip=True)
    config = TrainConfig(**{"batch_size": 4, "lr": 1e-3, "warmup": 10, "precision": "fp32"} | options)
    task = task_of(kind, dtype)
    learner = Learner(task, config, CPU, processes)
    if run.name in OVERFLOWING:
        learner.scaler.load_state_dict(learner.scaler.state_dict() | {"scale": 2.0**30})
    first = resumed(Path(run.folder), learner) if run.folder else 0
    until = run.until or steps * run.longer
    stream = batches(data, config.batch_size, seed=0, start=first, part=(processes.rank, processes.count))
    found = []
    for step, drawn in zip(range(first, until), prefetch(task, stream, 0, first, CPU, processes)):
        drawn = [part.to(dtype) if part.is_floating_point() else part for part in drawn]
        if run.name in SPOILT and step == SPOILT_AT and processes.rank == processes.count - 1:
            drawn[0][-1] = torch.inf
        found.append({key: value.item() for key, value in learner.step(step, drawn).items()})
    if run.folder:
        if config.shard or processes.rank == 0:
            checkpointing.save(Path(run.folder), checkpointing.checkpoint_state(learner, until), processes)
        distributed.wait_for_all(processes)
    found[-1] |= weights_of(learner) if run.name in OVERFLOWING | SPOILT else {}
    return found


def weights_of(learner: Learner) -> dict[str, float]:
    """Return the sum of the weights that this process has."""
    total = sum(whole(p).detach().double().sum().item() for p in learner.network.parameters())
    return {"weights": total}


if __name__ == "__main__":
    place = distributed.join(CPU)
    results = [losses(Segment(**segment), place) for segment in json.loads(sys.argv[2])]
    path = Path(sys.argv[1])
    if place.rank == 0:
        path.write_text(json.dumps(results))
    else:
        path.with_name(f"{path.stem}-{place.rank}.json").write_text(json.dumps(results))
    distributed.leave()
