"""Checkpoints of parts: complete or absent, read whole or in parts, and refused if they do not fit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import distributed_worker
import pytest
import torch
from distributed_worker import CPU, Segment
from helpers import resume, snapshot

from admg.checkpoints.weights import CheckpointError
from admg.engine.device import ALONE
from admg.models import UNet, UNetConfig
from admg.training import TrainConfig, checkpointing, distributed, sharded_checkpoint
from admg.training.step import Learner


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of this process alone, which can shard."""
    distributed.join(CPU, alone=True)
    yield
    distributed.leave()


def learner(shard: bool, channels: int = 32) -> Learner:
    """Return a learner of a small network in float64 that has taken three steps."""
    torch.manual_seed(0)
    task = distributed_worker.task_of("diffusion", torch.float64)
    if channels != 32:
        task.model.network = UNet(UNetConfig(**distributed_worker.SMALL | {"channels": channels}))
    config = TrainConfig(batch_size=4, lr=1e-3, warmup=1, precision="fp32", shard=shard, ema=(0.9, 0.5))
    made = Learner(task, config, CPU)
    generator = torch.Generator().manual_seed(1)
    for step in range(3):
        x = torch.rand(4, 1, 8, 8, generator=generator, dtype=torch.float64)
        t, noise, dropped = task.draw(x.shape, generator)
        made.step(step, (x, torch.tensor([0, 1, 2, 0]), t, noise.double(), dropped))
    return made


def whole(value: object) -> object:
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def check_same(a: dict, b: dict) -> None:
    first, second = (dict(sharded_checkpoint.flat(state)) for state in (a, b))
    assert first.keys() == second.keys() and any(isinstance(v, torch.Tensor) and v.ndim == 4 for v in first.values())
    for key, value in first.items():
        one, two = whole(value), whole(second[key])
        assert torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two, key


def test_a_file_holds_about_so_many_bytes():
    parts = {name: torch.zeros(size) for name, size in (("a", 10), ("b", 30), ("c", 5), ("d", 40), ("e", 1))}
    assert sharded_checkpoint.numbers_of_files(parts, 160) == {"a": 1, "b": 1, "c": 2, "d": 2, "e": 3}


@pytest.mark.thorough
@pytest.mark.parametrize("size", [pytest.param(1 << 30, marks=pytest.mark.slow), 100_000])
def test_parts_are_read_whole_and_in_parts(group, tmp_path, monkeypatch, size):
    """From one file of each process, or from several."""
    monkeypatch.setattr(sharded_checkpoint, "FILE_BYTES", size)
    saved = learner(shard=True)
    state = checkpointing.checkpoint_state(saved, 3)
    checkpointing.save(tmp_path, state)
    assert (len(list(tmp_path.glob("*/*/*.safetensors"))) > 1) == (size == 100_000)
    for shard in (False, True):
        fresh = Learner(distributed_worker.task_of("diffusion", torch.float64), saved.config, CPU) if shard else None
        if fresh is None:
            config = TrainConfig(batch_size=4, lr=1e-3, warmup=1, precision="fp32", ema=(0.9, 0.5))
            fresh = Learner(distributed_worker.task_of("diffusion", torch.float64), config, CPU)
        assert resume(tmp_path, fresh) == 3
        check_same(state, checkpointing.checkpoint_state(fresh, 3))
    assert all(average.count == 3 for average in fresh.averages)


@pytest.mark.thorough
def test_no_pickle_holds_the_parts(group, tmp_path):
    checkpointing.save(tmp_path, checkpointing.checkpoint_state(learner(shard=True), 3))
    names = {path.name for path in (tmp_path / "checkpoints" / "0000003").iterdir()}
    assert names == {"checksums.json", "rest.pt", "shard-00001-model-00001-of-00001.safetensors"}
    rest = torch.load(tmp_path / "checkpoints" / "0000003" / "rest.pt", weights_only=True)
    assert rest["step"] == 3 and not any(torch.is_tensor(v) and v.ndim for v in rest["network"].values())


@pytest.mark.thorough
def test_a_save_that_fails_leaves_the_checkpoint_before(group, tmp_path, monkeypatch):
    made = learner(shard=True)
    checkpointing.save(tmp_path, checkpointing.checkpoint_state(made, 3))
    before = snapshot(tmp_path)
    monkeypatch.setattr("torch.distributed.checkpoint.state_dict_saver.save", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        checkpointing.save(tmp_path, checkpointing.checkpoint_state(made, 6))
    assert snapshot(tmp_path) == before and checkpointing.latest(tmp_path) == tmp_path / "checkpoints" / "0000003"


@pytest.mark.thorough
def test_of_several_checkpoints_the_latest_counts(group, tmp_path):
    """A run that is killed between writing a checkpoint and removing the one before has both."""
    made, plain = learner(shard=True), learner(shard=False)
    checkpointing.save(tmp_path / "a", checkpointing.checkpoint_state(plain, 4))
    for step in (3, 5):
        checkpointing.save(tmp_path / str(step), checkpointing.checkpoint_state(made, step))
    there = tmp_path / "3" / "checkpoints"
    (tmp_path / "a" / "checkpoints" / "0000004").rename(there / "0000004")
    assert checkpointing.latest(tmp_path / "3") == there / "0000004"
    (tmp_path / "5" / "checkpoints" / "0000005").rename(there / "0000005")
    assert checkpointing.latest(tmp_path / "3") == there / "0000005"
    assert checkpointing.read(there / "0000005")["step"] == 5
    checkpointing.save(tmp_path / "3", checkpointing.checkpoint_state(plain, 6), keep=2)
    assert checkpointing.saved_checkpoints(tmp_path / "3") == [there / "0000005", there / "0000006"]


@pytest.mark.thorough
@pytest.mark.parametrize("shard", [True, False])
def test_parts_of_another_network_or_damaged_are_refused(group, tmp_path, shard):
    checkpointing.save(tmp_path, checkpointing.checkpoint_state(learner(shard=True), 3))
    reason = "cannot resume from .*checkpoints/0000003: .*(Size mismatch|loading state_dict)"
    with pytest.raises(CheckpointError, match=reason):
        resume(tmp_path, learner(shard, channels=64))
    path = next(Path(tmp_path, "checkpoints", "0000003").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-100])
    with (
        pytest.warns(UserWarning, match=r"skipping .*checkpoints/0000003: shard-.* is damaged"),
        pytest.raises(CheckpointError, match=r"all 1 checkpoints .* are damaged"),
    ):
        resume(tmp_path, learner(shard))


@pytest.mark.thorough
def test_one_process_writes_the_same_file_as_before(tmp_path):
    checkpointing.save(tmp_path, checkpointing.checkpoint_state(learner(shard=False), 3), ALONE)
    assert {path.name for path in (tmp_path / "checkpoints" / "0000003").iterdir()} == {"checksums.json", "state.pt"}
    assert Segment("float32").folder is None
