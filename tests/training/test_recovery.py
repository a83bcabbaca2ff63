"""A run that goes wrong goes back, damaged checkpoints are skipped, and a run is resumed only as what it is."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make, refused, run, snapshot, state_file
from safetensors import SafetensorError

import admg
from admg.data import open as open_dataset
from admg.training import TrainConfig, TrainingRun, checkpointing, run_settings
from admg.training.defaults import LR
from admg.training.log import Log
from admg.training.run_directory import clear
from admg.training.stopping import StopSignals

pytestmark = pytest.mark.usefixtures("simple_pictures")
OPTIONS = {"batch_size": 10, "precision": "fp32", "warmup": 1, "log": ("none",), "checkpoint_every": 2, "log_every": 3,
           "preview_every": 1000}  # fmt: skip


def begin(digits: str, out: Path, task=None, **options) -> TrainingRun:
    return TrainingRun(task or make(), open_dataset(digits, 8), out, TrainConfig(**OPTIONS | options))


def losses(training: TrainingRun) -> list[float]:
    return [step["loss"] for step in training]


def broken(task, at: set[int]):
    """Return the task with infinite losses the first times that these batches come, by their timesteps."""
    loss, seen = type(task).loss, []

    class Broken(type(task)):
        def loss(self, x, y, *drawn):
            terms = loss(self, x, y, *drawn)
            seen.append(1)
            return terms | {"loss": terms["loss"] * (float("inf") if len(seen) - 1 in at else 1)}

    Broken.__name__ = type(task).__name__  # which run.json records
    task.__class__ = Broken
    return task


@pytest.mark.thorough
def test_one_infinite_step_is_skipped_and_the_run_goes_on(digits, tmp_path):
    training = begin(digits, tmp_path, broken(make(), {3}), steps=8)
    skipped = [step["skipped"] for step in training]
    assert skipped == [0, 0, 0, 1, 0, 0, 0, 0]
    assert all(p.isfinite().all() for p in training.model.network.parameters())
    rows = (tmp_path / "log.csv").read_text().splitlines()
    assert "nan" not in "".join(rows).lower() and "inf" not in "".join(rows).lower()
    plain = losses(begin(digits, tmp_path / "plain", steps=3))
    assert losses(begin(digits, tmp_path / "again", broken(make(), {3}), steps=3)) == plain


@pytest.mark.thorough
def test_a_run_whose_last_step_is_skipped_is_saved_all_the_same(digits, tmp_path):
    with pytest.warns(UserWarning, match="step 5, the last one, had a loss that was not finite or too high"):
        losses(begin(digits, tmp_path, broken(make(), {4}), steps=5))
    assert checkpointing.step_of(checkpointing.saved_checkpoints(tmp_path)[-1]) == 5
    assert admg.load(tmp_path / "model").training["steps"] == 5


@pytest.mark.thorough
def test_ten_infinite_steps_bring_the_run_back_with_half_the_rate(digits, tmp_path):
    training = begin(digits, tmp_path, broken(make(), set(range(5, 15))), steps=17)
    with pytest.warns(
        UserWarning, match=r"10 steps in a row .*: returning from step 15 to the checkpoint of step 4, .* 0\.5"
    ):
        taken = [(step["step"], step["lr"]) for step in training]
    assert [number for number, _ in taken] == [*range(1, 15), *range(5, 18)]
    assert {lr for number, lr in taken[14:]} == {0.5 * training.config.lr}
    steps = [int(row.split(",")[0]) for row in (tmp_path / "log.csv").read_text().splitlines()[1:]]
    assert steps == [3, 6, 9, 12, 15, 17]
    assert checkpointing.read(checkpointing.saved_checkpoints(tmp_path)[-1])["learner"]["lr_factor"] == 0.5
    resumed = begin(digits, tmp_path, steps=18)
    assert [step["lr"] for step in resumed] == [0.5 * training.config.lr]
    assert [step["lr"] for step in begin(digits, tmp_path, steps=19, lr=1e-4)] == [1e-4]  # chosen anew


@pytest.mark.thorough
def test_without_a_checkpoint_the_run_ends_with_one_line(capsys, digits, tmp_path):
    with pytest.raises(FloatingPointError, match="no checkpoint to go back to: choose a smaller lr"):
        losses(begin(digits, tmp_path, steps=30, lr=1e30, checkpoint_every=100))
    assert not checkpointing.saved_checkpoints(tmp_path) and not (tmp_path / "model").exists()
    losses(begin(digits, tmp_path, steps=2))  # and can be begun again


@pytest.mark.thorough
def test_a_run_that_fails_again_goes_further_back(digits, tmp_path):
    """Until there is no checkpoint: each repetition would be the same, were it not for the learning rate."""
    losses(begin(digits, tmp_path, steps=6))
    hopeless = begin(digits, tmp_path, broken(make(), set(range(1000))), steps=20, rollback_lr=1.0)
    with (
        pytest.warns(UserWarning) as warned,
        pytest.raises(FloatingPointError, match="no further checkpoint to go back to"),
    ):
        losses(hopeless)
    texts = [str(w.message) for w in warned if "returning from" in str(w.message)]
    assert [text.split("checkpoint of step ")[1] for text in texts] == ["6", "4", "2"]
    assert [path.name for path in checkpointing.saved_checkpoints(tmp_path)] == ["0000002"]


@pytest.mark.thorough
def test_the_last_checkpoints_and_every_tenth_stay(digits, tmp_path):
    losses(begin(digits, tmp_path, steps=9, checkpoint_every=1, keep_checkpoints=2, keep_every=4))
    assert [checkpointing.step_of(path) for path in checkpointing.saved_checkpoints(tmp_path)] == [4, 8, 9]


@pytest.mark.thorough
def test_every_flipped_bit_of_a_checkpoint_is_noticed_and_the_one_before_is_taken(digits, tmp_path):
    whole = losses(begin(digits, tmp_path / "whole", steps=8))
    losses(begin(digits, tmp_path, steps=6))
    path = state_file(tmp_path)
    content = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for position in (0, len(content) - 1, *torch.randint(len(content), (20,), generator=generator).tolist()):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(torch.randint(8, (), generator=generator))
        path.write_bytes(bytes(damaged))
        assert checkpointing.damage(path.parent) == "state.pt is damaged"
    with pytest.warns(UserWarning, match=r"skipping .*0000006: state\.pt is damaged"):
        resumed = begin(digits, tmp_path, steps=8)
    assert resumed.first_step == 4 and losses(resumed) == whole[4:]
    for checkpoint in checkpointing.saved_checkpoints(tmp_path):
        (checkpoint / "checksums.json").unlink()
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=r"all 3 checkpoints of the run .* are damaged"):
        begin(digits, tmp_path, steps=9)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "change, message",
    [
        ({"seed": 1}, "seed is 0 there, 1 here"),
        ({"batch_size": 5}, "batch_size is 10 there, 5 here"),
        ({"sampling": "balanced"}, "sampling is uniform there, balanced here"),
    ],
)
def test_what_decides_the_meaning_of_a_run_cannot_change(digits, tmp_path, change, message):
    losses(begin(digits, tmp_path, steps=2))
    with pytest.raises(ValueError, match=message):
        begin(digits, tmp_path, steps=4, **change)


@pytest.mark.thorough
def test_other_data_are_refused_and_moved_data_are_not(digits, tmp_path):
    images = open_dataset(digits, 8)
    config = TrainConfig(**OPTIONS, steps=2)
    losses(TrainingRun(make(), images, tmp_path / "run", config))
    moved = tmp_path / "moved.npz"
    moved.write_bytes(Path(digits).read_bytes())
    assert TrainingRun(make(), open_dataset(moved, 8), tmp_path / "run", config).step == 2
    other = open_dataset(moved, 8)
    other.images = other.images.copy()
    other.images[0, 0, 0, 0] ^= 1
    with pytest.raises(ValueError, match=r"data\.content is .* there"):
        TrainingRun(make(), other, tmp_path / "run", config)


def test_every_image_of_a_large_array_counts(tmp_path):
    np.savez(tmp_path / "many.npz", arr_0=np.zeros((3001, 8, 8, 1), np.uint8))
    images = open_dataset(tmp_path / "many.npz", 8)
    before = run_settings.data_of(images)
    images.images = images.images.copy()
    images.images[3000, 7, 7, 0] = 1
    assert run_settings.data_of(images)["pixels"] != before["pixels"]
    earlier = {name: value for name, value in before.items() if name != "pixels"}  # a record of an earlier version
    (tmp_path / "run.json").write_text(json.dumps({"settings": {"data": earlier}, "options": {}, "changes": []}))
    run_settings.check_settings(tmp_path, {"data": before}, {})


@pytest.mark.thorough
def test_what_may_change_is_recorded(digits, tmp_path):
    losses(begin(digits, tmp_path, steps=2))
    losses(begin(digits, tmp_path, steps=4, lr=1e-5, accumulate=2))
    record = json.loads((tmp_path / "run.json").read_text())
    (change,) = record["changes"]
    assert change["step"] == 2 and "lr is 0.001 there, 1e-05 here" in change["changed"]
    (tmp_path / "run.json").write_text("{")  # a side file never stops the run
    with pytest.warns(UserWarning, match=r"run\.json will be rewritten"):
        assert len(losses(begin(digits, tmp_path, steps=5, lr=1e-5))) == 1


@pytest.mark.thorough
def test_a_finished_model_is_not_overwritten_without_the_option(digits, tmp_path):
    losses(begin(digits, tmp_path, steps=2, lr=5e-3))
    (tmp_path / "notes.txt").write_text("mine")
    for checkpoint in checkpointing.saved_checkpoints(tmp_path):
        for file in checkpoint.iterdir():
            file.unlink()
        checkpoint.rmdir()
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="holds a model but no checkpoint"):
        begin(digits, tmp_path, steps=4)
    task, data = make(), open_dataset(digits, 8)
    again = TrainingRun(task, data, tmp_path, TrainConfig(**OPTIONS, steps=1, seed=1), overwrite=True)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before  # until the first step
    losses(again)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() != before and (tmp_path / "notes.txt").exists()
    clear(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "notes.txt"]


@pytest.mark.thorough
def test_a_run_that_is_replaced_decides_no_option(digits, tmp_path):
    losses(begin(digits, tmp_path, steps=1, lr=5e-3))
    config, data = TrainConfig(**OPTIONS, steps=1), open_dataset(digits, 8)
    assert TrainingRun(make(), data, tmp_path, config).config.lr == 5e-3
    assert TrainingRun(make(), data, tmp_path, config, overwrite=True).config.lr == LR


@pytest.mark.thorough
def test_two_runs_do_not_share_a_directory(digits, tmp_path):
    first = begin(digits, tmp_path, steps=5)
    next(first)
    with pytest.raises(ValueError, match=r"in use by a run of this process: end that run with run.stop\(\)"):
        next(begin(digits, tmp_path, steps=5))
    first.close()
    second = begin(digits, tmp_path, steps=5)
    assert [next(second)["step"] for _ in range(2)] == [1, 2]
    second.stop()
    assert next(second)["step"] == 3 and next(second, None) is None
    assert len(losses(begin(digits, tmp_path, steps=5))) == 2


@pytest.fixture
def interruptible():
    """Python's handler of Ctrl-C, which is missing if the tests run in the background of a script."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.thorough
def test_ctrl_c_ends_the_step_and_saves_a_checkpoint(digits, tmp_path, interruptible):
    whole = losses(begin(digits, tmp_path / "whole", steps=4))
    run = begin(digits, tmp_path / "run", steps=4, checkpoint_every=100)
    first, take = next(run)["loss"], run._step

    def interrupted(*given):
        signal.raise_signal(signal.SIGINT)
        return take(*given)

    run._step = interrupted
    with pytest.raises(KeyboardInterrupt):
        next(run)
    assert next(run, None) is None and run.saved == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert [first, *losses(begin(digits, tmp_path / "run", steps=4))] == [whole[0], *whole[2:]]


@pytest.mark.thorough
def test_a_row_of_the_log_covers_the_steps_before_an_interruption(digits, tmp_path):
    """Rows are due every three steps and checkpoints every two."""
    whole = begin(digits, tmp_path / "whole", steps=9)
    losses(whole)
    parts = begin(digits, tmp_path / "parts", steps=9)
    for _ in range(5):
        next(parts)
    parts.close()
    losses(begin(digits, tmp_path / "parts", steps=9))
    rows = [[line.split(",")[:5] for line in (tmp_path / name / "log.csv").read_text().splitlines()]
            for name in ("whole", "parts")]  # fmt: skip
    assert rows[0] == rows[1]


@pytest.mark.thorough
def test_side_files_never_stop_the_run(digits, tmp_path):
    (tmp_path / "curves.png").mkdir(parents=True)  # cannot be replaced by a file
    training = begin(digits, tmp_path, steps=2)
    with pytest.warns(UserWarning, match=r"could not write curves\.png"):
        losses(training)
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.warns(UserWarning, match="could not write the model in"):
        losses(begin(digits, tmp_path, steps=4))
    assert checkpointing.step_of(checkpointing.saved_checkpoints(tmp_path)[-1]) == 4
    assert (tmp_path / "model" / "notes.txt").read_text() == "mine"


@pytest.mark.thorough
def test_a_full_disk_leaves_what_was_saved_before(digits, tmp_path, monkeypatch):
    """torch.save and safetensors have errors of their own for it."""
    losses(begin(digits, tmp_path, steps=2))
    before = snapshot(tmp_path / "checkpoints")

    def full(kind: type[Exception]):
        def write(*arguments, **options):
            raise kind("[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/0")

        return write

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full(RuntimeError))
        with pytest.raises(OSError, match=r"cannot write .*0000004: .*failed writing"):
            losses(begin(digits, tmp_path, steps=4))
    assert snapshot(tmp_path / "checkpoints") == before
    with monkeypatch.context() as patch:
        patch.setattr("admg.checkpoints.native.save_file", full(SafetensorError))
        with pytest.warns(
            UserWarning, match="could not write the model in .*: cannot write .*; the checkpoint is not affected"
        ):
            losses(begin(digits, tmp_path, steps=4))
    assert checkpointing.step_of(checkpointing.saved_checkpoints(tmp_path)[-1]) == 4
    assert admg.load(tmp_path / "model").training["steps"] == 2


@pytest.mark.thorough
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_run_after_the_step_with_a_checkpoint(digits, tmp_path, number):
    whole = losses(begin(digits, tmp_path / "whole", steps=6))
    training = begin(digits, tmp_path, steps=6, checkpoint_every=100)
    found = []
    with StopSignals(training.stop) as signals:
        for step in training:
            found.append(step["loss"])
            if step["step"] == 3:
                os.kill(os.getpid(), number)
    assert signals.received == number and training.stopped and len(found) == 4
    assert signal.getsignal(number) != signals._note
    assert found + losses(begin(digits, tmp_path, steps=6, checkpoint_every=100)) == whole


def test_a_second_interrupt_ends_the_run_at_once():
    with pytest.raises(KeyboardInterrupt), StopSignals(lambda: None):
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)


COMMAND = ["train", "--image-size", "8", "--channels", "32", "--channel-mult", "1,1", "--num-res-blocks", "1",
           "--head-channels", "32", "--attention-resolutions", "4", "--diffusion-steps", "50", "--batch-size", "8",
           "--precision", "fp32", "--checkpoint-every", "1000", "--log", "none", "--seed", "3"]  # fmt: skip


@pytest.mark.slow
def test_the_command_exits_with_the_code_of_the_signal(capsys, digits, tmp_path):
    """So that a batch script can put it in the queue again, where the same command resumes."""
    out = tmp_path / "run"
    arguments = [*COMMAND, "--data", digits, "--steps", "100000", "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": str(Path(admg.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "admg", *arguments], stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stderr is not None and process.stdout is not None
        while b"loss" not in process.stderr.read1():  # the progress bar
            pass
        process.send_signal(signal.SIGUSR1)
        output = process.stdout.read().decode()
        assert process.wait() == 128 + signal.SIGUSR1
    assert "which is saved; the same command resumes" in output
    (checkpoint,) = checkpointing.saved_checkpoints(out)
    steps = checkpointing.step_of(checkpoint) + 1
    arguments[arguments.index("100000")] = str(steps)
    assert run(capsys, *arguments)[0] == 0


@pytest.mark.thorough
def test_the_command_names_what_differs(capsys, digits, tmp_path):
    arguments = [*COMMAND, "--data", digits, "--out", str(tmp_path / "run")]
    assert run(capsys, *arguments, "--steps", 2)[0] == 0
    assert "seed is 3 there, 4 here" in refused(capsys, *arguments, "--steps", 3, "--seed", 4)
    assert "attention heads" in refused(capsys, *arguments, "--steps", 3, "--head-channels", 16)
    assert run(capsys, *arguments, "--steps", 2, "--seed", 4, "--overwrite")[0] == 0


@pytest.mark.thorough
def test_damaged_descriptions_outside_the_checkpoints_never_stop_a_run(digits, tmp_path):
    """model/config.json, run.json and log.csv: each checkpoint says what they said."""
    whole = begin(digits, tmp_path / "whole", steps=8, lr=2e-3, log_every=1)
    expected = losses(whole)
    losses(begin(digits, tmp_path / "run", steps=6, lr=2e-3, log_every=1))
    for name in ("model/config.json", "run.json"):
        path = tmp_path / "run" / name
        assert b'"seed": 0' in path.read_bytes()
        path.write_bytes(path.read_bytes().replace(b'"seed": 0', b'"seed": 1'))
    path = tmp_path / "run" / "log.csv"
    path.write_bytes(path.read_bytes()[:60] + b"\x00\xff\n,\n" + path.read_bytes()[60:])
    with pytest.warns(UserWarning) as warned:
        resumed = begin(digits, tmp_path / "run", steps=8, log_every=1)
        assert resumed.config.lr == 2e-3 and losses(resumed) == expected[6:]
    texts = [str(w.message) for w in warned]
    assert any("run.json will be rewritten" in text for text in texts)
    assert any("log.csv is damaged: rewriting it from metrics.jsonl" in text for text in texts)
    rows = [[line.split(",")[:4] for line in (tmp_path / name / "log.csv").read_text().splitlines()]
            for name in ("whole", "run")]  # fmt: skip
    assert rows[0] == rows[1]
    assert admg.load(tmp_path / "run" / "model").training["steps"] == 8


@pytest.mark.thorough
def test_a_log_of_which_both_files_are_damaged_keeps_what_can_be_read(digits, tmp_path):
    losses(begin(digits, tmp_path, steps=4, log_every=1))
    for name in ("log.csv", "metrics.jsonl"):
        text = (tmp_path / name).read_text()
        lines = text.splitlines(keepends=True)
        lines[2] = "\x00strange\n"
        (tmp_path / name).write_text("".join(lines))
    with pytest.warns(UserWarning, match=r"log\.csv is damaged or was changed: keeping its readable rows"):
        losses(begin(digits, tmp_path, steps=5, log_every=1))
    kept = [line.split(",")[0] for line in (tmp_path / "log.csv").read_text().splitlines()]
    assert kept == ["step", "1", "3", "4", "5"]


@pytest.mark.thorough
@pytest.mark.parametrize("how", ["missing", "older", "damaged"])
def test_a_kill_after_the_last_checkpoint_leaves_a_run_that_is_completed(digits, tmp_path, how):
    losses(begin(digits, tmp_path, steps=2))
    older = snapshot(tmp_path / "model")
    losses(begin(digits, tmp_path, steps=4))
    whole = snapshot(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    if how == "missing":
        clear_folder(tmp_path / "model")
    elif how == "older":
        for name, content in older.items():
            (tmp_path / "model" / name).write_bytes(content)
    else:
        weights.write_bytes(bytes([whole[Path("model.safetensors")][0] ^ 1]) + whole[Path("model.safetensors")][1:])
    again = begin(digits, tmp_path, steps=4)
    assert losses(again) == [] and snapshot(tmp_path / "model") == whole


def clear_folder(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def test_what_is_refused_leaves_no_empty_directory(capsys, digits, tmp_path):
    for options in (["--freeze", "nothing.*"], ["--shard", "--disk-wait", 3], ["--class-weight", "cat=2"]):
        refused(capsys, *COMMAND, "--data", digits, "--steps", 1, "--out", tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()


@pytest.mark.thorough
def test_a_run_waits_for_space_on_a_full_disk(digits, tmp_path, monkeypatch):
    """It writes the checkpoint once there is space, and says so each time; the result is that of a run without."""
    monkeypatch.setattr("admg.disk.PAUSE", 0.01)
    expected = losses(begin(digits, tmp_path / "whole", steps=5))
    save, left = torch.save, [3]

    def full(*arguments, **options):
        if left[0]:
            left[0] -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(*arguments, **options)

    monkeypatch.setattr(torch, "save", full)
    with pytest.warns(UserWarning, match=r"THE DISK IS FULL: No space left .*0000002.*; waiting .* 2 more min") as told:
        assert losses(begin(digits, tmp_path / "run", steps=5, disk_wait=2)) == expected
    assert len([w for w in told if "FULL" in str(w.message)]) == 3
    left[0] = 1
    with pytest.raises(OSError, match=r"No space left on device: .*0000006"):
        losses(begin(digits, tmp_path / "run", steps=6))
    left[0] = 1000
    training = begin(digits, tmp_path / "run", steps=6, disk_wait=1000)
    training.stop()  # as the handler of a signal does: then it does not wait
    with pytest.raises(OSError, match="No space left"):
        losses(training)
    left[0] = 0
    assert len(losses(begin(digits, tmp_path / "run", steps=6))) == 1


def test_a_row_that_could_not_be_written_is_written_later(tmp_path, monkeypatch):
    log = Log(tmp_path)
    for step in (1, 2):
        log.append(step, step, {"loss": 0.5 * step})
    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr("admg.training.log.to_json", lambda row: (_ for _ in ()).throw(OSError("full")))
        log.append(3, 3, {"loss": 1.5})
    log.append(3, 3, {"loss": 1.5})
    assert (tmp_path / "log.csv").read_text().splitlines()[1:] == ["1,1,0.5", "2,2,1", "3,3,1.5"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.thorough
def test_killed_processes_leave_nothing_in_any_folder(digits, tmp_path):
    losses(begin(digits, tmp_path, steps=2, ema_snapshots=1))
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    for folder in ("", "model/", "ema/", "checkpoints/", "samples/"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / f"{folder}.x.1-0123abcd.tmp").touch()
    (tmp_path / "ema" / ".tmpAb3dE6").touch()  # of safetensors
    losses(begin(digits, tmp_path, steps=2, ema_snapshots=1))
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before
