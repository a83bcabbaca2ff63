"""Training with several processes gives the losses of one, resumes with another number, and refuses what cannot be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import distributed_worker
import numpy as np
import pytest
import torch
from distributed_worker import CPU, Segment
from helpers import make, randomised, refused, state_file

import admg
from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Model
from admg.cli.main import main
from admg.data import batches
from admg.diffusion.config import DiffusionConfig
from admg.engine.cpu import training as cpu_training
from admg.engine.device import ALONE, Processes, rendezvous
from admg.models import UNet, UNetConfig
from admg.training import DiffusionTask, TrainConfig, checkpointing, distributed
from admg.training.prefetch import prefetch
from admg.training.step import Learner, with_network

WORKER = Path(distributed_worker.__file__)
COMMAND = ["train", "--image-size", "8", "--channels", "32", "--channel-mult", "1,1", "--num-res-blocks", "1",
           "--head-channels", "32", "--attention-resolutions", "4", "--diffusion-steps", "50", "--batch-size", "8",
           "--precision", "fp32", "--lr", "3e-4", "--warmup", "2", "--checkpoint-every", "2", "--log-every", "1",
           "--preview-every", "4"]  # fmt: skip


def torchrun(count: int, *command: object) -> subprocess.CompletedProcess[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([*launch, *map(str, command)], capture_output=True, text=True, env=environment)


Measurements = dict[str, list[dict[str, float]]]


def measured(count: int, segments: list[Segment], folder: Path) -> list[list[dict[str, float]]]:
    """Return the measurements of segments of runs by so many processes of the worker; one process is this one."""
    if count == 1:
        return [distributed_worker.losses(segment, ALONE) for segment in segments]
    done = torchrun(count, WORKER, folder / f"{count}.json", json.dumps([*map(asdict, segments)]))
    assert not done.returncode, done.stderr[-2000:]
    return json.loads((folder / f"{count}.json").read_text())


def losses_of(count: int, names: list[str], folder: Path, **changes: int) -> Measurements:
    """Return the measurements of runs of the worker by so many processes."""
    return dict(zip(names, measured(count, [Segment(name, **changes) for name in names], folder)))


FAST = ["float64 accumulated", "float64 classifier", "float64 sharded, accumulated", "float32"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[int, Measurements]:
    folder = tmp_path_factory.mktemp("distributed")
    return {count: losses_of(count, FAST, folder, until=4) for count in (1, 2)}


def check_equal(one: Measurements, several: Measurements, name: str, title: str = "") -> None:
    """In float64 to 1e-10; in float32 to 1e-5, which rounding exceeds after more steps than these.

    title: prints a row of the table in docs/distributed.md, with `pytest -s`
    """
    rows = list(zip(one[name], several[name], strict=True))
    largest = max(abs(b[key] / a[key] - 1) for a, b in rows for key in a if a[key])
    if title:
        print(f"\n| {title} | {name} | {len(rows)} | {largest:.1e} |")
    for a, b in rows:
        assert b == pytest.approx(a, rel=1e-10 if name.startswith("float64") else 1e-5)
    assert len({row["loss"] for row in one[name]}) == len(one[name])


@pytest.mark.process
@pytest.mark.parametrize("name", FAST)
def test_two_processes_have_the_losses_of_one(runs, name):
    check_equal(runs[1], runs[2], name)


@pytest.mark.slow
def test_processes_skip_the_same_steps_of_fp16(tmp_path):
    """The gradient overflows at the first scales, and then does not: both take the same steps, sharded or not."""
    plain, sharded = measured(2, [Segment(name) for name in distributed_worker.OVERFLOWING], tmp_path)
    other = json.loads((tmp_path / "2-1.json").read_text())  # of the second process
    for first, second in zip((plain, sharded), other, strict=True):
        assert 0 < sum(row["skipped"] for row in first) < len(first)
        assert first == second  # the scale, the other measurements and the weights too
    assert plain[-1]["weights"] == pytest.approx(sharded[-1]["weights"], rel=1e-4)


@pytest.mark.slow
def test_all_processes_skip_a_step_that_is_infinite_on_one(tmp_path):
    """Sharded or not, with the losses and weights of one process that skips it."""
    names = list(distributed_worker.SPOILT)
    first = measured(2, [Segment(name) for name in names], tmp_path)
    second = json.loads((tmp_path / "2-1.json").read_text())
    (alone,) = measured(1, [Segment("spoilt")], tmp_path)
    expected = [float(step == distributed_worker.SPOILT_AT) for step in range(len(alone))]
    for run in (alone, *first, *second):
        assert [row["skipped"] for row in run] == expected
        usual = [row for row, skipped in zip(run, expected) if not skipped]
        for a, b in zip((row for row, skipped in zip(alone, expected) if not skipped), usual, strict=True):
            assert b == pytest.approx(a, rel=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_losses_of_200_steps(tmp_path, count):
    names = [name for name in distributed_worker.RUNS if name.startswith("float64")]
    one, several = (losses_of(n, names, tmp_path, longer=20) for n in (1, count))
    for name in names:
        assert len(one[name]) >= 200
        check_equal(one, several, name, f"{count} processes")


def check_elastic(tmp_path: Path, name: str, parts: list[tuple[int, bool]]) -> None:
    """A run in several parts, each by a number of processes that shard or not, has the losses of one process."""
    found = []
    for number, (count, shard) in enumerate(parts, 1):
        segment = Segment(name, folder=str(tmp_path / "run"), until=3 * number, shard=shard)
        found += measured(count, [segment], tmp_path)[0]
    (alone,) = measured(1, [Segment(name, until=3 * len(parts))], tmp_path)
    title = ", then ".join(f"{count} {'FSDP2' if shard else 'DDP' if count > 1 else 'alone'}" for count, shard in parts)
    check_equal({name: alone}, {name: found}, name, title)


@pytest.mark.slow
def test_processes_that_shard_continue_as_one_and_again_as_two(tmp_path):
    """In float64. The checkpoint of parts is followed by one that is whole, and that by parts again."""
    check_elastic(tmp_path, "float64 sharded", [(2, True), (1, False)])
    assert state_file(tmp_path / "run").exists()
    continued = [Segment("float64", folder=str(tmp_path / "run"), until=9, shard=True)]
    (found,) = measured(2, continued, tmp_path)
    (alone,) = measured(1, [Segment("float64", until=9)], tmp_path)
    check_equal({"float64": alone[6:]}, {"float64": found}, "float64")
    assert [path.name for path in checkpointing.saved_checkpoints(tmp_path / "run")] == [
        "0000003",
        "0000006",
        "0000009",
    ]


@pytest.mark.slow
def test_the_losses_of_timesteps_are_resumed_by_any_number_of_processes(tmp_path):
    """Timesteps drawn by their losses, whose history is full after a few steps."""
    check_elastic(tmp_path, "float64 importance", [(2, True), (1, False), (2, False)])


@pytest.mark.slow
@pytest.mark.parametrize(
    "parts",
    [
        [(2, False), (1, False), (4, False)],  # DDP
        [(2, True), (2, False), (1, False)],  # FSDP2, then DDP
        [(1, False), (4, True), (2, True)],
        [(4, True), (1, False), (2, False)],
    ],
)
@pytest.mark.parametrize("name", ["float64", "float64 accumulated", "float32"])
def test_any_number_of_processes_continues_a_run(tmp_path, name, parts):
    check_elastic(tmp_path, name, parts)


@pytest.mark.slow
def test_a_run_continues_with_another_number_of_processes(digits, tmp_path):
    """Two steps by two processes that shard, two by one and two by two give the log and the averages of one."""
    averages = ["--ema", "10%,0.5", "--ema-snapshots", "2"]
    command = [*COMMAND, "--data", digits, "--seed", "3", "--unlabelled", *averages]
    assert main([*command, "--steps", "6", "--out", str(tmp_path / "one")]) == 0
    for count, *more in ((2, "--steps", 2, "--shard"), (1, "--steps", 4), (2, "--steps", 6)):
        done = torchrun(count, "-m", "admg", *command, *more, "--out", tmp_path / "several")
        assert not done.returncode, done.stderr[-2000:]
        assert done.stdout.count("run directory") == 1
    logs = [np.genfromtxt(tmp_path / run / "log.csv", delimiter=",", names=True) for run in ("one", "several")]
    assert logs[1]["step"].tolist() == [1, 2, 3, 4, 5, 6]
    for column in ("loss", "mse", "grad_norm"):
        assert logs[1][column] == pytest.approx(logs[0][column], rel=2e-5)
    assert [path.name for path in sorted((tmp_path / "several" / "samples").iterdir())][-1] == "step_0000006.png"
    models = [
        [admg.load(tmp_path / run / name) for name in ("model", "model-ema-0.5")]
        + [admg.reconstruct_ema(tmp_path / run, "5%")]
        for run in ("one", "several")
    ]
    for one, several in zip(*models, strict=True):
        assert one.training["average"] == several.training["average"]
        a, b = (torch.nn.utils.parameters_to_vector(model.network.parameters()) for model in (one, several))
        # AdamW moves a weight by up to lr in each step, also where its gradient is nothing but rounding
        assert (a - b).square().mean().sqrt() < 0.01 * 6 * 3e-4


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of this process alone."""
    distributed.join(CPU, alone=True)
    yield
    distributed.leave()


def steps_of(monkeypatch, precision: str, ddp: bool) -> tuple[list[float], int]:
    """Return the losses of three steps in one process, and how often a convolution in C was called."""
    calls: list[int] = []
    convolve = cpu_training._convolve
    task = DiffusionTask(make_wide(), label_dropout=0.0)
    learner = Learner(task, TrainConfig(batch_size=4, precision=precision, warmup=1, lr=1e-3), CPU)
    if ddp:
        learner.fast_task = with_network(task, distributed.parallel(learner.fast_task.network, CPU))
    x = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    drawn = (x, torch.full((4,), -1), *task.draw(x.shape, torch.Generator().manual_seed(2)))
    with monkeypatch.context() as patch:
        patch.setattr(cpu_training, "_convolve", lambda *a, **k: calls.append(1) or convolve(*a, **k))
        losses = [learner.step(step, drawn)["loss"].item() for step in range(3)]
    return losses, len(calls)


def make_wide() -> Model:
    """Return a model whose convolutions are wide enough for the kernels of training."""
    torch.manual_seed(0)
    process = DiffusionConfig(diffusion_steps=50)
    config = {"image_size": 16, "image_channels": 1, "channels": 64, "channel_mult": (1,), "num_res_blocks": 1}
    return Model(UNet(UNetConfig(**config, attention_resolutions=())), process.build(), (1, 16, 16), Labels(0), process)


@pytest.mark.thorough
def test_kernels_and_bf16_run_under_ddp(group, monkeypatch):
    """The same kernels are called as without it, with the same losses; bf16 differs from float32."""
    alone, called = steps_of(monkeypatch, "fp32", ddp=False)
    if not called:
        pytest.skip("this processor has no kernels for training")
    assert steps_of(monkeypatch, "fp32", ddp=True) == (pytest.approx(alone, rel=1e-6), called)
    half, _ = steps_of(monkeypatch, "bf16", ddp=False)
    assert steps_of(monkeypatch, "bf16", ddp=True)[0] == pytest.approx(half, rel=1e-3)
    assert half[2] != alone[2] and half == pytest.approx(alone, rel=0.1)  # the last layer begins at 0


@pytest.mark.thorough
def test_one_process_can_shard(digits, tmp_path, capsys):
    """With the losses of a run that does not; the process group of one is left at the end. A line names the cost."""
    command = [*COMMAND, "--data", digits, "--unlabelled", "--steps", "2"]
    for name, *more in (("plain",), ("sharded", "--shard")):
        assert main([*command, *more, "--out", str(tmp_path / name)]) == 0
        assert not torch.distributed.is_initialized()
        stated = "weights divided among the processes (FSDP2): steps run without the kernels of admg"
        assert (stated in capsys.readouterr().out) == (name == "sharded")
    logs = [np.genfromtxt(tmp_path / run / "log.csv", delimiter=",", names=True) for run in ("plain", "sharded")]
    assert logs[1]["loss"] == pytest.approx(logs[0]["loss"], rel=1e-5)


def test_a_batch_that_cannot_be_divided_is_refused_with_the_nearest(monkeypatch, digits, tmp_path, capsys):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "0")
    message = refused(capsys, *COMMAND, "--data", digits, "--out", tmp_path / "run")
    assert "--batch-size 8 cannot be divided among 3 processes; the nearest is 6 or 9" in message
    assert not list((tmp_path / "run").glob("*"))
    with pytest.raises(ValueError, match="accumulate must be at most the 2 images of one process, got 4"):
        distributed.share_of(8, 4, Processes(0, 4))
    assert distributed.share_of(8, 2, Processes(0, 4)) == 2


@pytest.mark.thorough
def test_dropout_differs_between_processes(digits, monkeypatch):
    """Equal masks on all processes would correlate the parts of a batch; those of one process and step are the same."""
    monkeypatch.setattr(distributed, "averaged", lambda means, processes: dict(means))  # there is no process group
    task = make(dropout=0.5)
    randomised(task.network, 0).requires_grad_(True)
    learner = Learner(task, TrainConfig(batch_size=10, precision="fp32", lr=1e-12), torch.device("cpu"))
    drawn = next(prefetch(learner.task, batches(admg.data.open(digits, 8), 10, seed=0), 0, 0, learner.device))

    def loss(step: int, rank: int) -> float:
        learner.processes = Processes(rank, 8)
        return learner.step(step, drawn)["loss"].item()

    found = [loss(step, rank) for step in (0, 1) for rank in (0, 1, 7)]
    assert len(set(found)) == 6 and loss(1, 7) == pytest.approx(found[-1], rel=1e-6)


def test_a_sharded_network_is_not_compiled():
    with pytest.raises(ValueError, match="shard and compile=on cannot be combined"):
        TrainConfig(shard=True, compile="on")


@pytest.mark.parametrize(
    ("environment", "place", "address"),
    [
        ({}, (0, 1, 0), "env://"),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "a"}, (5, 8, 1), "env://"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (0, 1, 0), "env://"),  # within salloc, without srun
        (
            {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "1234567",
             "SLURM_STEP_NODELIST": "gpu[07-08,11]"},
            (3, 4, 1), "tcp://gpu07:24567",
        ),
        (
            {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "9",
             "SLURM_STEP_NODELIST": "alpha,beta"},
            (0, 2, 0), "tcp://alpha:20009",
        ),
    ],
)  # fmt: skip
def test_places_and_addresses_of_launchers(monkeypatch, environment, place, address):
    for name in list(os.environ):
        if name.startswith("SLURM_") or name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Processes.from_environment() == Processes(*place)
    assert rendezvous() == address
