"""Time of a training step by number of processes, and what DDP, FSDP2 and the kernels of admg add or save.

    python benchmarks/scaling.py --size 32 --channels 64 --batch-size 8 --processes 1,2
    python benchmarks/scaling.py --recipe small-64 --batch-size 64 --precision bf16 --device cuda     one GPU

Every process takes the same number of images per step. The variants take turns within each round, so that changes in
the load of the machine affect all; ratios are medians over the rounds, with the smallest and the largest. In several
processes, the bytes that one process gives to the collectives of a step are counted by torch.profiler.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Model
from admg.cli.launch import free_port
from admg.cli.main import one_line
from admg.cli.options import Parser
from admg.diffusion.config import DiffusionConfig
from admg.engine.device import Processes, choose_device
from admg.models import UNet, UNetConfig
from admg.training import DiffusionTask, TrainConfig, distributed, recipe
from admg.training.recipes.measure import measure
from admg.training.step import Learner, with_network

VARIANTS = {
    1: ("accelerated", "plain", "accelerated, DDP", "FSDP2"),
    2: ("accelerated, DDP", "plain, DDP", "FSDP2"),
}
"""Variants in one process, and in two or more."""
COLLECTIVES = {"c10d::_allgather_base_": ("all-gather", 0), "c10d::_reduce_scatter_base_": ("reduce-scatter", 1)}
"""Names of the profiler, with the argument whose size is that of the whole tensor, in float32."""


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--recipe", help="recipe whose architecture is used, such as small-64 (default: the next two options)")
    add("--size", type=int, default=16, help="height and width of the images in pixels (default: 16)")
    add("--channels", type=int, default=32, help="channels of the network (default: 32)")
    add("--batch-size", type=int, default=8, help="images per step and process (default: 8)")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="number format (default: fp32)")
    add("--device", default="cpu", help="cpu or cuda (default: cpu)")
    add("--processes", default="1", help="numbers of processes, separated by commas (default: 1)")
    add("--rounds", type=int, default=7, help="rounds in which each variant takes its turn (default: 7)")
    add("--steps", type=int, default=3, help="steps of a turn (default: 3)")
    add("--json", type=Path, help="file for the measurements")
    add("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    try:
        if args.worker:
            args.worker.write_text(json.dumps(measured(args)))
            return 0
        counts = [int(count) for count in args.processes.split(",")]
        found = {count: launched(args, count, [*(argv or sys.argv[1:])]) for count in counts}
    except (ValueError, OSError) as error:
        print(f"scaling: error: {one_line(error)}", file=sys.stderr)
        return 2
    print(report(found, args))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def launched(args: argparse.Namespace, count: int, argv: list[str]) -> dict[str, Any]:
    """Return what the first of so many processes measured."""
    files = [Path(f".scaling-{os.getpid()}-{rank}.json").resolve() for rank in range(count)]
    place = {
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    started = [
        subprocess.Popen(
            [sys.executable, __file__, *argv, "--worker", str(file)],
            env=os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank, file in enumerate(files)
    ]
    try:
        if any([process.wait() for process in started]):
            raise ValueError(f"a process of {count} has failed")
        found: dict[str, Any] = json.loads(files[0].read_text())
        return found
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def architecture(args: argparse.Namespace) -> UNetConfig:
    """Return the architecture of the options."""
    if args.recipe:
        return dataclasses.replace(recipe(args.recipe).architecture, num_classes=0)
    return UNetConfig(
        image_size=args.size, channels=args.channels, channel_mult=(1, 2), num_res_blocks=1, head_channels=32,
        attention_resolutions=(args.size // 2,),
    )  # fmt: skip


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds of a step of each variant in each round, measured by this process and its companions."""
    device = choose_device(args.device)
    processes = distributed.join(device, alone=True)
    network = architecture(args)
    learners = {name: learner(name, network, args, device, processes) for name in VARIANTS[min(processes.count, 2)]}
    drawn = inputs(next(iter(learners.values())), args.batch_size)
    seconds: dict[str, list[float]] = {name: [] for name in learners}
    for made in learners.values():  # kernels are built and buffers allocated
        for step in range(2):
            made.step(step, drawn)
    for _ in range(args.rounds):
        for name, made in learners.items():
            distributed.wait_for_all(processes)
            seconds[name].append(timed(lambda made=made: made.step(5, drawn), args.steps, device))  # type: ignore
    moved = {name: bytes_moved(made, drawn) for name, made in learners.items()}
    peak = matmul_flops(device, args.precision)
    distributed.wait_for_all(processes)
    distributed.leave()
    cost = measure(network)
    return {"seconds": seconds, "bytes": moved, "parameters": cost.parameters, "peak": peak,
            "flops": args.batch_size * cost.training_flops}  # fmt: skip


def learner(
    name: str, network: UNetConfig, args: argparse.Namespace, device: torch.device, processes: Processes
) -> Learner:
    """Return a learner of a variant."""
    torch.manual_seed(0)
    process, shape = DiffusionConfig(), (network.image_channels, network.image_size, network.image_size)
    task = DiffusionTask(Model(UNet(network), process.build(), shape, Labels(0), process))
    config = TrainConfig(batch_size=args.batch_size * processes.count, precision=args.precision, shard=name == "FSDP2")
    plain = patch("admg.training.step.accelerate", lambda given, **options: given)
    if name.startswith("plain"):
        with plain:
            return Learner(task, config, device, processes)
    made = Learner(task, config, device, processes)
    if name == "accelerated, DDP" and processes.count == 1:
        made.fast_task = with_network(task, distributed.parallel(made.fast_task.network, device))
        made.backward = made._backward  # DDP is not captured in a CUDA graph
    return made


def inputs(made: Learner, count: int) -> list[Tensor]:
    """Return a batch with its random numbers."""
    shape = torch.Size((count, *made.task.model.shape))
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=generator) * 2 - 1
    drawn = made.task.draw(shape, generator)
    return [part.to(made.device) for part in (x, torch.full((count,), -1), *drawn)]


def timed(run: Callable[[], Any], steps: int, device: torch.device) -> float:
    """Return the seconds of one call, the mean of several."""
    wait(device)
    start = time.perf_counter()
    for _ in range(steps):
        run()
    wait(device)
    return (time.perf_counter() - start) / steps


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bytes_moved(made: Learner, drawn: list[Tensor]) -> dict[str, int]:
    """Return the size of the whole tensors that each kind of collective of a step exchanges."""
    found: dict[str, int] = {}

    def reduce(group, bucket):  # type: ignore[no-untyped-def]  # DDP refuses annotations that are text
        buffer = bucket.buffer()
        found["all-reduce"] = found.get("all-reduce", 0) + buffer.numel() * buffer.element_size()
        return allreduce_hook(group, bucket)

    if isinstance(made.fast_task.network, DistributedDataParallel):
        made.fast_task.network.register_comm_hook(dist.group.WORLD, reduce)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        made.step(9, drawn)
    for event in profile.events() or []:
        if event.name in COLLECTIVES:
            kind, argument = COLLECTIVES[event.name]
            found[kind] = found.get(kind, 0) + 4 * math.prod(event.input_shapes[argument])
    return found


def matmul_flops(device: torch.device, precision: str) -> float:
    """Return the highest number of operations per second of a square matrix product over several sizes."""
    dtype, best = torch.bfloat16 if precision == "bf16" else torch.float32, 0.0
    for n in (512, 1024) if device.type == "cpu" else (4096, 8192):
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        torch.mm(a, b)
        best = max(best, 2 * n**3 / timed(lambda a=a, b=b: torch.mm(a, b), 10, device))  # type: ignore
    return best


def report(found: dict[int, dict[str, Any]], args: argparse.Namespace) -> str:
    """Return the table: time of a step, its ratio to that of the first variant, and the share of the matmul speed."""
    lines = [f"{args.batch_size} images per step and process, {args.precision}, {args.device}"]
    lines.append("| processes | variant | ms per step | images/s | ratio (smallest, largest) | share of matmul |")
    lines.append("|---|---|---|---|---|---|")
    base = next(iter(found.values()))["seconds"]
    first = next(iter(base.values()))
    for count, one in found.items():
        own = next(iter(one["seconds"].values())) if count > 1 else first
        for name, seconds in one["seconds"].items():
            ratios = [a / b for a, b in zip(seconds, own)]
            middle = statistics.median(seconds)
            ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f})"
            share = one["flops"] / middle / one["peak"]
            rate = count * args.batch_size / middle
            lines.append(f"| {count} | {name} | {1e3 * middle:.1f} | {rate:.2f} | {ratio} | {share:.0%} |")
    lines.append("")
    for count, one in found.items():
        for name, moved in one["bytes"].items():
            text = ", ".join(f"{kind} {size / one['parameters']:.2f}" for kind, size in moved.items()) or "nothing"
            lines.append(f"{count} processes, {name}: bytes per parameter given to collectives: {text}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
