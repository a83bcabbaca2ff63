"""A process that ends is noticed by the others, which end as well and say which one it was."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers import state_file

import admg
from admg.engine.device import Processes
from admg.training import heartbeat
from admg.training.heartbeat import HeartbeatMonitor, ProcessLostError

GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:8906"
WORKER = Path(__file__).parents[1] / "dying_worker.py"
COMMAND = ["train", "--image-size", "8", "--channels", "32", "--channel-mult", "1,1", "--num-res-blocks", "1",
           "--head-channels", "32", "--attention-resolutions", "4", "--diffusion-steps", "50", "--batch-size", "8",
           "--precision", "fp32", "--checkpoint-every", "2", "--log-every", "1", "--unlabelled", "--seed", "3",
           "--steps", "1000"]  # fmt: skip


@pytest.fixture
def three(monkeypatch) -> Iterator[list[HeartbeatMonitor]]:
    """Watches of three processes in one, with a beat of 20 ms."""
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 0.02)
    store = dist.HashStore()
    monitors = [HeartbeatMonitor(store, Processes(rank, 3)) for rank in range(3)]
    yield monitors
    for one in monitors:
        one.stop()


@contextmanager
def raises_lost(message: str) -> Iterator[None]:
    with pytest.raises(ProcessLostError) as caught:
        yield
    assert str(caught.value) == message


@pytest.mark.thorough
def test_a_process_that_is_silent_is_named_to_all(three):
    """Rank 1 stops without a word; rank 0 monitors it, and rank 2 learns of it. It takes 30 beats, not fewer."""
    three[1].stopped.set()
    started = time.monotonic()
    for one in (three[0], three[2]):
        assert one.noticed.wait(10)
        with raises_lost("process 1 of 3 has ended without a message, or cannot be reached"), one.reporting_failures():
            raise RuntimeError(GLOO)
    assert time.monotonic() - started > 29 * 0.02


def test_a_lost_connection_shortens_the_wait(three):
    three[1].stopped.set()
    started = time.monotonic()
    with raises_lost("process 1 of 3 has ended without a message, or cannot be reached"), three[0].reporting_failures():
        raise RuntimeError(GLOO)
    assert three[0].max_missed == 3 and time.monotonic() - started < 25 * 0.02


def test_the_reason_of_an_error_is_said_to_the_others(three):
    with pytest.raises(OSError, match="cannot read"), three[2].reporting_failures():
        raise OSError("cannot read\n cat.png")
    for one in three[:2]:
        with raises_lost("process 2 of 3 has ended: cannot read cat.png"), one.reporting_failures():
            raise RuntimeError(GLOO)


@pytest.mark.thorough
def test_processes_that_leave_are_not_missed(three):
    for one in three[1:]:
        one.stop()
    assert not three[0].noticed.wait(40 * 0.02)


@pytest.mark.thorough
def test_a_process_that_cannot_be_interrupted_is_ended(three, monkeypatch):
    """Unless `guard` has raised in time."""
    monkeypatch.setattr(heartbeat, "ABORT_SECONDS", 0.1)
    reasons: list[str] = []
    three[0].on_stuck = three[2].on_stuck = reasons.append
    threading.Timer(0.05, three[2].raised.set).start()
    three[1].stopped.set()
    three[0].thread.join(10)
    three[2].thread.join(10)
    assert reasons == ["process 1 of 3 has ended without a message, or cannot be reached"]


def check_intact(out: Path) -> None:
    """The checkpoint before the end, of step 4, and its model are whole."""
    assert torch.load(state_file(out), weights_only=True)["step"] == 4
    assert admg.load(out).training["steps"] == 4


@pytest.mark.slow
def test_torchrun_names_the_process_that_fails(digits, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(WORKER)]
    command = [*launch, "error", "1", "5", *COMMAND, "--data", digits, "--out", str(tmp_path / "run")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode and "admg train: error: process 1 of 2: cannot read cat.png" in done.stderr
    check_intact(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "rank"),
    [("kill", 1), *(pytest.param(how, 0, marks=pytest.mark.slow) for how in ("kill", "error"))],
)
def test_without_torchrun_the_others_end_and_name_it(digits, tmp_path, how, rank):
    """Started as srun does. The first process holds the store that all meet at."""
    job = free_job()
    processes = []
    for number in (0, 1):
        place = {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number), "SLURM_STEP_NUM_TASKS": "2",
                 "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_JOB_ID": str(job)}  # fmt: skip
        command = [sys.executable, str(WORKER), how, str(rank), "5", *COMMAND, "--data", digits]
        environment = os.environ | place | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        processes.append(
            subprocess.Popen(
                [*command, "--out", str(tmp_path / "run")], stderr=subprocess.PIPE, text=True, env=environment
            )
        )
    errors = [process.communicate(timeout=200)[1].splitlines() for process in processes]
    reason = "cannot read cat.png" if how == "error" else "has ended"
    assert processes[rank].returncode == (-9 if how == "kill" else 2)
    other = 1 - rank
    assert processes[other].returncode == 2
    assert errors[other][-1].startswith(f"admg train: error: process {other} of 2: process {rank} of 2 has ended")
    assert reason in errors[other][-1] and not any("Traceback" in line for line in errors[other])
    check_intact(tmp_path / "run")


def free_job() -> int:
    """Return the number of a SLURM job whose port is free: 20000 and its last four digits."""
    for job in range(os.getpid() % 10000, os.getpid() % 10000 + 100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", 20000 + job % 10000)):
                return job
    raise AssertionError("no free port")
