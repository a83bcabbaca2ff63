"""One of the processes that test_distributed.py starts with torchrun: trains small networks and saves their losses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Classifier, Model
from admg.data import batches, from_arrays
from admg.diffusion.config import DiffusionConfig
from admg.engine.device import Processes
from admg.models import ClassifierConfig, NoisyClassifier, UNet, UNetConfig
from admg.training import ClassifierTask, DiffusionTask, TrainConfig, distributed
from admg.training.prefetch import prefetch
from admg.training.step import Learner

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
    "float32": ("diffusion", torch.float32, 20, {}),
}


def task_of(kind: str, dtype: torch.dtype) -> DiffusionTask | ClassifierTask:
    torch.manual_seed(0)
    process = DiffusionConfig(diffusion_steps=50)
    if kind == "classifier":
        classifier = NoisyClassifier(ClassifierConfig(**SMALL)).to(dtype)
        return ClassifierTask(Classifier(classifier, process.build(), Labels(3), process))
    network = UNet(UNetConfig(**SMALL)).to(dtype)
    return DiffusionTask(Model(network, process.build(), (1, 8, 8), Labels(3), process), label_dropout=0.3)


def losses(name: str, processes: Processes, longer: int = 1) -> list[dict[str, float]]:
    """Return the measurements of each step of a run, which may be some times longer."""
    kind, dtype, steps, options = RUNS[name]
    if processes.count == 1:
        options = options | {"shard": False}
    images = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    data = from_arrays(images, list(range(3)) * 10, value_range=(0, 1), flip=True)
    config = TrainConfig(**{"batch_size": 4, "lr": 1e-3, "warmup": 10, "precision": "fp32"} | options)
    task = task_of(kind, dtype)
    learner = Learner(task, config, CPU, processes)
    stream = batches(data, config.batch_size, seed=0, part=(processes.rank, processes.count))
    found = []
    for step, drawn in zip(range(steps * longer), prefetch(task, stream, 0, 0, CPU, processes)):
        drawn = [part.to(dtype) if part.is_floating_point() else part for part in drawn]
        found.append({key: value.item() for key, value in learner.step(step, drawn).items()})
    return found


if __name__ == "__main__":
    place = distributed.join(CPU)
    results = {name: losses(name, place, int(sys.argv[3])) for name in sys.argv[2].split("; ")}
    if place.rank == 0:
        Path(sys.argv[1]).write_text(json.dumps(results))
    distributed.leave()
