"""The release: what the wheels hold, the links of the description, and kernels without a dependency on libgomp."""

from __future__ import annotations

import ctypes
import importlib.util
import subprocess
import sys
import tomllib
from email.parser import BytesParser
from pathlib import Path
from types import ModuleType
from zipfile import ZipFile

import pytest
import torch

from admg.engine.cpu import build

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    """The hooks of the build."""
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_of_the_description_are_absolute(hooks):
    readme = "![a sheet](docs/sheet.png)\n\n[data](docs/data.md), [paper](https://arxiv.org/abs/1), [below](#install)"
    assert hooks.described(readme, "https://example.org/admg") == (
        "![a sheet](https://example.org/admg/raw/main/docs/sheet.png)\n\n"
        "[data](https://example.org/admg/blob/main/docs/data.md), [paper](https://arxiv.org/abs/1), [below](#install)"
    )
    assert hooks.described(readme, "") == "data, [paper](https://arxiv.org/abs/1), [below](#install)"


@pytest.mark.parametrize("repository", ["", "https://example.org/admg"])
def test_no_link_of_the_readme_is_relative_in_the_description(hooks, repository):
    text = hooks.described(README, repository)
    links = [part.split(")")[0] for part in text.split("](")[1:]]
    assert len(links) > 0 and all(link.startswith(("https://", "#")) for link in links), links
    paths = [link.split("/main/")[1].split("#")[0] for link in links if "example.org" in link]
    assert (len(paths) > 30) == bool(repository) and all((ROOT / path).exists() for path in paths)


def test_every_extra_for_users_is_on_the_page_about_the_installation():
    page = (ROOT / "docs" / "installation.md").read_text(encoding="utf-8")
    missing = [extra for extra in PROJECT["project"]["optional-dependencies"] if f".[{extra}]" not in page]
    assert missing == []


@pytest.mark.skipif(build.compiler() is None or sys.platform != "linux", reason="needs a C compiler")
@pytest.mark.thorough
def test_portable_kernels_name_no_library_but_find_the_threads_of_torch(monkeypatch, tmp_path):
    """Each row of a resampled image is computed, by two threads."""
    monkeypatch.setattr(build, "library", lambda capability: tmp_path / f"{capability}.so")
    monkeypatch.setattr(build, "CAPABILITIES", {"AVX2": build.CAPABILITIES["AVX2"]})
    (path,) = build.build(portable=True)
    assert b"libgomp" not in path.read_bytes() and b"GOMP_parallel" in path.read_bytes()
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("this processor has no AVX2")
    x, y = torch.randn(1, 64, 64, 32), torch.zeros(1, 32, 32, 32)
    sizes = [ctypes.c_long(size) for size in (1, 64, 64, 32, 0)]
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (x, y)]
    ctypes.CDLL(str(path)).resample(*pointers, *sizes, ctypes.c_double(0.25), ctypes.c_long(0), ctypes.c_long(2))
    expected = x.view(1, 32, 2, 32, 2, 32).mean((2, 4))
    assert (y - expected).abs().max() < 2**-21  # four numbers below 8 are added with three roundings


@pytest.mark.slow
def test_the_release_is_reproducible_and_its_wheels_hold_what_they_should(tmp_path):
    """tools/release.py builds everything twice, compares, and asks auditwheel."""
    command = [sys.executable, str(ROOT / "tools" / "release.py"), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(tmp_path.iterdir())) == 5 and "manylinux_2_17_x86_64" in done.stdout
    with ZipFile(next(tmp_path.glob("admg-*any.whl"))) as wheel:
        metadata = BytesParser().parsebytes(wheel.read(next(n for n in wheel.namelist() if n.endswith("/METADATA"))))
        assert metadata["Author"] and "guided-diffusion" in str(metadata.get_payload())
        assert sum(entry.compress_size for entry in wheel.infolist()) < 18e6


@pytest.mark.thorough
def test_the_wheel_of_admg_models_holds_models_and_no_records(tmp_path):
    line = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path), str(ROOT / "models")]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("admg_models-*-py3-none-any.whl")
    with ZipFile(path) as wheel:
        held = wheel.namelist()
    folders = ("emoji/diffusion", "emoji/classifier", "emoji-x2/diffusion")
    weights = [f"admg_models/{folder}/model.safetensors" for folder in folders]
    assert {name for name in held if name.endswith(".safetensors")} == set(weights)
    assert "admg_models/emoji/README.md" in held and not [name for name in held if name.endswith((".png", ".csv"))]
    assert path.stat().st_size < 30e6
