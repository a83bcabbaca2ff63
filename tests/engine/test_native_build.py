"""Which libraries of kernels are used, and what becomes of it where none can be built."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from admg.cli.main import main
from admg.cli.measure import note_missing_kernels
from admg.engine import cpu as native
from admg.engine.cpu import build


def test_no_library_and_one_of_other_sources(monkeypatch, tmp_path):
    find = native.kernels.__wrapped__  # not what it found before
    assert (find() is None) == (not native.available())
    with monkeypatch.context() as patch:
        patch.setattr(build, "digest", lambda: "another")
        assert find() is None
    junk = tmp_path / "kernels.so"
    for content in (None, b"no library"):
        if content:
            junk.write_bytes(content)
        monkeypatch.setattr(build, "library", lambda capability: junk)
        assert find() is None


@pytest.mark.skipif(sys.platform != "linux" or os.uname().machine != "x86_64", reason="kernels are for Linux on x86-64")
def test_kernels_are_built_where_there_is_a_compiler():
    """Otherwise the tests of the kernels would be skipped without a word: run `admg doctor --build-kernels`."""
    if torch.backends.cpu.get_cpu_capability() not in build.CAPABILITIES:
        pytest.skip("there are no kernels for this processor")
    assert build.compiler() is None or native.available()


def test_kernels_for_processors_without_any(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert native.kernels.__wrapped__() is None


@pytest.mark.parametrize(
    "command, why",
    [("/no/compiler -m64", "there is no C compiler"), ("false", "false failed"), ("cat -u", "cat failed: ")],
)
@pytest.mark.skipif(sys.platform != "linux" or os.uname().machine != "x86_64", reason="nothing is built there")
def test_impossible_builds_are_reported(monkeypatch, command, why):
    """And nothing is left of it."""
    before = {path: path.stat().st_mtime_ns for path in build.HERE.iterdir()}
    monkeypatch.setenv("CC", command)
    with pytest.raises(OSError, match=why):
        list(build.build())
    assert {path: path.stat().st_mtime_ns for path in build.HERE.iterdir()} == before


@pytest.mark.process
@pytest.mark.skipif(
    not native.available() or torch.backends.cpu.get_cpu_capability() != "AVX512",
    reason="for those with more than AVX2",
)
def test_the_kernels_for_older_processors():
    """They are in no use here; the other tests of kernels, of them."""
    tests = [str(Path(__file__).with_name(f"test_{name}.py")) for name in ("native_norm", "native_winograd")]
    tests += [str(Path(__file__).with_name(f"test_{name}.py")) for name in ("native_narrow", "weight_gradient")]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", "not training", *tests]
    result = subprocess.run(
        command,
        env=os.environ | {"ATEN_CPU_CAPABILITY": "avx2"},
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert result.returncode == 0 and "skipped" not in result.stdout, result.stdout[-2000:]


@pytest.mark.thorough
def test_missing_kernels_are_reported_once(tiny_folders, monkeypatch, capsys, tmp_path):
    def told() -> int:
        note_missing_kernels.cache_clear()
        command = ["sample", "--model", tiny_folders["model"], "--label", "one", "--sheet", "cfg=1,2", "--steps", "1"]
        assert main([*command, "--num", "1", "--device", "cpu", "--out", str(tmp_path)]) == 0
        return capsys.readouterr().err.count("there are no kernels for this CPU, so PyTorch computes everything")

    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(native, "kernels", lambda: None)
    assert told() == 1
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert told() == 0  # there are none for it
    monkeypatch.undo()
    assert told() == native.missing()
