"""`admg doctor`: checks of the installation on this machine, with advice for each problem."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch

from admg.checkpoints import loading
from admg.engine import accelerate
from admg.engine import cpu as native
from admg.engine.cpu import build
from admg.engine.device import choose_device
from admg.engine.memory import free_bytes
from admg.engine.precision import resolve
from admg.files import cache_folder
from admg.threads import available_cores

Grade = Literal["ok", "note", "problem"]
MIN_FREE_MEMORY, MIN_FREE_DISK = 2 << 30, 3 << 30
EXTRAS = (
    "diffusers",
    "transformers",
    "timm",
    "huggingface_hub",
    "onnxruntime",
    "tensorboard",
    "wandb",
    "trackio",
    "pyarrow",
)
"""Packages whose versions are listed if they are installed."""
VARIABLES = ("ADMG_HOME", "ADMG_OFFLINE", "ADMG_MIRROR", "HF_ENDPOINT", "HF_HUB_OFFLINE", "OMP_NUM_THREADS",
             "CUDA_VISIBLE_DEVICES", "ATEN_CPU_CAPABILITY")  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One finding.

    what: subject, such as "kernels"
    text: what was found
    advice: what to do about it, or ""
    grade: ok, a note, or a problem that makes results slow or impossible
    """

    what: str
    text: str
    advice: str = ""
    grade: Grade = "ok"


def examine(seconds: float = 5.0) -> Iterator[Finding]:
    """Yield the findings. The last one is a speed test of about this many seconds; 0 skips it."""
    device = choose_device()
    yield Finding("versions", _versions())
    yield from _device(device)
    yield from _kernels(device)
    if device.type == "cpu":
        yield _threads()
    yield _memory(device)
    yield from _caches()
    given = [f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ]
    if given:
        yield Finding("variables", ", ".join(given))
    if seconds:
        yield speed(device, seconds)


def _versions() -> str:
    found = [f"admg {_version('admg')}", f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    for name in EXTRAS:
        if find_spec(name):
            found.append(f"{name} {_version(name)}")
    return ", ".join(found)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # a folder on the path, which pip has not installed
        return "(not installed by pip)"


def _device(device: torch.device) -> Iterator[Finding]:
    precision = resolve("auto", device)
    if device.type == "cuda":
        yield Finding("device", f"{torch.cuda.get_device_name(device)}, {torch.cuda.device_count()} GPU(s)")
    else:
        name = _processor()
        driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
        if driver and torch.version.cuda is None:
            advice = "install the CUDA build of PyTorch (pytorch.org) to use the GPU"
            yield Finding("device", f"{name}; there is a GPU, but torch is a CPU build", advice, "problem")
        elif driver:
            advice = "check the driver with nvidia-smi, and CUDA_VISIBLE_DEVICES"
            yield Finding("device", f"{name}; there is a GPU, but torch cannot use it", advice, "problem")
        else:
            yield Finding("device", f"{name}, {torch.backends.cpu.get_cpu_capability()}")
    why = "native here" if precision == "bf16" else "this device has no native bf16"
    yield Finding("precision", f"auto is {precision}: {why}")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _kernels(device: torch.device) -> Iterator[Finding]:
    if device.type == "cuda":
        missing = find_spec("triton") is None
        advice = "pip install triton" if missing else ""
        text = "Triton is missing: PyTorch computes everything" if missing else "Triton"
        yield Finding("kernels", text, advice, "problem" if missing else "ok")
        return
    capability = torch.backends.cpu.get_cpu_capability()
    if native.available():
        yield Finding("kernels", f"built for this processor ({capability})")
    elif capability not in build.CAPABILITIES:
        yield Finding("kernels", f"none for {capability}: PyTorch computes everything", "", "note")
    else:
        exists = build.library(capability).is_file()
        why = "they were built from other sources" if exists else "there are none, as in the wheel for any platform"
        if build.compiler() is None:
            why, first = f"{why}, and there is no C compiler", "install one (apt-get install gcc), then "
        else:
            first = ""
        advice = f"{first}build them with `admg doctor --build-kernels`, or install the wheel for manylinux_2_17_x86_64"
        yield Finding("kernels", f"{why}: PyTorch computes everything, at about half the speed", advice, "problem")


def _threads() -> Finding:
    threads, cores = torch.get_num_threads(), available_cores()
    text = f"{threads} on {cores} cores available to this process"
    try:
        busy = os.getloadavg()[0]
        text += f"; load average {busy:.1f}"
    except OSError:
        busy = 0.0
    if threads > cores:
        advice = f"set OMP_NUM_THREADS={cores}: with more threads than cores, threads wait for each other"
        return Finding("threads", text, advice, "problem")
    if busy > cores + 0.5 and threads > 1:
        return Finding("threads", text, "other processes are busy; OMP_NUM_THREADS=1 shares the cores better", "note")
    return Finding("threads", text)


def _memory(device: torch.device) -> Finding:
    free = free_bytes(device)
    if free is None:
        return Finding("memory", "not known")
    little = free < MIN_FREE_MEMORY
    advice = "close other programs, or choose a small --batch-size" if little else ""
    return Finding("memory", f"{free / 1e9:.1f} GB free", advice, "note" if little else "ok")


def _caches() -> Iterator[Finding]:
    hub = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser() / "hub"
    for what, folder in (("cache", cache_folder()), ("cache of the Hub", Path(os.environ.get("HF_HUB_CACHE", hub)))):
        parent = next(path for path in (folder, *folder.parents) if path.exists())
        used = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        free = shutil.disk_usage(parent).free
        text = f"{folder}: {used / 1e9:.2f} GB used, {free / 1e9:.0f} GB free"
        if not os.access(parent, os.W_OK):
            variable = "ADMG_HOME" if what == "cache" else "HF_HOME"
            yield Finding(what, f"{text}; it is not writable", f"set {variable} to a writable folder", "problem")
        elif free < MIN_FREE_DISK:
            yield Finding(what, text, "a published model takes up to 2.2 GB: free some space", "note")
        else:
            yield Finding(what, text)


def speed(device: torch.device, seconds: float = 5.0) -> Finding:
    """Return the speed of the shipped model's network relative to plain PyTorch, measured for this many seconds."""
    model = loading.load("fashion-mnist").to(device)
    plain, fast = model.network, accelerate(model.network, device)
    x, t = torch.randn(8, *model.shape, device=device), torch.full((8,), 500.0, device=device)
    times: dict[str, list[float]] = {"plain": [], "fast": []}
    with torch.no_grad():
        for network in (plain, fast):
            network(x, t)  # warm-up
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(times["fast"]) < 2:
            for name, network in (("plain", plain), ("fast", fast)):
                start = time.perf_counter()
                network(x, t)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                times[name].append(time.perf_counter() - start)
    ratio, rate = min(times["plain"]) / min(times["fast"]), 8 / min(times["fast"])
    size = f"{model.shape[1]}x{model.shape[2]}"
    text = f"{rate:.0f} images of {size} per second and step, {ratio:.1f} times plain PyTorch"
    slow = ratio < 1
    advice = "the kernels do not help here: please report this, with the lines above" if slow else ""
    return Finding("speed", text, advice, "note" if slow else "ok")
