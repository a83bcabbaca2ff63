"""Peak memory, measured in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from admg.checkpoints.weights import shapes_of
from admg.models import ClassifierConfig, NoisyClassifier, UNet, UNetConfig

MEASURE = """
import resource, sys
import torch
import admg, admg.checkpoints.model, admg.checkpoints.openai
def peak():  # of memory of this process alone or mapped from files, in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
torch.ones(8, 8) @ torch.ones(8, 8)
before = peak()
{action}
print(peak() - before)
"""
TOUCH = "sum(float(p.sum()) for p in model.network.parameters())"  # so that what is mapped is read


def peak_of(action: str) -> int:
    result = subprocess.run([sys.executable, "-c", MEASURE.format(action=action)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


def generated(network_type, config, path: Path) -> int:
    """A state dict of made-up weights in the OpenAI format; the size of its file."""
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(shape, generator=generator) * 0.02 if len(shape) > 1 else torch.ones(shape)
        for name, shape in shapes_of(network_type, config).items()
    }
    torch.save(state, path)
    return path.stat().st_size


@pytest.mark.process
def test_loading_takes_no_second_copy(tmp_path):
    size = generated(UNet, UNetConfig(image_size=64, channels=128, num_res_blocks=2), tmp_path / "model.pt")
    assert size > 200e6
    path = str(tmp_path / "model.pt")
    assert peak_of(f"model = admg.openai.load_diffusion({path!r}); {TOUCH}") < 1.2 * size
    import admg.checkpoints.openai

    with pytest.warns(UserWarning, match="assumed"):
        model = admg.openai.load_diffusion(path)
    model.save(tmp_path / "native")
    del model
    assert peak_of(f"model = admg.Model.load({str(tmp_path / 'native')!r}); {TOUCH}") < 1.2 * size


@pytest.mark.slow
def test_a_guided_step_of_imagenet_256(tmp_path):
    """The largest published pair with a classifier: 2.2 GB of weights, and one guided step at batch 1."""
    size = generated(UNet, UNetConfig(image_size=256, channels=256, num_classes=1000), tmp_path / "model.pt")
    assert size > 2.2e9
    classifier = ClassifierConfig(image_size=256, channels=128)
    generated(NoisyClassifier, classifier, tmp_path / "classifier.pt")
    load = f"model = admg.openai.load_diffusion({str(tmp_path / 'model.pt')!r}); {TOUCH}"
    assert peak_of(load) < 1.2 * size
    step = f"""
from admg import guidance, samplers
model = admg.openai.load_diffusion({str(tmp_path / "model.pt")!r})
classifier = admg.openai.load_classifier({str(tmp_path / "classifier.pt")!r})
guide = guidance.ClassifierGuidance(classifier, 1.0)
x, y = torch.randn(1, 3, 256, 256), torch.tensor([207])
step = next(iter(samplers.ddim(model.respace(25), x, y=y, guide=guide)))
assert step.x.shape == x.shape and step.x.isfinite().all() and not torch.equal(step.x, x)
assert model.diffusion.learns_variance and model.network.config.head_channels == 64
"""
    assert peak_of(step) < 8e9
