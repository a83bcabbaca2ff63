"""--gpus: several processes of a command, one per GPU. Here they are processes on a CPU, or small programs."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from admg.cli.launch import gpu_count, launch, without_gpus
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


def test_files_in_the_current_directory_are_not_imported(tmp_path, monkeypatch, capfd):
    (tmp_path / "random.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    assert launch(1, ["--version"]) == 0
    assert capfd.readouterr().out.startswith("admg ")


def test_the_others_end_when_one_fails(capfd):
    started = time.monotonic()
    code = "import os, sys, time; sys.exit(2) if os.environ['RANK'] == '1' else time.sleep(60)"
    assert launch(2, [], program(code)) == 2
    assert time.monotonic() - started < 30
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL) if os.environ['RANK'] == '1' else None"
    assert launch(2, [], program(killed)) == 128 + signal.SIGKILL
    assert capfd.readouterr().err == "admg: error: process 1 of 2 was ended by SIGKILL\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_sigterm_reaches_every_process_also_when_the_launcher_is_killed(tmp_path, number):
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
    process.send_signal(number)
    assert process.wait(60) == (143 if number == signal.SIGTERM else -signal.SIGKILL)
    until = time.monotonic() + 30
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


def test_processes_that_ignore_sigterm_are_killed_after_a_grace(monkeypatch):
    monkeypatch.setattr("admg.cli.launch.GRACE_SECONDS", 0.5)
    deaf = (
        "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(0.5);"
        "sys.exit(3) if os.environ['RANK'] == '1' else time.sleep(60)"
    )
    started = time.monotonic()
    assert launch(2, [], program(deaf)) == 3
    assert time.monotonic() - started < 30


def test_the_processes_of_a_launch_are_not_given_the_number_of_gpus(monkeypatch):
    """They would otherwise start others, or refuse it as under torchrun."""
    words = ["--gpus", "2", "--out", "x", "--gpus=all", "--num", "4"]
    assert without_gpus(words) == ["--out", "x", "--num", "4"]
    started = []
    monkeypatch.setattr("admg.cli.launch.gpu_count", lambda text: 2)
    monkeypatch.setattr("admg.cli.launch.launch", lambda count, argv: started.append((count, argv)) or 0)
    assert main(["sample", "--num", "4", "--gpus", "all", "--out", "x"]) == 0
    assert started == [(2, ["sample", "--num", "4", "--out", "x"])]


@pytest.mark.parametrize(
    "place", [{"RANK": "1", "WORLD_SIZE": "2"}, {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "1"}]
)
def test_gpus_are_refused_under_a_launcher(place, monkeypatch, capsys):
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    assert main(["sample", "--gpus", "2", "--out", "x"]) == 2
    line = "--gpus 2 starts processes itself: use either it or a launcher (torchrun, srun)\n"
    assert capsys.readouterr().err.endswith(line)


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
    assert capsys.readouterr().err == "admg sample: error: --gpus cannot be combined with --device cpu\n"
    with pytest.raises(SystemExit) as left:
        main(["models", "--gpus", "all"])
    assert left.value.code == 2 and "unknown option '--gpus'" in capsys.readouterr().err
