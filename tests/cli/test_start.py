"""What the commands import when they start: everything else is imported where it is needed."""

import subprocess
import sys

import pytest

from admg.cli.main import COMMANDS

NEEDED = {"admg", "torch", "torchgen", "functorch", "numpy", "PIL", "safetensors", "msgspec", "jaxtyping", "tqdm"}
"""Packages that every command may import at its start. Others take longer than the rest of the start."""
TRAINING = {"train", "train-classifier", "train-upsampler", "ema", "recipes", "studio", "verify"}
"""Commands that import admg.training, and so torch.distributed, which takes sympy along."""
PROGRAM = """
import sys
before = set(sys.modules)
import admg.cli.main
assert "torch" not in sys.modules, "admg.cli.main imports torch, for which --help would have to wait"
import torch
import_of_torch = {name.partition(".")[0] for name in set(sys.modules) - before}
import importlib
for command in sys.argv[1:]:
    importlib.import_module(f"admg.cli.{command}")
after = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(after - import_of_torch - set(sys.stdlib_module_names)))
"""


@pytest.mark.process
def test_commands_import_little_when_they_start():
    commands = [name.replace("-", "_").replace(" ", "_") for name in COMMANDS if name not in TRAINING]
    run = subprocess.run([sys.executable, "-c", PROGRAM, *commands], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = {name for name in run.stdout.split() if not name.startswith("_")}
    assert found <= NEEDED, f"imported at the start: {', '.join(sorted(found - NEEDED))}"
