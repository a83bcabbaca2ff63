"""sample(): seeds, labels, and what reaches the network and the guide."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

import admg
from admg import guidance, samplers
from admg.diffusion.noise import SeededNoise
from admg.generation.images import to_uint8
from admg.generation.labels import cycle_labels


@pytest.mark.thorough
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", functools.partial(samplers.ddim, eta=1.0)])
def test_an_image_of_a_seed_does_not_depend_on_the_batch_size(tiny_model, tiny_classifier, sampler):
    labels = [i % 5 for i in range(64)]
    options = {
        "guide": guidance.ClassifierGuidance(tiny_classifier, 2.0),
        "sampler": sampler,
        "steps": 4,
        "seed": 3,
        "progress": False,
    }
    whole = admg.sample(tiny_model, labels, batch_size=64, **options)
    # float32 sums differ in order, which random weights amplify; one 8-bit level is 8e-3
    for batch_size, count in ((1, 6), (7, 16)):
        parts = admg.sample(tiny_model, labels[:count], batch_size=batch_size, **options)
        assert (whole.x[:count] - parts.x).abs().max() < 2e-3
    rest = admg.sample(tiny_model, labels[40:50], first=40, **options)  # as another process would make them
    assert (whole.x[40:50] - rest.x).abs().max() < 2e-3
    other = admg.sample(tiny_model, labels[:16], **options | {"seed": 4})
    assert (whole.x[:16] - other.x).flatten(1).abs().amax(1).min() > 0.1


def test_noise_is_standard_normal_and_independent_per_image():
    noise = SeededNoise(0, range(3)).draw((1, 100, 100))
    assert noise.mean((1, 2, 3)).abs().max() < 0.05 and (noise.std((1, 2, 3)) - 1).abs().max() < 0.05
    correlation = torch.corrcoef(noise.flatten(1)) - torch.eye(3)
    assert correlation.abs().max() < 0.05
    assert torch.equal(SeededNoise(0, [2]).draw((1, 100, 100))[0], noise[2])
    assert not torch.equal(SeededNoise(1, [2]).draw((1, 100, 100))[0], noise[2])


def test_labels_by_name_and_number(tiny_model):
    samples = admg.sample(tiny_model, ["ANKLE boot", 2, 3, "zero"], steps=1, progress=False)
    assert samples.labels.tolist() == [4, 2, 3, 0]
    assert samples.label_names == ("Ankle boot", "two", "T-shirt/top", "zero")
    assert samples.images.shape == (4, 8, 8, 1) and samples.images.dtype == np.uint8
    with pytest.raises(ValueError, match="did you mean 'T-shirt/top'"):
        admg.sample(tiny_model, ["t-shirt"], progress=False)
    with pytest.raises(ValueError, match="no labels: at least one is needed"):
        admg.sample(tiny_model, [], progress=False)


def test_unconditional_drops_the_label_of_the_network_but_not_of_the_guide(tiny_model):
    network_y, guide_y = [], []

    def network(x, timesteps, y=None):
        network_y.append(y)
        return torch.zeros(len(x), 2, 8, 8)

    class Conditional(torch.nn.Module):
        config = tiny_model.network.config

        def forward(self, *args, **kwargs):
            return network(*args, **kwargs)

    def guide(state):
        guide_y.append(state.y)

    model = admg.Model(Conditional(), tiny_model.diffusion, (1, 8, 8), tiny_model.labels)
    admg.sample(model, [1, 4], guide=guide, steps=2, progress=False)
    admg.sample(model, [1, 4], guide=guide, steps=2, unconditional=True, progress=False)
    assert [None if y is None else y.tolist() for y in network_y] == [[1, 4], [1, 4], None, None]
    assert [y.tolist() for y in guide_y] == [[1, 4]] * 4


def test_one_label_for_each_image(tiny_model):
    """Too few labels must not leave the other images silently unguided."""
    for sampler in (samplers.ddpm, samplers.ddim):
        with pytest.raises(ValueError, match=r"y must have shape \(3,\), one label per image"):
            next(sampler(tiny_model, torch.zeros(3, 1, 8, 8), y=torch.tensor([1])))


@pytest.mark.thorough
def test_images_without_a_label_among_others(tiny_model, tiny_classifier):
    """An image without a label is neither conditioned nor guided."""
    guide = guidance.ClassifierGuidance(tiny_classifier, 20.0)
    mixed = admg.sample(tiny_model, [0, None, 1], guide=guide, steps=4, progress=False)
    free = admg.sample(tiny_model, [None], steps=4, first=1, progress=False)
    assert (mixed.x[1] - free.x[0]).abs().max() < 2e-3 and mixed.label_names == ("zero", "", "one")
    led = admg.sample(tiny_model, [0, 2, 1], guide=guide, steps=4, progress=False)
    assert (mixed.x[1] - led.x[1]).abs().max() > 0.05 and (mixed.x[2] - led.x[2]).abs().max() < 2e-3


@pytest.mark.parametrize("predict", ["x0", "v"])
def test_a_process_that_ends_in_pure_noise(predict):
    """With ᾱ_T = 0, eps does not follow from x0 by the usual quotient."""
    diffusion = admg.Diffusion(admg.NoiseSchedule.from_betas([0.2, 0.5, 1.0]), predict, "fixed_small")
    x = torch.tensor([0.5, -2.0]).view(2, 1, 1, 1)
    p = diffusion.predict(torch.zeros_like(x), x, 2)
    assert torch.equal(p.eps, x) and p.x0.tolist() == torch.zeros_like(x).tolist()
    model = admg.Model(lambda x, t: torch.zeros_like(x), diffusion, (1, 1, 1))  # type: ignore[arg-type]
    assert all(torch.isfinite(step.x).all() for s in (samplers.ddpm, samplers.ddim) for step in s(model, x))


def test_images_that_are_not_finite_are_never_returned(tiny_model, tiny_classifier):
    """Not by sample(), nor by what is built on it; the message has the numbers of the images."""

    def guide(state):
        return torch.where(torch.arange(len(state.x)).view(-1, 1, 1, 1) % 2 == 1, torch.nan, 0.0).expand_as(state.x)

    how = {"guide": guide, "steps": 2, "progress": False}
    with pytest.raises(FloatingPointError, match="pixels of image 6 are not finite numbers"):
        admg.sample(tiny_model, [0, 1, 2], first=5, **how)
    with pytest.raises(FloatingPointError, match="pixels of image 1 are"):
        admg.edit(tiny_model, torch.zeros(2, 1, 8, 8), [0, 1], **how)
    with pytest.raises(FloatingPointError, match="2 of images 1 to 3 are"):
        admg.interpolate(tiny_model, (0, 1), 1, frames=4, **how)
    with pytest.raises(FloatingPointError, match="pixels of image 1 are"):
        admg.encode(tiny_model, torch.zeros(2, 1, 8, 8), [0, 1], steps=2, guide=guide)


def test_unknown_sampler_and_respacing(tiny_model):
    with pytest.raises(ValueError, match="unknown sampler 'euler': ddim, ddpm"):
        admg.sample(tiny_model, [0], sampler="euler", progress=False)
    with pytest.raises(ValueError, match="steps 'often'"):
        admg.sample(tiny_model, [0], steps="often", progress=False)


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m_sde", functools.partial(samplers.ddim, eta=1.0)])
def test_the_noise_of_the_steps_is_not_that_of_x_T(tiny_model, sampler):
    """Also where x_T is the noise of the same seed, as in an interpolation: the images are those of the seed."""
    options = {"sampler": sampler, "steps": 5, "seed": 3, "progress": False}
    x_T = SeededNoise(3, range(2)).draw((1, 8, 8))
    given, drawn = admg.sample(tiny_model, [1, 2], x_T=x_T, **options), admg.sample(tiny_model, [1, 2], **options)
    assert torch.equal(given.x, drawn.x)
    ends = admg.interpolate(tiny_model, (3, 4), 1, frames=2, **options)
    assert torch.allclose(ends.x[:1], admg.sample(tiny_model, [1, 1], **options).x[:1], atol=1e-4)  # rounding


def test_x_T_and_noise_sampler_replace_the_seed(tiny_model):
    x_T = torch.zeros(2, 1, 8, 8)
    indices = []

    def noise(x, index):
        indices.append(index)
        return torch.zeros_like(x)

    a = admg.sample(tiny_model, [0, 0], sampler="ddpm", steps=4, x_T=x_T, noise_sampler=noise, progress=False)
    assert (a.x[0] - a.x[1]).abs().max() < 0.01 and indices == [3, 2, 1]  # no noise on the way to x_0
    wide = admg.sample(tiny_model, [0], steps=2, x_T=torch.zeros(1, 1, 8, 16), progress=False)
    assert wide.x.shape == (1, 1, 8, 16)
    with pytest.raises(ValueError, match="height and width of an image must be multiples of 2, got 9x8"):
        admg.sample(tiny_model, [0], steps=2, x_T=torch.zeros(1, 1, 9, 8), progress=False)
    with pytest.raises(ValueError, match="x_T must have the channels of the model's images, 1, got 3"):
        admg.sample(tiny_model, [0], steps=2, x_T=torch.zeros(1, 3, 8, 8), progress=False)
    with pytest.raises(ValueError, match="x_T has 2 images for 3 labels"):
        admg.sample(tiny_model, [0, 0, 0], x_T=x_T, progress=False)


@pytest.mark.thorough
def test_each_image_is_upsampled_from_its_own_small_image(tiny_upsampler, tiny_classifier):
    low_res = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    labels, guide = [0, 1, 2, 3, 4], guidance.ClassifierGuidance(tiny_classifier, 2.0)
    options = {"guide": guide, "steps": 3, "seed": 1, "progress": False}
    whole = admg.sample(tiny_upsampler, labels, low_res=low_res, **options).x
    parts = admg.sample(tiny_upsampler, labels, low_res=low_res, batch_size=2, **options).x
    assert (whole - parts).abs().max() < 2e-3
    one = admg.sample(tiny_upsampler, [3], low_res=low_res[3:4], first=3, **options).x
    assert (whole[3:4] - one).abs().max() < 2e-3
    others = admg.sample(tiny_upsampler, labels, low_res=low_res.flip(0), **options).x
    moved = (whole - others).flatten(1).abs().amax(1) > 0.02
    assert moved.tolist() == [True, True, False, True, True]  # the middle one stayed where it was


@pytest.mark.parametrize(
    ("low_res", "message"),
    [
        (None, "it needs low_res"),
        (torch.zeros(2, 1, 2, 2), "4x4"),
        (torch.zeros(1, 1, 4, 4), "2 images"),
        (torch.zeros(2, 3, 4, 4), "1 channels"),
    ],
)
def test_low_res_that_does_not_fit(tiny_upsampler, low_res, message):
    with pytest.raises(ValueError, match=message):
        admg.sample(tiny_upsampler, [0, 1], low_res=low_res, steps=2, progress=False)


def test_low_res_for_a_model_that_makes_images_from_noise(tiny_model):
    with pytest.raises(ValueError, match="requires an upsampling model"):
        admg.sample(tiny_model, [0], low_res=torch.zeros(1, 1, 4, 4), steps=2, progress=False)


@pytest.mark.thorough
def test_an_upsampler_is_the_same_after_saving_and_loading(tiny_upsampler, tiny_model, tmp_path):
    tiny_upsampler.save(tmp_path / "up")
    again = admg.Model.load(tmp_path / "up")
    assert again.upsamples and not tiny_model.upsamples and again.network.config == tiny_upsampler.network.config
    for name, value in tiny_upsampler.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name])
    with pytest.raises(ValueError, match=r"expected a 'classifier' checkpoint, but .* holds a 'upsampler' one"):
        admg.Classifier.load(tmp_path / "up")


def test_to_uint8_truncates_like_the_published_samples():
    x = torch.tensor([-2.0, -1.0, -0.999, 0.0, 0.5, 1.0, 2.0]).view(1, 1, 1, 7)
    assert to_uint8(x).ravel().tolist() == [0, 0, 0, 127, 191, 255, 255]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_8_bit_values_stay_the_same(dtype):
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(dtype) / 127.5 - 1
    np.testing.assert_array_equal(to_uint8(x), pixels)
    np.testing.assert_array_equal(to_uint8(x - 1e-5), np.maximum(pixels, 1) - 1)  # 1.3e-3 of a level below


def test_labels_in_equal_shares():
    assert cycle_labels([3, 1], 5) == [3, 1, 3, 1, 3]


@pytest.mark.thorough
def test_saving_and_loading_keeps_weights_and_configuration(tiny_model, tiny_classifier, tmp_path):
    tiny_model.save(tmp_path / "m")
    tiny_classifier.save(tmp_path / "c")
    assert (tmp_path / "m" / "model.safetensors").stat().st_mode == (tmp_path / "m" / "config.json").stat().st_mode
    model, classifier = admg.load(tmp_path / "m"), admg.load_classifier(tmp_path / "c")
    for a, b in ((tiny_model.network, model.network), (tiny_classifier.network, classifier.network)):
        for (name, p), q in zip(a.state_dict().items(), b.state_dict().values()):
            assert torch.equal(p, q), name
    assert model.label_names == tiny_model.label_names and model.config == tiny_model.config
    assert not model.network.training and not any(p.requires_grad for p in model.network.parameters())
    tiny_model.save(tmp_path / "m", dtype=torch.float16)  # replaces, and loads as float32
    half = admg.load(tmp_path / "m").network.state_dict()
    for name, p in tiny_model.network.state_dict().items():
        assert half[name].dtype == torch.float32
        assert torch.equal(half[name], p.half().float()), name


def test_a_save_that_fails_leaves_the_old_checkpoint(tiny_model, tmp_path, monkeypatch):
    tiny_model.save(tmp_path / "m")
    before = {p.name: p.read_bytes() for p in (tmp_path / "m").iterdir()}
    monkeypatch.setattr("admg.checksums.json.dumps", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tiny_model.save(tmp_path / "m")
    assert {p.name: p.read_bytes() for p in (tmp_path / "m").iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


@pytest.mark.thorough
def test_samples_of_the_shipped_model_do_not_depend_on_the_batch_size():
    model, classifier = admg.load("fashion-mnist"), admg.load_classifier("fashion-mnist")
    labels = [i % 10 for i in range(24)]
    options = {
        "guide": guidance.ClassifierGuidance(classifier, 4.0),
        "steps": 5,
        "unconditional": True,
        "progress": False,
    }
    whole = admg.sample(model, labels, batch_size=24, **options)
    for batch_size, count in ((1, 3), (7, 16)):
        parts = admg.sample(model, labels[:count], batch_size=batch_size, **options)
        assert (whole.x[:count] - parts.x).abs().max() < 1e-3
        assert np.abs(whole.images[:count].astype(int) - parts.images).max() <= 1


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_images_without_a_label_beside_others_are_allowed_whatever_the_batch_size(
    tiny_model, tiny_classifier, batch_size
):
    guide = guidance.ClassifierGuidance(tiny_classifier, 4.0)
    options = {"guide": guide, "steps": 3, "progress": False}
    images = admg.sample(tiny_model, [None, 3, None], batch_size=batch_size, **options).x
    alone = admg.sample(tiny_model, [None], steps=3, progress=False).x  # for it, the gradient is 0
    assert torch.allclose(images[:1], alone, atol=1e-4)
    with pytest.raises(ValueError, match="needs labels"):
        admg.sample(tiny_model, [None, None], batch_size=batch_size, **options)


def test_a_guide_without_return_is_noted(tiny_model, recwarn):
    def forgetful(state):
        torch.ones_like(state.x)

    def sometimes(state):
        return torch.ones_like(state.x) if state.index else None

    admg.sample(tiny_model, [1], guide=sometimes, steps=2, progress=False)
    assert not [str(w.message) for w in recwarn if "None at every step" in str(w.message)]
    with pytest.warns(
        UserWarning, match="the guide 'forgetful' returned None at every step, so the images are unguided"
    ):
        admg.sample(tiny_model, [1], guide=forgetful, steps=2, progress=False)
