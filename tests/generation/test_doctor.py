"""The examination of an installation: each problem is named, with what to do about it."""

from __future__ import annotations

import pytest
import torch
from helpers import refused, succeed

from admg.generation import doctor

CPU = torch.device("cpu")


def only(findings):
    (finding,) = findings
    return finding


def test_the_command_names_each_part(capsys, monkeypatch):
    monkeypatch.setenv("ADMG_OFFLINE", "1")
    text = succeed(capsys, "doctor", "--seconds", 0)
    assert f"torch {torch.__version__}" in text and "ADMG_OFFLINE=1" in text
    for what in ("versions", "device", "precision", "kernels", "threads", "memory", "cache of the Hub"):
        assert f" {what} " in text, what
    assert text.splitlines()[-1].endswith("found")
    assert "must be at least 0" in refused(capsys, "doctor", "--seconds", -1)


@pytest.mark.thorough
def test_the_speed_is_that_of_the_network(monkeypatch):
    found = doctor.speed(CPU, 0.1)
    rate, ratio = float(found.text.split()[0]), float(found.text.split(", ")[1].split()[0])
    assert 1 < rate < 1e5 and 0.1 < ratio < 100 and found.text.split()[1:4] == ["images", "of", "32x32"]
    monkeypatch.setattr(doctor, "accelerate", lambda network, device: lambda x, t: [network(x, t) for _ in range(3)])
    slower = doctor.speed(CPU, 0.1)
    assert slower.grade == "note" and "please report this" in slower.advice


@pytest.mark.parametrize("exists, compiler, reason, advice", [
    (False, None, "there are none, as in the wheel for any platform, and there is no C compiler", "install one"),
    (False, ["cc"], "there are none, as in the wheel for any platform: PyTorch", "admg doctor --build-kernels"),
    (True, ["cc"], "they were built from other sources", "admg doctor --build-kernels"),
])  # fmt: skip
def test_missing_kernels(exists, compiler, reason, advice, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.native, "available", lambda: False)
    monkeypatch.setattr(doctor.build, "compiler", lambda: compiler)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    (tmp_path / "yes").touch()
    monkeypatch.setattr(doctor.build, "library", lambda capability: tmp_path / ("yes" if exists else "no"))
    found = only(doctor._kernels(CPU))
    assert found.grade == "problem" and reason in found.text and advice in found.advice


def test_too_many_threads_little_memory_and_a_gpu_that_is_not_used(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(doctor, "available_cores", lambda: 2)
    found = doctor._threads()
    assert found.grade == "problem" and found.advice.startswith("set OMP_NUM_THREADS=2: ")
    monkeypatch.setattr(doctor, "free_bytes", lambda device: 1 << 30)
    assert doctor._memory(CPU).grade == "note" and "--batch-size" in doctor._memory(CPU).advice
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(torch.version, "cuda", None)
    found = next(doctor._device(CPU))
    assert found.grade == "problem" and "install the CUDA build of PyTorch" in found.advice


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    monkeypatch.setenv("ADMG_HOME", str(tmp_path / "a"))
    monkeypatch.setattr("os.access", lambda path, mode: False)
    found = next(doctor._caches())
    assert found.grade == "problem" and found.advice == "set ADMG_HOME to a writable folder"
