"""benchmarks/gpus.py: a launch makes the images of one process, and ratios are those of a round."""

from __future__ import annotations

import re

import gpus
import pytest


@pytest.mark.slow
@pytest.mark.process
def test_the_table(capsys):
    gpus.main(["--images", "2", "--steps", "2", "--rounds", "1"])
    out = capsys.readouterr().out
    alone, apart, shared = (float(cell) for cell in re.findall(r"\| ([\d.]+) \(", out))
    ratios = [float(n) for n in re.findall(r": ([\d.]+) \(", out)]
    assert ratios == pytest.approx([shared / apart, apart / alone], abs=0.02)
    assert out.endswith("largest difference from the images of one process: 0 levels of 255\n")
