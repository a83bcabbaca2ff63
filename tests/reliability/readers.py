"""Read a model again and again while another process replaces it, and count the reads that are not whole.

    python tests/reliability/readers.py --reads 10000

The writer puts a number into the weights and into config.json; a read is whole if both are the same.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parent))

from kills import write_model

if TYPE_CHECKING:
    from torch import Tensor


def replace_for_ever(folder: Path) -> None:
    """Replace the model in a folder, each time with the next number."""
    import torch

    import admg
    from admg.checkpoints.model import Model

    model = admg.load(folder)
    number = 0
    while True:
        number += 1
        with torch.no_grad():
            model.network.out[2].bias.fill_(number)
        part = Model(model.network, model.diffusion, model.shape, model.labels, model.config, {"number": number})
        part.save(folder)


def read(folder: Path, reads: int) -> tuple[int, int]:
    """Return the number of reads that were whole, and the number of different models that they found.

    One in twenty is `admg.load`; the others only leave out that the network is built, which takes the longest.
    """
    from admg.checkpoints import native

    whole, seen = 0, set()
    with patch.object(native, "build_network", lambda kind, config, state, source: state):
        for number in range(reads):
            try:
                bias, said = loaded(folder) if number % 20 == 0 else quickly_read(folder)
            except (ValueError, OSError) as error:
                print(f"{type(error).__name__}: {error}", flush=True)
                continue
            seen.add(said)
            whole += bias.unique().tolist() == [said]
    return whole, len(seen)


def loaded(folder: Path) -> tuple[Tensor, int]:
    """Return the bias and the number of a model."""
    import admg
    from admg.checkpoints import native, weights

    with patch.object(native, "build_network", weights.build_network):
        found = admg.load(folder)
    return found.network.out[2].bias, found.training.get("number", 0)


def quickly_read(folder: Path) -> tuple[Tensor, int]:
    """Return the same without the network, whose place its weights have."""
    from admg.checkpoints import native

    found = native.load(folder, "diffusion")
    return found.network["out.2.bias"], found.training.get("number", 0)  # type: ignore[index]


def reads_while_replaced(root: Path, reads: int) -> tuple[int, int]:
    """Return what `read` does of a model that another process replaces all the while."""
    folder = write_model(root / "model")
    pid = os.fork()
    if not pid:
        try:
            replace_for_ever(folder)
        finally:
            os._exit(1)
    try:
        while "number" not in (folder / "config.json").read_text():
            time.sleep(0.01)
        return read(folder, reads)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reads", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        whole, models = reads_while_replaced(Path(root), options.reads)
    print(f"{whole} of {options.reads} reads whole, of {models} different models")
    sys.exit(whole != options.reads)


if __name__ == "__main__":
    main()
