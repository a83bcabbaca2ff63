"""Atomic writes: a reader sees the old or the new, a kill leaves one of them, and what is left over is removed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import admg
from admg import files
from admg.checkpoints.model import Model
from admg.files import LockedError, atomic, locked_nowait, remove_leftovers

EXCHANGES = [True, False]
"""With the system's exchange of two names, and without it, as on file systems that lack it."""


@pytest.fixture(params=EXCHANGES, ids=["exchange", "rename"])
def exchange(request, monkeypatch) -> bool:
    if not request.param:
        monkeypatch.setattr(files, "_exchange", lambda a, b: False)
    return request.param


def write(folder: Path, text: str) -> None:
    with atomic(folder, durable=True) as temporary:
        temporary.mkdir()
        (temporary / "a").write_text(text)
        (temporary / "b").write_text(text)


def test_a_folder_or_file_is_replaced_whole(exchange, tmp_path):
    for text in ("old", "new"):
        write(tmp_path / "folder", text)
        with atomic(tmp_path / "file.txt", durable=True) as temporary:
            temporary.write_text(text)
        assert temporary.suffix == ".txt"
    for path in (tmp_path / "folder", tmp_path / "file.txt"):
        with pytest.raises(KeyError), atomic(path) as temporary:
            (temporary.mkdir if path.name == "folder" else temporary.touch)()
            raise KeyError
    assert (tmp_path / "folder" / "b").read_text() == (tmp_path / "file.txt").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.txt", "folder"]


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot exchange two names")
def test_with_an_exchange_a_folder_is_never_missing(tmp_path):
    write(tmp_path / "folder", "0")
    missing, stop = [], threading.Event()

    def look() -> None:
        while not stop.is_set():
            if not (tmp_path / "folder").exists():
                missing.append(1)

    reader = threading.Thread(target=look)
    reader.start()
    for number in range(200):
        with atomic(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / "a").write_text(str(number))
    stop.set()
    reader.join()
    assert not missing and (tmp_path / "folder" / "a").read_text() == "199"


def numbered(model: Model, number: int) -> Model:
    """Return the model with this number in its weights and in its config."""
    with torch.no_grad():
        model.network.out[2].bias.fill_(number)
    return Model(model.network, model.diffusion, model.shape, model.labels, model.config, {"number": number})


@pytest.mark.slow
def test_a_model_that_is_replaced_again_and_again_is_always_read_whole(exchange, tiny_folders, tmp_path):
    model = admg.load(tiny_folders["model"])
    numbered(model, 0).save(tmp_path / "model")
    stop = threading.Event()

    def replace() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            numbered(model, number).save(tmp_path / "model")

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        for _ in range(30):
            found = admg.load(tmp_path / "model")
            assert found.network.out[2].bias.unique().tolist() == [found.training["number"]]
    finally:
        stop.set()
        writer.join()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


KILLED = """
import os, signal, sys
from pathlib import Path
from admg import files
folder, at = Path(sys.argv[1]), int(sys.argv[2])
if sys.argv[3] == "False":
    files._exchange = lambda a, b: False
count = 0
def watched(function):
    def call(*arguments, **options):
        global count
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call
for name in ("mkdir", "write_text", "rename", "replace", "unlink"):
    setattr(Path, name, watched(getattr(Path, name)))
for name in ("_exchange", "_flush", "remove"):
    setattr(files, name, watched(getattr(files, name)))
with files.atomic(folder, durable=True) as temporary:
    temporary.mkdir()
    (temporary / "a").write_text("new")
    (temporary / "b").write_text("new")
"""


@pytest.mark.slow
@pytest.mark.parametrize("exchanges", EXCHANGES)
def test_a_kill_at_any_operation_leaves_the_old_or_the_new(tmp_path, exchanges):
    """And the next start, which removes what is left over, finds one of them whole."""
    outcomes = []
    for at in range(1, 40):
        folder = tmp_path / str(at) / "model"
        write(folder, "old")
        code = [sys.executable, "-c", KILLED, str(folder), str(at), str(exchanges)]
        done = subprocess.run(code, env=os.environ | {"PYTHONPATH": str(Path(admg.__file__).parents[1])})
        remove_leftovers(folder.parent)
        assert [path.name for path in folder.parent.iterdir()] == ["model"], at
        texts = {(folder / name).read_text() for name in ("a", "b")}
        assert len(texts) == 1
        outcomes += texts
        if done.returncode != -signal.SIGKILL:
            break
    assert not done.returncode and outcomes == sorted(outcomes, reverse=True) and set(outcomes) == {"old", "new"}


def test_other_files_are_not_left_over(tmp_path):
    mine = [".hidden", ".a.tmp", ".a.12-abcdefgh.tmp", "a.1-0123abcd.tmp", ".a.1-0123abcd.tmpx"]
    for name in (*mine, ".a.1-0123abcd.tmp", ".a.1-0123abcd.tmp.txt", ".b c.99999-0123abcd.old"):
        (tmp_path / name).mkdir()
    (tmp_path / "b c").mkdir()
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*mine, "b c"])
    remove_leftovers(tmp_path / "none")


HOLDER = """
import sys, time
from pathlib import Path
from admg.files import held
with held(Path(sys.argv[1]), "the run"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_lock_names_its_holder_and_ends_with_it(tmp_path):
    lock = tmp_path / "lock"
    environment = os.environ | {"PYTHONPATH": str(Path(admg.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE, text=True, env=environment
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with (
            pytest.raises(LockedError, match=rf"the run is in use by process {holder.pid} on "),
            locked_nowait(lock, "the run"),
        ):
            pass
        holder.kill()
        holder.wait()
        with (
            locked_nowait(lock, "the run"),
            pytest.raises(LockedError, match=f"process {os.getpid()}"),
            locked_nowait(lock, "the run"),
        ):
            pass
    with locked_nowait(lock, "the run"):
        pass
