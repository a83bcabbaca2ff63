"""Short forms of the long tests of this folder, whose commands are in CONTRIBUTING.md."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tensorboard")
pytest.importorskip("fcntl", reason="processes are forked")
sys.path.insert(0, str(Path(__file__).parent))

import full_disk
import kills
import readers
import soak
from forks import Job


@pytest.fixture(scope="module")
def kind(tmp_path_factory) -> kills.Kind:
    return kills.training_kinds(kills.write_data(tmp_path_factory.mktemp("data") / "data.npz"))[0]


@pytest.fixture(scope="module")
def reference(kind, tmp_path_factory) -> kills.Reference:
    return kills.Reference(kind, tmp_path_factory.mktemp("reference") / "run")


@pytest.mark.process
@pytest.mark.thorough
def test_a_training_that_is_killed_ends_as_one_that_is_not(kind, reference, tmp_path):
    """Before an operation in the middle of a checkpoint, and before one after the last checkpoint."""
    assert reference.operations > 100
    for at in (reference.operations // 3, reference.operations - 12):
        outcome = kills.trial(kind, reference, tmp_path / str(at), at, random.Random(3))
        assert (outcome.difference, outcome.leftovers) == ("", []) and outcome.kills


@pytest.mark.process
@pytest.mark.thorough
def test_a_full_disk_costs_nothing_that_was_saved(kind, reference, tmp_path):
    """At an operation of the second checkpoint: the command ends with one line, and goes on when there is space."""
    at = reference.operations // 2
    assert full_disk.at_operation(kind, reference, tmp_path / "run", at) == ""


@pytest.mark.process
def test_every_read_of_a_model_that_is_replaced_is_whole(tmp_path):
    whole, models = readers.reads_while_replaced(tmp_path, 20)
    assert whole == 20 and models > 1


def script(name: str, *arguments: object) -> None:
    """Run one of the long tests with small numbers."""
    code = [sys.executable, str(Path(__file__).with_name(name)), *map(str, arguments)]
    done = subprocess.run(code, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("what", ["train", "sample"])
def test_kills(tmp_path, what):
    script("kills.py", what, "--trials", 40, "--out", tmp_path / "kills")


@pytest.mark.slow
def test_full_disks(tmp_path):
    script("full_disk.py", "--every", 10, "--out", tmp_path / "disk")


@pytest.mark.slow
def test_soak(tmp_path):
    script("soak.py", "--minutes", 2, "--every", 8, "--compare", 100, "--out", tmp_path / "soak")


@pytest.mark.thorough
def test_the_harness_sees_kills_and_operations(tmp_path):
    """A command that fails at its options writes nothing; one that lists recipes has no operations either."""
    job = Job(["recipes"], tmp_path / "none", tmp_path / "log")
    assert job.run() == [0] and job.operations() == 0
    assert Job(
        ["train", "--data", "x", "--out", str(tmp_path / "none"), "--steps", "0"], tmp_path / "none", tmp_path / "log"
    ).run() == [2]
    assert "steps" in full_disk.message(tmp_path / "log") and not (tmp_path / "none").exists()
    assert soak.KEEP % 10 == 0  # every tenth step is a checkpoint
