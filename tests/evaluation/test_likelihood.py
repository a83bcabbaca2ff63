"""Bits per dimension: against OpenAI's values, against a distribution whose likelihood is known, and the command."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
import torch
from helpers import refused, run
from PIL import Image
from reference import arrays, error_by_image
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Model
from admg.data import from_arrays, from_dataset
from admg.data import open as open_dataset
from admg.data.spread import spread_indices
from admg.diffusion.gaussian import Diffusion
from admg.diffusion.schedule import NoiseSchedule
from admg.evaluation.likelihood import BitsPerDim, bits_per_dim, gather, terms
from admg.evaluation.nll import bands, nll
from admg.evaluation.real_images import label_numbers, open_real_images

MATHS = arrays("maths.npz")
INPUT = {name: torch.from_numpy(MATHS[f"in/{name}"]) for name in ("x0", "x", "raw")}
CASES = sorted({key.removesuffix("/vb_bpd") for key in MATHS if "/50/" in key and key.endswith("/vb_bpd")})


class Function(nn.Module):
    """A network that computes a function of x_t and the timestep."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        return self.function(x, timesteps)


# -- OpenAI's values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_terms_equal_guided_diffusion(case):
    """At the steps at which the reference was asked, x_t and the output being those that it was given."""
    schedule, _, variance, predict = case.split("/")
    full = {"linear": NoiseSchedule.linear, "cosine": NoiseSchedule.cosine}[schedule](1000)
    d = Diffusion(full.respace(50), predict, variance)
    output = INPUT["raw"] if d.learns_variance else INPUT["raw"][:, :3]
    alpha_bar = d.schedule.alpha_bar

    def noise(x0: Tensor, t: int) -> Tensor:
        return ((INPUT["x"].double() - alpha_bar[t].sqrt() * x0) / (1 - alpha_bar[t]).sqrt()).float()

    model = Model(Function(lambda x, t: output), d, (3, 8, 8))
    result = bits_per_dim(model, INPUT["x0"], noise=noise, clip=False)
    images, steps = torch.arange(4), torch.tensor([0, 1, 25, 49])
    assert result.vb.shape == result.x0_mse.shape == result.mse.shape == (4, 50)
    np.testing.assert_allclose(result.vb[images, steps], MATHS[f"{case}/vb_bpd"], rtol=1e-4, atol=1e-6)
    assert error_by_image(result.prior, MATHS[f"{case}/prior_bpd"]) < 1e-4
    x0 = torch.from_numpy(MATHS[f"{case}/clip0/pred_xstart"])
    assert error_by_image(result.x0_mse[images, steps], (x0 - INPUT["x0"]).square().flatten(1).mean(1)) < 1e-4
    if predict == "eps":
        true = torch.stack([noise(INPUT["x0"], int(t))[i] for i, t in enumerate(steps)])
        expected = (output[:, :3] - true).square().flatten(1).mean(1)
        assert error_by_image(result.mse[images, steps], expected) < 1e-3
    assert torch.allclose(result.total, result.prior + result.vb.sum(1), rtol=1e-5)


def test_predictions_are_clipped_unless_clip_is_off():
    """As in the reference, both errors are those of the clipped image."""
    d = Diffusion(NoiseSchedule.cosine(20), "x0", "fixed_small")
    x0 = INPUT["x0"].clamp(-1, 1)
    model = Model(Function(lambda x, t: torch.full_like(x, 5.0)), d, (3, 8, 8))
    clipped, free = (bits_per_dim(model, x0, clip=clip) for clip in (True, False))
    for result, value in ((clipped, 1.0), (free, 5.0)):
        error = (value - x0).square().flatten(1).mean(1, keepdim=True)
        assert torch.allclose(result.x0_mse, error.expand(-1, 20), rtol=1e-4)
        alpha_bar = d.schedule.alpha_bar.float()  # eps errs by sqrt(SNR) times as much as x_0
        assert torch.allclose(result.mse, result.x0_mse * (alpha_bar / (1 - alpha_bar)), rtol=1e-3)
    assert (clipped.vb < free.vb).all()


# -- a distribution whose likelihood is known ------------------------------------------------------------------------

MEAN, STD = 0.1, 0.15
ALPHA_BAR = 1 / (1 + np.exp(-np.linspace(9, -9, 60)))
"""ᾱ_t with even steps of the log signal-to-noise ratio."""


def gaussian_model(variance: str) -> Model:
    """The exact reverse process of pixels from N(MEAN, STD²): E[x_0 | x_t], and the log variance of x_{t-1} | x_t."""
    betas = 1 - ALPHA_BAR / np.concatenate([[1.0], ALPHA_BAR[:-1]])
    d = Diffusion(NoiseSchedule.from_betas(betas), "x0", variance)

    def output(x: Tensor, timesteps: Tensor) -> Tensor:
        t = int(timesteps.unique().item())
        mean = MEAN + gain(t) * (x - ALPHA_BAR[t] ** 0.5 * MEAN)
        if not d.learns_variance:
            return mean
        c, beta_tilde = d.constants.posterior_mean_x0[t].item(), d.constants.posterior_variance[t].item()
        return torch.cat([mean, torch.full_like(mean, math.log(beta_tilde + c**2 * spread(t)))], 1)

    return Model(Function(output), d, (1, 16, 16))


def gain(t: int) -> float:
    return ALPHA_BAR[t] ** 0.5 * STD**2 / (ALPHA_BAR[t] * STD**2 + 1 - ALPHA_BAR[t])


def spread(t: int) -> float:
    """Variance of x_0 | x_t."""
    return STD**2 * (1 - ALPHA_BAR[t]) / (ALPHA_BAR[t] * STD**2 + 1 - ALPHA_BAR[t])


def gaussian_pixels(count: int) -> Tensor:
    return MEAN + STD * torch.randn(count, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def test_the_bound_of_the_true_process_is_the_entropy():
    """With the true mean and variance of every step the bound is tight: -log2 of the density, times a bin's width."""
    x0 = gaussian_pixels(32)
    result = bits_per_dim(gaussian_model("learned"), x0)
    entropy = 0.5 * math.log2(2 * math.pi * math.e * STD**2) - math.log2(2 / 255)
    of_these = entropy + (((x0 - MEAN) / STD).square().mean() - 1).item() / (2 * math.log(2))
    assert abs(result.total.mean() - of_these) < 0.01 and 6 < entropy < 7
    assert torch.allclose(result.total, result.prior + result.vb.sum(1), rtol=1e-6)


def test_terms_of_the_true_process_are_closed_forms():
    """KL with the variances β̃ and β̃ + c² Var[x_0 | x_t]; c is the weight of x_0 in the posterior's mean."""
    x0, d = gaussian_pixels(32), gaussian_model("learned").diffusion
    c, beta_tilde = (table.numpy()[1:] for table in (d.constants.posterior_mean_x0, d.constants.posterior_variance))
    variance = np.array([spread(t) for t in range(1, len(d))])
    expected = {
        "learned": 0.5 * np.log2(1 + c**2 * variance / beta_tilde),  # the extra variance is that of c x_0, on average
        "fixed_small": c**2 * variance / (2 * beta_tilde) / math.log(2),
    }
    for kind, value in expected.items():
        result = bits_per_dim(gaussian_model(kind), x0)
        np.testing.assert_allclose(result.vb[:, 1:].mean(0), value, rtol=0.1)
        assert abs(result.vb[:, 1:].sum(1).mean() / value.sum() - 1) < 0.01
        np.testing.assert_allclose(result.x0_mse[:, 1:].mean(0), variance, rtol=0.1)
    mean, var = ALPHA_BAR[-1] ** 0.5 * x0, 1 - ALPHA_BAR[-1]
    prior = 0.5 * (mean**2 + var - 1 - math.log(var)).flatten(1).mean(1) / math.log(2)
    assert torch.allclose(result.prior, prior.float(), atol=1e-6)


# -- batches and noise -----------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_an_image_has_the_same_terms_in_any_batch(tiny_model):
    model = tiny_model.respace(6)
    x0, y = INPUT["x0"][:3, :1].clamp(-1, 1), torch.tensor([0, 3, -1])
    whole = bits_per_dim(model, x0, y, seed=7)
    parts = [bits_per_dim(model, x0[i : i + 1], y[i : i + 1], seed=7, images=[i]) for i in range(3)]
    joined = BitsPerDim.join(parts)
    for name in ("prior", "vb", "x0_mse", "mse", "total"):
        assert torch.allclose(getattr(joined, name), getattr(whole, name), rtol=1e-3, atol=1e-5), name
    assert len(joined) == 3
    assert not torch.allclose(bits_per_dim(model, x0, y, seed=8).mse, whole.mse, rtol=1e-2)


def test_one_index_and_one_noise_per_image(tiny_model):
    x0 = torch.zeros(3, *tiny_model.shape)
    with pytest.raises(ValueError, match="images must hold one index per image, got 1 for 3 images"):
        bits_per_dim(tiny_model.respace(2), x0, images=[0])
    with pytest.raises(ValueError, match="noise_sampler must return noise of shape"):
        bits_per_dim(tiny_model.respace(2), x0, noise=lambda x, t: torch.zeros_like(x[:1]))


def test_terms_come_from_the_noisiest_step_down_and_gather_sorts_them(tiny_model):
    model, x0 = tiny_model.respace(5), INPUT["x0"][:2, :1]
    steps = list(terms(model, x0, noise=lambda x, t: torch.full_like(x, t / 5)))
    assert [step.t for step in steps] == [4, 3, 2, 1, 0]
    result = gather(model, x0, steps)
    assert torch.equal(result.vb[:, 4], steps[0].vb) and torch.equal(result.mse[:, 0], steps[-1].mse)


def test_labels_and_low_res_reach_the_network(tiny_model, tiny_upsampler):
    x0 = INPUT["x0"][:2, :1]
    one, other, none = (
        bits_per_dim(tiny_model.respace(3), x0, y).mse for y in (torch.tensor([0, 0]), torch.tensor([1, 1]), None)
    )
    assert not torch.allclose(one, other, rtol=1e-4) and not torch.allclose(one, none, rtol=1e-4)
    upsampler = tiny_upsampler.respace(3)
    with pytest.raises(ValueError, match="small images"):
        bits_per_dim(upsampler, x0)
    upsampler.given = {"low_res": x0[..., ::2, ::2]}
    assert bits_per_dim(upsampler, x0).total.isfinite().all()
    with pytest.raises(ValueError, match=r"\['low_res'\] must have a small image for each of 1 images, got 2"):
        bits_per_dim(upsampler, x0[:1])


def test_each_image_of_an_upsampler_has_its_small_image(tiny_upsampler):
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    data, upsampler = from_arrays(images), tiny_upsampler.respace(3)
    x0 = data.batch(range(5))[0]
    upsampler.given = {"low_res": nn.functional.avg_pool2d(x0, 2)}
    whole = bits_per_dim(upsampler, x0).total
    options = {"unconditional": True, "progress": False}
    for batch_size in (5, 2):
        report = nll(upsampler, data, batch_size=batch_size, **options)
        assert report.total_by_image == pytest.approx(whole.tolist(), rel=1e-5)
    assert nll(upsampler, data, num=3, **options).total_by_image == pytest.approx(
        whole[list(spread_indices(5, 3))].tolist(), rel=1e-5
    )


def test_any_torch_data_set_is_measured(tiny_model):
    images, model = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)), tiny_model.respace(3)
    images, labels = (images * 255).byte(), [4, 0, 3, 1, 2, 2]
    expected = nll(model, from_arrays(images, labels), progress=False).total_by_image
    items = [(image, label) for image, label in zip(images, labels)]
    for data in (TensorDataset(images, torch.tensor(labels)), from_dataset(items)):
        assert nll(model, data, progress=False).total_by_image == expected
        part = nll(model, data, num=3, progress=False).total_by_image
        assert part == pytest.approx([expected[i] for i in spread_indices(6, 3)], rel=1e-5)
    with pytest.raises(ValueError, match=r"int has no len\(\) or no items by index: expected a map-style"):
        nll(model, 3, progress=False)
    items[1] = (images[1], None)
    assert open_real_images(from_dataset(items), (1, 8, 8), model.labels).labels.tolist() == [4, -1, 3, 1, 2, 2]


@pytest.mark.parametrize(
    "x0,y,message",
    [
        (torch.zeros(2, 3, 8, 8), None, r"shape \(N, 1, 8, 8\), got \(2, 3, 8, 8\)"),
        (torch.zeros(2, 1, 16, 16), None, "images must have shape"),
        (torch.zeros(1, 8, 8), None, "images must have shape"),
        (torch.zeros(0, 1, 8, 8), None, "no images"),
        (torch.zeros(2, 1, 8, 8), torch.tensor([1]), r"labels must have shape \(2,\), one per image, got \(1,\)"),
        (torch.zeros(1, 1, 8, 8), torch.tensor([99]), "unknown label '99'"),
        (torch.zeros(1, 1, 8, 8), torch.tensor([1.0]), "labels must be a tensor of integers"),
        (torch.zeros(1, 1, 8, 8), ["cat"], "labels must be a tensor of integers"),
    ],
)
def test_impossible_images_are_refused(tiny_model, x0, y, message):
    with pytest.raises(ValueError, match=message):
        bits_per_dim(tiny_model.respace(2), x0, y)


def test_a_warning_of_images_that_are_not_of_8_bits(tiny_model, recwarn):
    model, levels = tiny_model.respace(2), torch.arange(256.0)[:64].reshape(1, 1, 8, 8)
    for dtype in (torch.float32, torch.float16):
        bits_per_dim(model, torch.cat([levels, levels + 192]).to(dtype) / 127.5 - 1)
    assert not recwarn.list
    for x0 in (levels / 127.5 - 1 + 0.002, torch.zeros(1, 1, 8, 8), (levels + 30) / 128 - 1):
        with pytest.warns(UserWarning, match="some images do not have 8-bit values"):
            bits_per_dim(model, x0)


# -- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def command(tiny_folders):
    return ["evaluate", "nll", "--model", tiny_folders["model"], "--unconditional", "--steps", "5"]


@pytest.mark.thorough
def test_the_command_reports_the_terms(capsys, command, tiny_model, digits, tmp_path):
    out = tmp_path / "nll"
    code, text, err = run(capsys, *command, "--data", digits, "--num", 6, "--batch-size", 4, "--out", out)
    assert code == 0, err
    report = json.loads((out / "nll.json").read_text())
    dataset = open_dataset(digits, 8)
    numbers = list(spread_indices(len(dataset), 6))
    expected = bits_per_dim(tiny_model.respace(5), dataset.batch(numbers)[0], images=numbers)
    assert np.allclose(report["total_by_image"], expected.total, rtol=1e-3)
    total = report["bits_per_dim"]["total"]
    assert abs(total["mean"] / expected.total.mean() - 1) < 1e-3
    assert abs(total["standard_error"] / (expected.total.std() / 6**0.5) - 1) < 1e-2
    parts = report["bits_per_dim"]
    assert abs(total["mean"] - parts["vb"]["mean"] - parts["prior"]["mean"]) < 1e-4
    assert np.allclose(report["by_t"]["xstart_mse"], expected.x0_mse.mean(0), rtol=1e-3)
    assert report["by_t"]["timestep"] == [0, 25, 50, 74, 99]
    rows = list(csv.DictReader((out / "nll.csv").open()))
    assert [float(row["vb"]) for row in rows] == pytest.approx(report["by_t"]["vb"])
    assert Image.open(out / "nll.png").size[0] > 500
    assert f"{total['mean']:.4f} ± {total['standard_error']:.4f} bits per dimension" in text
    assert len(text.splitlines()) == 6 + 5 + 1 + 3  # a head, a row for each of 5 steps, a note, the files
    for file in ("a.json", "b.csv"):
        assert run(capsys, *command, "--data", digits, "--num", 2, "--out", tmp_path / file)[0] == 0
    assert json.loads((tmp_path / "a.json").read_text())["images"] == 2
    assert len((tmp_path / "b.csv").read_text().splitlines()) == 6


def test_labels_are_given_by_name(capsys, tiny_folders, tiny_model, tmp_path):
    names = ("one", "zero")
    for i, name in enumerate(names):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.fromarray(np.full((8, 8), 40 * i, np.uint8)).save(tmp_path / "data" / name / "x.png")
    arguments = ["--model", tiny_folders["model"], "--data", tmp_path / "data", "--steps", 3]
    code, text, err = run(capsys, "evaluate", "nll", *arguments, "--out", tmp_path / "nll.json")
    assert code == 0 and "conditioned on the labels" in text, err
    x0 = torch.tensor([0, 40]).view(2, 1, 1, 1).expand(2, 1, 8, 8) / 127.5 - 1
    expected = bits_per_dim(tiny_model.respace(3), x0, torch.tensor([1, 0])).total
    assert np.allclose(json.loads((tmp_path / "nll.json").read_text())["total_by_image"], expected, rtol=1e-3)


@pytest.mark.thorough
def test_samples_are_evaluated_under_their_labels(capsys, tiny_folders, tmp_path):
    """The files in images/ of `admg sample` are named T-shirt-top, and dataset.json there says T-shirt/top."""
    arguments = ["--model", tiny_folders["model"], "--steps", 2]
    labels = ["--label", "T-shirt/top", "--label", "Ankle boot"]
    code, _, err = run(capsys, "sample", *arguments, *labels, "--num", 2, "--out", tmp_path / "out")
    assert code == 0, err
    code, text, err = run(capsys, "evaluate", "nll", *arguments, "--data", tmp_path / "out" / "images")
    assert code == 0 and "conditioned on the labels" in text, err


def test_one_image_has_no_standard_error(capsys, command, digits):
    code, text, err = run(capsys, *command, "--data", digits, "--num", 1)
    assert code == 0 and "bits per dimension" in text and "±" not in text and "nan" not in text, err


def test_label_numbers():
    named = Labels(3, ("cat", "dog", "10"))
    assert label_numbers(named, ("Dog", "cat")) == [1, 0]
    with pytest.warns(UserWarning, match="n01, n02, n03.* there are equally many, so they are matched in order"):
        assert label_numbers(named, ("n01", "n02", "n03")) == [0, 1, 2]
    with pytest.raises(ValueError, match="unknown label 'fox'"):
        label_numbers(named, ("cat", "fox", "Dog"))  # as many, but others
    numeric = Labels(3, ("1", "2", "3"))
    assert label_numbers(numeric, ("0", "1"), numbered=True) == [0, 1] and label_numbers(numeric, ("1", "3")) == [0, 2]
    assert label_numbers(Labels(3), ("0", "2")) == [0, 2]
    as_text = tuple(sorted(map(str, range(12))))  # 0, 1, 10, 11, 2, ...
    with pytest.warns(UserWarning, match="have no names: .* matched in order, which is that of texts: '10' is label 2"):
        assert label_numbers(Labels(12), as_text) == list(range(12))  # as guided-diffusion numbers them
    with pytest.warns(UserWarning, match="numbers from 0 on, so each is taken for the number of a label"):
        assert label_numbers(Labels(12, [f"animal {i}" for i in range(12)]), as_text) == [int(name) for name in as_text]
    punctuated = Labels(4, ("a,b", "c d", "c_d", "golden retriever"))
    assert label_numbers(punctuated, ("A-b", "golden-retriever")) == [0, 3]  # as written to images/
    assert label_numbers(punctuated, ("c d", "c_d", "a,b", "golden-retriever")) == [1, 2, 0, 3]
    with pytest.raises(ValueError, match="unknown label 'c-d'"):  # of two
        label_numbers(punctuated, ("c-d",))
    with pytest.raises(ValueError, match=r"2 labels are not the model's 3: unknown label 'cow'.*--unconditional"):
        label_numbers(named, ("cat", "cow"))


def image_folder(path, size: tuple[int, int], mode: str = "L"):
    path.mkdir()
    for i in range(2):
        Image.new(mode, size, 100 + i).save(path / f"{i}.png")
    return path


@pytest.mark.thorough
def test_bad_input_is_one_line(capsys, command, digits, tmp_path):
    grey = image_folder(tmp_path / "small", (6, 8))
    (tmp_path / "empty").mkdir()
    wrong = [
        (["--data", grey], "6x8, smaller than the model's 8x8: choose --fit pad"),
        (["--data", image_folder(tmp_path / "large", (9, 9)), "--fit", "pad"], "larger than image_size 8x8"),
        (["--data", tmp_path / "empty"], "is an empty folder"),
        (["--data", tmp_path / "none"], "does not exist"),
        (["--data", digits, "--num", 0], "--num must be at least 1"),
        (["--data", digits, "--batch-size", 0], "--batch-size must be at least 1"),
        (["--data", digits, "--seed", -1], "--seed must be at least 0"),
        (["--data", digits, "--steps", "200"], "steps '200': cannot take 200 steps from 100"),
        (["--data", digits, "--out", tmp_path / "a.txt"], "must be a file that ends in .json or .csv"),
        (["--data", digits, "--device", "abacus"], "device 'abacus' cannot be used"),
        (["--data", digits, "--device", "meta"], "device 'meta' cannot be used"),
        (["--data", digits, "--model", "unheard-of"], "unknown model 'unheard-of'"),
        ([], "--data"),
    ]
    for arguments, message in wrong:
        assert message in refused(capsys, *command, *arguments), arguments
    labelled = [argument for argument in command if argument != "--unconditional"]
    assert "has no labels, and" in refused(capsys, *labelled, "--data", image_folder(tmp_path / "nameless", (8, 8)))
    assert "the data's 10 labels are not the model's 5" in refused(capsys, *labelled, "--data", digits)
    assert "SAMPLES" in refused(capsys, "evaluate") and "--data" in refused(capsys, "evaluate", "nll")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "large", "nameless", "small"]


def test_a_grey_folder_fits_a_colour_model_and_a_pad_fits_a_small_image(tiny_folders, capsys, command, tmp_path):
    data = image_folder(tmp_path / "small", (6, 6))
    assert run(capsys, *command, "--data", data, "--fit", "pad")[0] == 0
    assert open_dataset(data, 8, channels=3, fit="pad").batch([1])[0].shape == (1, 3, 8, 8)


@pytest.mark.parametrize("steps", [1, 7, 10, 11, 1000])
def test_bands_hold_every_step_once(steps):
    found = bands(steps)
    assert len(found) == min(10, steps) and [t for band in found for t in band] == list(range(steps))
    assert max(map(len, found)) - min(map(len, found)) <= 1


def test_the_prior_term_is_included():
    """In the total, as much as the terms do; after few steps of little noise it is most of it."""
    vb = torch.tensor([[1.0, 0.25], [0.5, 0.5]])
    result = BitsPerDim(torch.tensor([2.0, 4.0]), vb, vb, vb)
    assert result.total.tolist() == [3.25, 5.0]


def test_results_are_not_written_into_a_data_set(capsys, command, digits, tmp_path):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "photos" / "cat" / "a.png")
    line = refused(capsys, *command, "--data", digits, "--out", tmp_path / "photos")
    assert "photos looks like a data set (cat/a.png): choose another folder" in line
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat"]
