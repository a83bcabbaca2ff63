"""What the commands import when they start: everything else is imported where it is needed."""

import subprocess
import sys

import pytest

from admg.cli.main import COMMANDS

NEEDED = {"admg", "torch", "torchgen", "functorch", "numpy", "PIL", "safetensors", "msgspec", "jaxtyping", "tqdm"}
"""Packages that every command may import at its start. Others take longer than the rest of the start."""
SLOW = {"torch.distributed.fsdp", "torch.distributed.tensor", "torch.distributed.checkpoint", "torch._dynamo"}
"""Parts of torch that take as long, and that only some runs need."""
PROGRAM = f"""
import sys
before = set(sys.modules)
import admg.cli.main
assert "torch" not in sys.modules, "admg.cli.main imports torch, for which --help would have to wait"
import torch
import_of_torch = {{name.partition(".")[0] for name in set(sys.modules) - before}}
import importlib
for command in sys.argv[1:]:
    importlib.import_module("admg.cli." + command)
after = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(*sorted(after - import_of_torch - set(sys.stdlib_module_names)), *sorted({SLOW} & set(sys.modules)))
"""


@pytest.mark.process
def test_commands_import_little_when_they_start():
    commands = [name.replace("-", "_").replace(" ", "_") for name in COMMANDS]
    run = subprocess.run([sys.executable, "-c", PROGRAM, *commands], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = {name for name in run.stdout.split() if not name.startswith("_")}
    assert found <= NEEDED, f"imported at the start: {', '.join(sorted(found - NEEDED))}"
