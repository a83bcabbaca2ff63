"""--gpus: several processes of a command, one per GPU. Here they are processes on a CPU, or small programs."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from admg.cli.launch import gpu_count, launch
from admg.cli.main import main

pytestmark = pytest.mark.process
PLACE = (
    "import os; print(*(os.environ[n] for n in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE')), flush=True)"
)


def program(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def test_each_process_is_told_its_place_and_the_first_one_prints(capfd):
    assert launch(3, [], program(PLACE)) == 0
    assert capfd.readouterr().out == "0 0 3 3\n"
    assert launch(3, [], program(f"{PLACE}; import sys; sys.exit(7 if os.environ['RANK'] == '2' else 0)")) == 7
    assert capfd.readouterr().err == "2 2 3 3\n"  # what the one that failed had printed


def test_the_others_end_when_one_fails():
    started = time.monotonic()
    code = "import os, sys, time; sys.exit(2) if os.environ['RANK'] == '1' else time.sleep(60)"
    assert launch(2, [], program(code)) == 2
    assert time.monotonic() - started < 30
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL) if os.environ['RANK'] == '1' else None"
    assert launch(2, [], program(killed)) == 128 + signal.SIGKILL


def test_sigterm_reaches_every_process(tmp_path):
    child = (
        "import os, signal, sys, time\n"
        "def stop(*_):\n"
        f"    open(os.path.join({str(tmp_path)!r}, os.environ['RANK']), 'w').close(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop); print('ready', flush=True); time.sleep(60)"
    )
    parent = (
        f"import sys; from admg.cli.launch import launch; sys.exit(launch(2, [], (sys.executable, '-c', {child!r})))"
    )
    process = subprocess.Popen(program(parent), stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    time.sleep(1)  # the other one is ready, too
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


@pytest.mark.slow
def test_two_processes_make_the_images_of_one(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = [
        "sample",
        "--label",
        "coat",
        "--label",
        "bag",
        "--num",
        "4",
        "--steps",
        "2",
        "--shard-size",
        "2",
        "--device",
        "cpu",
    ]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    assert launch(2, [*words, "--out", str(tmp_path / "two")]) == 0
    one, two = (next((tmp_path / name).glob("*.npz")) for name in ("one", "two"))
    assert one.name == two.name and np.array_equal(np.load(one)["arr_0"], np.load(two)["arr_0"])


def test_the_number_of_gpus_is_checked(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert gpu_count("all") == 4 and gpu_count("2") == 2
    for wrong in ("0", "5", "-1", "two", "1.5", ""):
        with pytest.raises(ValueError, match=r"must be 'all' or a number from 1 to 4, the GPUs of this machine, got "):
            gpu_count(wrong)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["sample", "--gpus", "all", "--out", "x"]) == 2
    assert capsys.readouterr().err == "admg sample: error: --gpus all: torch finds no GPU on this machine\n"
    assert main(["sample", "--gpus", "all", "--device", "cpu", "--out", "x"]) == 2
    assert capsys.readouterr().err == "admg sample: error: --gpus chooses the devices: leave out --device cpu\n"
    with pytest.raises(SystemExit) as left:
        main(["models", "--gpus", "all"])
    assert left.value.code == 2 and "unknown option '--gpus'" in capsys.readouterr().err
