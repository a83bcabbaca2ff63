"""Networks of the user's own get labels and timesteps as the docstring of Model says."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import admg
from admg import guidance, samplers
from admg.training import DiffusionTask, TrainingRun

PROCESS = admg.DiffusionConfig(diffusion_steps=100, variance="fixed_small")
NAMES = ("a", "b", "c")


class OneHot(nn.Module):
    """A network whose labels are rows of an identity matrix, where -1 would be the last one, as in EDM's networks."""

    def __init__(self, rows: int = 3):
        super().__init__()
        self.layer, self.labels = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(rows, 1, bias=False)
        self.seen: list[list[int] | None] = []
        self.timesteps: set[tuple[int, ...]] = set()

    def forward(self, x, timesteps, y=None, extra=None):
        assert extra is None or len(extra) == len(x)
        self.seen.append(None if y is None else y.tolist())
        self.timesteps.add(timesteps.shape)
        rows = self.labels.in_features
        label = torch.zeros(len(x), rows) if y is None else torch.eye(rows)[y]
        return self.layer(x) + self.labels(label)[:, :, None, None]


def model_of(network: nn.Module, **options) -> admg.Model:
    return admg.Model(
        network, PROCESS.build(), (1, 8, 8), admg.Labels(3, NAMES), PROCESS, {"label_dropout": 0.1}, **options
    )


def images_of(model: admg.Model, labels: list, **options) -> torch.Tensor:
    return admg.sample(model, labels, steps=4, progress=False, **options).x


@pytest.mark.parametrize("null_label", [None, 3])
def test_an_image_without_a_label_is_the_same_in_a_mixed_batch(null_label):
    model = model_of(OneHot(3 if null_label is None else 4), null_label=null_label)
    mixed = images_of(model, [0, None, 2, None])
    for i, label in enumerate([0, None, 2, None]):
        assert torch.equal(images_of(model, [label], first=i)[0], mixed[i])
    last = images_of(model, [2], first=1)[0]
    assert not torch.allclose(mixed[1], last, atol=0.01)  # which -1 is in an identity matrix
    seen = {label for labels in model.network.seen for label in labels or [None]}
    assert seen == {0, 2, null_label} and all(len(shape) == 1 for shape in model.network.timesteps)


def test_arguments_with_a_row_per_image_are_divided_with_them():
    model = model_of(OneHot())
    model.given = {"extra": torch.zeros(4, 2)}
    mixed = images_of(model, [0, None, 2, None])
    model.given = {}
    assert torch.equal(images_of(model, [0, None, 2, None]), mixed)


def test_classifier_free_guidance_never_passes_minus_one():
    model = model_of(OneHot())
    images_of(model, [0, None, 2], guide=guidance.ClassifierFreeGuidance(2.0))
    assert None in model.network.seen
    assert all(label >= 0 for labels in model.network.seen for label in labels or [0])


@pytest.mark.parametrize("null_label", [None, 3])
def test_dropped_labels_in_training(null_label, tmp_path):
    model = model_of(OneHot(3 if null_label is None else 4), null_label=null_label)
    images = np.random.default_rng(0).integers(0, 256, (24, 8, 8), dtype=np.uint8)
    dataset = admg.data.from_arrays(images, list(NAMES) * 8)
    config = admg.TrainConfig(steps=4, batch_size=8, log=("none",), precision="fp32", preview_every=10**6)
    assert len([*TrainingRun(DiffusionTask(model, label_dropout=0.5), dataset, tmp_path, config)]) == 4
    seen = [label for labels in model.network.seen for label in labels or [None]]
    assert set(seen) == {0, 1, 2, null_label}


def test_the_loss_of_dropped_labels_is_that_of_their_own_calls():
    model = model_of(OneHot())
    task, generator = DiffusionTask(model, label_dropout=0.5), torch.Generator().manual_seed(0)
    x, y = torch.randn(6, 1, 8, 8, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2])
    t, noise, dropped = task.draw(x.shape, generator)
    assert 0 < dropped.sum() < 6
    losses = task.loss(x, y, t, noise, dropped)["loss"]
    for i in range(6):
        alone = DiffusionTask(model, label_dropout=0.5).loss(
            x[i : i + 1], y[i : i + 1], t[i : i + 1], noise[i : i + 1], dropped[i : i + 1]
        )
        torch.testing.assert_close(alone["loss"][0], losses[i])  # sums of 64 products in another order


class AnyKeywords(OneHot):
    def forward(self, x, timesteps, **given):
        return super().forward(x, timesteps, **given)


def test_stated_labels_survive_training(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (24, 8, 8), dtype=np.uint8)
    dataset = admg.data.from_arrays(images, list(NAMES) * 8)
    model = model_of(AnyKeywords(), takes_labels=True)
    config = admg.TrainConfig(
        steps=2, batch_size=8, log=("none",), precision="fp32", checkpoint_every=1, preview_every=1
    )
    with pytest.warns(UserWarning, match="could not write"):  # a native checkpoint, of networks of ours only
        run = TrainingRun(DiffusionTask(model), dataset, tmp_path, config)
        assert len([*run]) == 2
    assert run.model.conditional and run.model.takes_labels
    assert (tmp_path / "samples" / "step_0000002.png").is_file()


def test_a_null_label_that_does_not_fit_is_refused(tiny_model):
    with pytest.raises(ValueError, match="must not be one of the 3 labels, got 2"):
        model_of(OneHot(), null_label=2)
    with pytest.raises(ValueError, match="takes no labels"):
        admg.Model(nn.Identity(), PROCESS.build(), (1, 8, 8), takes_labels=False, null_label=3)
    with pytest.raises(ValueError, match="those of admg take -1"):
        admg.Model(tiny_model.network, tiny_model.diffusion, tiny_model.shape, tiny_model.labels, null_label=5)


class Unconditional(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, timesteps):
        return self.layer(x)


def test_an_unconditional_bad_model():
    """ε̂ = ε_bad + w (ε - ε_bad), of the first step."""
    model, bad = model_of(OneHot()), admg.Model(Unconditional(), PROCESS.build(), (1, 8, 8))
    x, y = torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 2])
    small = model.respace(2)
    step = next(iter(samplers.ddim(small, x, y=y, guide=guidance.AutoGuidance(bad, 3.0), clip=False)))
    with torch.no_grad():
        good, weak = model.network(x, torch.full((3,), 99), y), bad.network(x, torch.full((3,), 99))
    eps = weak + 3 * (good - weak)
    alpha_bar = PROCESS.schedule().alpha_bar[-1]
    x0 = (x - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()
    torch.testing.assert_close(step.x0, x0.float(), rtol=1e-4, atol=1e-4)


def test_a_classifier_gets_a_timestep_per_image():
    class Logits(nn.Module):
        """Its time embedding is concatenated with the features of the image."""

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(65, 3)

        def forward(self, x, timesteps):
            return self.layer(torch.cat([x.flatten(1), timesteps.float()[:, None] / 100], 1))

    classifier = admg.Classifier(Logits(), PROCESS.build(), admg.Labels(3, NAMES), PROCESS)
    images = images_of(model_of(OneHot()), [0, 1, 2], guide=guidance.ClassifierGuidance(classifier, 1.0))
    alone = images_of(model_of(OneHot()), [0], guide=guidance.ClassifierGuidance(classifier, 1.0))
    assert images.shape == (3, 1, 8, 8) and alone.shape == (1, 1, 8, 8)


def test_heun_with_churn_takes_any_model():
    diffusion = PROCESS.build().respace(20)

    class Plain:
        """Not a dataclass."""

        conditional = False

        def __init__(self):
            self.diffusion = diffusion

        def predict(self, x, t, y=None, clip=True):
            return self.diffusion.predict(torch.zeros_like(x), x, t, clip=clip)

    x = torch.randn(2, 1, 8, 8)
    for churn in (0.0, 5.0):
        assert len([*samplers.heun(Plain(), x, s_churn=churn)]) == 20


class Wrapped(nn.Module):
    def forward(self, x, timesteps):
        return SimpleNamespace(sample=x)


@pytest.mark.parametrize(
    "network, reason",
    [
        (Wrapped(), "must return a tensor .* got a SimpleNamespace"),
        (Unconditional().bfloat16(), "weights of the network are bfloat16, but images are float32"),
        (Unconditional().half(), "weights of the network are float16"),
    ],
)
def test_networks_that_cannot_work_are_refused(network, reason):
    model = admg.Model(network, PROCESS.build(), (1, 8, 8), takes_labels=False)
    with pytest.raises(ValueError, match=reason):
        admg.sample(model, num=1, steps=2, progress=False)


def test_class_labels_of_diffusers_are_not_overlooked():
    class Diffusers(Unconditional):
        config = SimpleNamespace(num_class_embeds=3)

        def forward(self, x, timesteps, class_labels=None):
            return super().forward(x, timesteps)

    with pytest.raises(ValueError, match="takes labels as class_labels"):
        admg.Model(Diffusers(), PROCESS.build(), (1, 8, 8), admg.Labels(3))


def test_several_processes_need_a_null_label():
    """DistributedDataParallel is for one call of the network per step."""
    from admg.training.step import check_one_call

    with pytest.raises(ValueError, match="requires Model"):
        check_one_call(DiffusionTask(model_of(OneHot())))
    check_one_call(DiffusionTask(model_of(OneHot(4), null_label=3)))
    check_one_call(DiffusionTask(model_of(OneHot()), label_dropout=0.0))
