"""What several test modules share: small networks, the command line in this process and in another, data files."""

from __future__ import annotations

import doctest
import gzip
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Classifier, Model
from admg.cli import main as cli
from admg.data import batches
from admg.data import open as open_dataset
from admg.diffusion.config import DiffusionConfig
from admg.models import ClassifierConfig, NoisyClassifier, UNet, UNetConfig
from admg.training import ClassifierTask, DiffusionTask, TrainConfig, checkpointing
from admg.training.prefetch import prefetch
from admg.training.step import Learner

NAMES = ("zero", "one", "two", "T-shirt/top", "Ankle boot")


TRUNK = {
    "image_size": 8,
    "image_channels": 1,
    "channels": 32,
    "channel_mult": (1, 1),
    "num_res_blocks": 1,
    "attention_resolutions": (4,),
    "head_channels": 32,
}


CPU = torch.device("cpu")


PROCESS = DiffusionConfig(diffusion_steps=50)


def run_example(function: Callable, **names: object) -> None:
    """Run the example in the docstring of a function or class, and compare what it prints. names: its global names"""
    (example,) = doctest.DocTestFinder(recurse=False).find(function, function.__name__, globs=names)
    assert example.examples, f"{function.__name__} has no example"
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    failures: list[str] = []
    runner.run(example, out=failures.append)
    assert not failures, "".join(failures)


def randomised(network: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Weights without the zero-initialised layers, which would make every output zero."""
    generator = torch.Generator().manual_seed(seed)
    for p in network.parameters():
        p.data = torch.randn(p.shape, generator=generator) * 0.05 + (p.data if p.ndim == 1 else 0)
    return network.eval().requires_grad_(False)


def up_to_second_derivatives(
    layer: torch.nn.Module, x: torch.Tensor, w: torch.Tensor, dtype: torch.dtype
) -> list[torch.Tensor]:
    """In this dtype: y = layer(x), the gradient of sum(w y²), and the gradient of its square."""
    layer.to(dtype)
    leaf = x.to(dtype).requires_grad_()
    y = layer(leaf)
    first = torch.autograd.grad((w.to(dtype) * y * y).sum(), leaf, create_graph=True)[0]
    return [y.detach(), first.detach(), torch.autograd.grad(first.square().sum(), leaf)[0]]


def by_formula(x: Tensor, norm: nn.GroupNorm, scale: Tensor | None, shift: Tensor | None, silu: bool) -> Tensor:
    """SiLU((1 + scale) (x - mean)/deviation·weight + ...), in the dtype of its arguments."""
    groups = x.reshape(len(x), 32, -1)
    z = (groups - groups.mean(2, keepdim=True)) / (groups.var(2, correction=0, keepdim=True) + norm.eps).sqrt()
    z = z.reshape(x.shape) * norm.weight[:, None, None] + norm.bias[:, None, None]
    if scale is not None:
        z = (1 + scale[:, :, None, None]) * z + shift[:, :, None, None]
    return z * torch.sigmoid(z) if silu else z


def admg(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """The real command in a process of its own."""
    command = [sys.executable, "-m", "admg.cli.main", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    if check and result.returncode:
        raise AssertionError(f"exit code {result.returncode}: {result.stderr}")
    return result


def run(capsys, *arguments) -> tuple[int, str, str]:
    try:
        code = cli.main([str(a) for a in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


BUSY = "note: other processes use "
"""Beginning of a note that depends on the load of the machine."""


def refused(capsys, *arguments) -> str:
    """The one line that the command says before exit code 2."""
    code, _, err = run(capsys, *arguments)
    lines = [line for line in err.splitlines() if line.strip() and not line.startswith(BUSY)]
    assert code == 2, err
    assert len(lines) == 1 and "Traceback" not in err, err
    return lines[0]


def arrays(path) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the images and the labels of an .npz."""
    with np.load(path) as file:
        return file["arr_0"], file["arr_1"] if "arr_1" in file.files else None


def succeed(capsys, *arguments) -> str:
    """Run a command that must succeed, and return its output."""
    code, out, err = run(capsys, *arguments)
    assert code == 0, err
    return out


def failed(capsys, *arguments) -> str:
    """Return the last line of a run that fails in the middle, after its progress."""
    code, _, err = run(capsys, *arguments)
    assert code == 2 and "Traceback" not in err
    return err.splitlines()[-1]


def snapshot(folder) -> dict:
    """Return the content of all files in a folder."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_idx(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    raw = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def write_npz(path: Path, images: np.ndarray, labels: object = None) -> Path:
    np.savez(path, arr_0=images, **({} if labels is None else {"arr_1": np.asarray(labels)}))
    return path


def make(kind: str = "diffusion", **changes) -> DiffusionTask | ClassifierTask:
    torch.manual_seed(0)
    if kind == "classifier":
        network = NoisyClassifier(ClassifierConfig(**TRUNK, num_classes=10, **changes))
        return ClassifierTask(Classifier(network, PROCESS.build(), Labels(10), PROCESS))
    network = UNet(UNetConfig(**TRUNK, num_classes=10, **changes))
    return DiffusionTask(Model(network, PROCESS.build(), (1, 8, 8), Labels(10), PROCESS))


def resume(folder: Path, learner: Learner) -> int:
    """Restore the last checkpoint of a run directory, and return its number of steps."""
    checkpoint = checkpointing.latest(folder)
    assert checkpoint is not None
    return int(checkpointing.resume(checkpoint, learner)["step"])


def state_file(folder: Path) -> Path:
    """Return the file with the state of the last checkpoint of a run directory."""
    return checkpointing.saved_checkpoints(folder)[-1] / checkpointing.STATE


def learned(digits: str, task, steps: int = 3, **changes) -> tuple[list[dict[str, float]], Learner]:
    """Figures of some steps, to all digits, and what was learned."""
    config = TrainConfig(batch_size=10, precision="fp32", warmup=1, **changes)
    learner = Learner(task, config, CPU)
    fed = prefetch(task, batches(open_dataset(digits, 8), 10, seed=0), 0, 0, CPU)
    figures = [learner.step(k, next(fed)) for k in range(steps)]
    return [{name: value.item() for name, value in row.items()} for row in figures], learner
