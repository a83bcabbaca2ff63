"""Measure the error of networks whose blocks run in float16 or bfloat16, relative to float32.

    python benchmarks/torso_precision.py

The networks are the small ones of tests/openai (with random weights, which amplify errors more than trained weights)
and the shipped Fashion-MNIST models at six noise levels. The table shows the root-mean-square difference and the
largest difference, both relative to the root mean square of the float32 output.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import admg

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import reference
from half_torso import with_half_torso

DTYPES = (torch.float16, torch.bfloat16)
LEVELS = (0, 100, 250, 500, 750, 999)


def families() -> Iterator[tuple[str, nn.Module, dict[str, Tensor]]]:
    """Yield the name of each network, the network in float32, and the arguments of its forward pass."""
    for name, entry in reference.table("forward.json").items():
        network = reference.fill(reference.build(entry["kind"], entry["flags"]))
        yield f"{name} (random weights)", network, reference.inputs(entry["kind"], entry["flags"])
    model, classifier = admg.load("fashion-mnist"), admg.load_classifier("fashion-mnist")
    t = torch.tensor(LEVELS)
    x0 = admg.sample(model, [0, 1, 5, 7, 8, 9], steps=25, progress=False).x
    x = model.diffusion.q_sample(x0, t, torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)))
    yield "fashion-mnist U-Net (trained)", model.network, {"x": x, "timesteps": t, "y": t % 10}
    yield "fashion-mnist classifier (trained)", classifier.network, {"x": x, "timesteps": t}


@torch.no_grad()
def main() -> None:
    print("| network | float16: rms | largest | bfloat16: rms | largest |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, network, arguments in families():
        expected, cells = network(**arguments), []
        for dtype in DTYPES:
            difference = with_half_torso(network, dtype)(**arguments) - expected
            scale = expected.square().mean().sqrt()
            cells += [float(difference.square().mean().sqrt() / scale), float(difference.abs().max() / scale)]
        print(f"| {name} | " + " | ".join(f"{100 * cell:.2g} %" for cell in cells) + " |")


if __name__ == "__main__":
    main()
