"""Low-resolution augmentation: what is drawn, what the network is given, and what is recorded and refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import TRUNK, randomised, refused, succeed
from rounding import with_rounded_weights

import admg
from admg.data import from_arrays
from admg.diffusion.augmentation import blurred, with_noise
from admg.diffusion.losses import loss_terms
from admg.models import SuperResConfig, SuperResUNet
from admg.training import AugmentConfig, ObjectiveConfig, TrainConfig, UpsamplerTask

SMALL = {name: value for name, value in TRUNK.items() if name not in ("image_size", "image_channels")}
PROCESS = admg.DiffusionConfig(diffusion_steps=50)
SHAPE = torch.Size([2000, 1, 8, 8])


def task(noise: float = 0.0, blur: float = 0.0) -> UpsamplerTask:
    network = randomised(SuperResUNet(SuperResConfig(**TRUNK, num_classes=3, small_size=4, augment_noise=noise)), 0)
    model = admg.Model(network, PROCESS.build(), (1, 8, 8), admg.Labels(3), PROCESS)
    return UpsamplerTask(model, 4, augment_blur=blur)


def drawn(of: UpsamplerTask, shape: torch.Size = SHAPE) -> tuple[torch.Tensor, ...]:
    return of.draw(shape, torch.Generator().manual_seed(1))


def test_levels_are_uniform_up_to_the_highest_and_blur_has_its_share_and_range():
    *_, level, noise, sigma = drawn(task(0.4, 0.5))
    assert noise.shape == (2000, 1, 4, 4) and noise.std().item() == pytest.approx(1, abs=0.02)
    assert level.max() <= 0.4 and level.mean().item() == pytest.approx(0.2, abs=4 * 0.4 / 12**0.5 / 2000**0.5)
    assert (sigma > 0).float().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / 2000**0.5)
    used = sigma[sigma > 0]
    assert used.min() >= 0.4 and used.max() <= 0.6 and used.mean().item() == pytest.approx(0.5, abs=0.01)
    assert not drawn(task(blur=1.0))[3].any() and not drawn(task(noise=1.0))[5].any()


def test_augmentation_leaves_the_other_random_numbers_as_they_are():
    plain = drawn(task())
    assert len(plain) == 3
    for a, b in zip(plain, drawn(task(0.4, 0.5))[:3], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("noise", "blur"), [(0.4, 0.0), (0.0, 1.0), (0.4, 0.5)])
def test_the_loss_is_that_of_the_area_average_blurred_and_noised_with_its_level(noise, blur):
    augmented = task(noise, blur)
    x, y = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(2)) * 2 - 1, torch.tensor([0, 1, 2] * 2)
    t, eps, dropped, level, small_noise, sigma = drawn(augmented, x.shape)
    small = x.unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean(dim=(3, 5))
    given = {"low_res": with_noise(blurred(small, sigma), level, small_noise), "y": torch.where(dropped, -1, y)}
    given |= {"level": level} if noise else {}
    expected = loss_terms(augmented.model.diffusion, augmented.network, x, t, eps, objective="hybrid", **given)
    found = augmented.loss(x, y, t, eps, dropped, level, small_noise, sigma)
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-5), name
    clean = loss_terms(augmented.model.diffusion, augmented.network, x, t, eps, low_res=small, y=given["y"])
    assert not torch.allclose(found["mse"], clean["mse"], rtol=1e-3)


@pytest.mark.thorough
def test_a_network_with_levels_begins_as_one_without_and_then_depends_on_the_level():
    torch.manual_seed(0)
    x, low_res, t = torch.randn(2, 1, 8, 8).double(), torch.randn(2, 1, 4, 4).double(), torch.tensor([3.0, 7.0])
    with_levels = SuperResUNet(SuperResConfig(**TRUNK, augment_noise=0.5)).double()
    plain = SuperResUNet(SuperResConfig(**TRUNK)).double()
    own = {name for name in with_levels.state_dict() if name not in plain.state_dict()}
    assert own == {f"level_embed.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
    state = randomised(plain, 1).double().state_dict()
    with_levels.load_state_dict(state | {name: with_levels.state_dict()[name] for name in own})
    a, b = (with_levels(x, t, low_res, level=level) for level in (None, torch.tensor([0.1, 0.5])))
    expected, rounded = (network(x, t, low_res) for network in (plain, with_rounded_weights(plain, 9 * 64, 0)))
    bound = 2 * (rounded - expected).abs().max()  # sums are in another order where memory is aligned otherwise
    assert (a - expected).abs().max() <= bound and (a - b).abs().max() <= bound
    randomised(with_levels, 1).double()
    none, zero, high = (with_levels(x, t, low_res, level=v) for v in (None, torch.zeros(2), torch.tensor([0.0, 0.5])))
    bound = 2 * (with_rounded_weights(with_levels, 9 * 64, 0)(x, t, low_res) - none).abs().max()
    assert (none - zero).abs().max() <= bound and (none[0] - high[0]).abs().max() <= bound < 1e-10
    assert (none[1] - high[1]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="not conditioned on the level of noise"):
        plain(x, t, low_res, level=torch.zeros(2))


@pytest.mark.thorough
def test_sampling_adds_the_noise_of_each_image_and_gives_the_level(monkeypatch):
    model, low_res = task(0.5).model, torch.rand(5, 1, 4, 4) * 2 - 1
    calls = []
    forward = SuperResUNet.forward

    def record(self, x, timesteps, low_res, y=None, level=None):
        calls.append((low_res, level))
        return forward(self, x, timesteps, low_res, y, level)

    monkeypatch.setattr(SuperResUNet, "forward", record)
    options = {"steps": 2, "progress": False, "seed": 3}
    batched = admg.upsample(model, low_res, [0] * 5, augment_level=0.3, batch_size=2, **options).x
    given, levels = calls[0]
    assert levels.tolist() == pytest.approx([0.3, 0.3])
    noise = (given - (1 - 0.09) ** 0.5 * low_res[:2]) / 0.3
    again = admg.diffusion.noise.SeededNoise(3 + 2**32 + 2**33, [0, 1]).draw((1, 4, 4))
    assert torch.allclose(noise, again, atol=1e-5)
    whole = admg.upsample(model, low_res, [0] * 5, augment_level=0.3, **options).x
    assert torch.allclose(batched, whole, atol=1e-4)
    assert (whole - admg.upsample(model, low_res, [0] * 5, **options).x).abs().max() > 1e-2
    assert calls[-1][1] is None and torch.equal(calls[-1][0], low_res)


def test_levels_that_a_model_was_not_trained_with_are_refused():
    low_res, options = torch.zeros(1, 1, 4, 4), {"steps": 1, "progress": False}
    with pytest.raises(ValueError, match=r"augment_level must be from 0 to 0\.5, the range of .*, got 0\.6"):
        admg.upsample(task(0.5).model, low_res, [0], augment_level=0.6, **options)
    with pytest.raises(
        ValueError, match=r"augment_level must be 0 for a model trained without augment_noise, got 0\.1"
    ):
        admg.upsample(task().model, low_res, [0], augment_level=0.1, **options)
    with pytest.raises(ValueError, match=r"augment_level must be from 0 to 1, got -0\.1"):
        admg.upsample(task(0.5).model, low_res, [0], augment_level=-0.1, **options)
    for changes in ({"augment_noise": 1.5}, {"augment_noise": -0.1}, {"augment_blur": 2.0}):
        with pytest.raises(ValueError, match=f"{next(iter(changes))} must be at least 0 and at most 1"):
            AugmentConfig(**changes)
    with pytest.raises(ValueError, match="augment_noise must be from 0 to 1, got 2"):
        SuperResConfig(**TRUNK, augment_noise=2)


def test_other_formats_have_no_level(tmp_path):
    for to, message in (("openai", "guided-diffusion has no upsampler that is cond"), ("diffusers", "UNet2DModel can")):
        with pytest.raises(ValueError, match=message):
            admg.export.export(task(0.5).model, to, tmp_path / to)
        assert not (tmp_path / to).exists()


@pytest.mark.thorough
def test_a_run_with_augmentation_resumes_exactly_and_records_it(tmp_path):
    data = from_arrays(np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8), [0, 1, 2] * 4)

    def train(out: str, steps: int) -> list[float]:
        config = TrainConfig(steps=steps, batch_size=4, lr=1e-3, warmup=1, precision="fp32")
        options = {"augment": AugmentConfig(augment_noise=0.3, augment_blur=0.5), "small_size": 4, "network": SMALL}
        run = admg.train_upsampler(data, tmp_path / out, config, diffusion=PROCESS,
                                   objective=ObjectiveConfig(label_dropout=0.5), **options)  # fmt: skip
        return [step["loss"] for step in run]

    whole = train("a", 4)
    assert train("b", 2) + train("b", 4) == pytest.approx(whole, rel=1e-6)
    model = admg.load_upsampler(tmp_path / "b")
    assert model.network.config.augment_noise == 0.3 and model.network.level_embed[2].weight.abs().max() > 0
    assert json.loads((tmp_path / "b/model/config.json").read_text())["training"]["augment_blur"] == 0.5
    small, options = torch.zeros(2, 1, 4, 4), {"steps": 2, "progress": False}
    assert admg.upsample(model, small, ["0", None], augment_level=0.3, **options).x.any()


@pytest.mark.thorough
def test_the_commands_take_levels_and_refuse_what_has_none(capsys, tmp_path, tiny_folders):
    for name, noise in (("levels", 0.5), ("plain", 0.0)):
        trunk = TRUNK | {"image_size": 16, "attention_resolutions": ()}
        network = randomised(SuperResUNet(SuperResConfig(**trunk, small_size=8, augment_noise=noise)), 1)
        admg.Model(network, PROCESS.build(), (1, 16, 16), config=PROCESS).save(tmp_path / name)
    np.savez(tmp_path / "base.npz", arr_0=np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8))
    command = ["upsample", "--base", tmp_path / "base.npz", "--steps", 2, "--precision", "fp32"]
    for level in (0, 0.5):
        out = tmp_path / str(level)
        succeed(capsys, *command, "--model", tmp_path / "levels", "--augment-level", level, "--out", out)
        assert ("augment_level" in (out / "run.json").read_text()) == (level > 0)
    large = [np.load(tmp_path / level / "samples_2x16x16x1.npz")["arr_0"] for level in ("0", "0.5")]
    assert not np.array_equal(*large)
    line = refused(capsys, *command, "--model", tmp_path / "plain", "--augment-level", 0.1, "--out", tmp_path / "c")
    assert "must be 0 for a model trained without" in line and not (tmp_path / "c").exists()
    line = refused(capsys, *command, "--model", tmp_path / "levels", "--augment-level", 2, "--out", tmp_path / "c")
    assert "--augment-level must be at least 0 and at most 1, got 2" in line
    stack = ["sample", "--model", tiny_folders["model"], "--scale", 0, "--num", 2, "--steps", 2, "--upsampler-steps", 2]
    stack += ["--labels", "one,two", "--precision", "fp32", "--upsampler"]
    line = refused(capsys, *stack, tmp_path / "plain", "--upsampler-augment-level", 0.1, "--out", tmp_path / "d")
    assert "must be 0 for a model trained without" in line and not (tmp_path / "d").exists()
    succeed(capsys, *stack, tmp_path / "levels", "--upsampler-augment-level", 0.2, "--out", tmp_path / "d")
    assert json.loads((tmp_path / "d/run.json").read_text())["settings"]["augment_level"] == 0.2


def test_blur_is_drawn_for_small_copies_made_by_area_and_enlarged_bilinearly(monkeypatch):
    """As in guided-diffusion's super_res_train.py and SuperResModel."""
    seen = []
    plain = task()
    monkeypatch.setattr(SuperResUNet, "denoise", lambda self, x, emb, y: seen.append(x) or torch.zeros(1, 2, 8, 8))
    x = torch.arange(64.0).view(1, 1, 8, 8) / 32 - 1
    plain.loss(x, torch.zeros(1, dtype=torch.int64), *plain.draw(x.shape, torch.Generator().manual_seed(0)))
    small = F.avg_pool2d(x, 2)[0, 0].numpy()
    at = np.clip((np.arange(8) + 0.5) / 2 - 0.5, 0, 3)  # centres of large pixels in small ones
    low, share = np.floor(at).astype(int), at - np.floor(at)
    high = np.minimum(low + 1, 3)
    rows = small[low] * (1 - share)[:, None] + small[high] * share[:, None]
    expected = rows[:, low] * (1 - share) + rows[:, high] * share
    assert np.abs(seen[0][0, 1].numpy() - expected).max() < 1e-6
