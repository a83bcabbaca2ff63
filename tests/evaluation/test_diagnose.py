"""Diagnosing: which settings fit a checkpoint, by how well it denoises real images with each."""

from __future__ import annotations

import dataclasses
import math
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import randomised, refused, run
from PIL import Image
from torch import Tensor

from admg.checkpoints import loading, openai
from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Model
from admg.data import open as open_dataset
from admg.diffusion.config import DiffusionConfig
from admg.diffusion.schedule import NoiseSchedule
from admg.evaluation.diagnose import LEVELS, Attention, attentions, candidates, conclude, diagnose, processes, search
from admg.evaluation.diagnose.candidates import blocks, heads_by_block
from admg.evaluation.diagnose.checkpoint import load, size_of_images
from admg.evaluation.diagnose.denoising import make_probe, outputs, relative_errors, step, timesteps
from admg.evaluation.diagnose.rows import log_likelihood, rows_by_kind
from admg.evaluation.diagnose.search import Board
from admg.evaluation.diagnose.text import how_to_import
from admg.models import UNet, UNetConfig
from admg.models.blocks import split_heads

IMAGES = Path(__file__).parents[1] / "label_classifier" / "test-images.npz"
ARCHITECTURE = (
    "--image_size 32 --image_channels 1 --num_channels 64 --channel_mult 1,1,2,2 --num_res_blocks 1 "
    "--attention_resolutions 8 --class_cond True --num_classes 10 --learn_sigma True --resblock_updown True"
)
RIGHT = f"{ARCHITECTURE} --num_head_channels 64"
"""Of the network: guided-diffusion has no flag for the prediction of v."""
WRONG = f"{ARCHITECTURE} --num_heads 4 --use_new_attention_order True --noise_schedule cosine"
TRUTH = Attention(4, 64, False)
PROCESS = DiffusionConfig(noise_schedule="cosine", predict="v")
"""Of the shipped model."""


@pytest.fixture(scope="module")
def shipped_pt(tmp_path_factory) -> Path:
    """The shipped model as OpenAI's scripts would have saved it."""
    path = tmp_path_factory.mktemp("openai") / "ema_0.9999_003750.pt"
    torch.save(loading.load("fashion-mnist").network.state_dict(), path)
    return path


@pytest.fixture
def few_candidates(monkeypatch):
    """Those that are right, and wrong ones of each kind: schedule, T, heads and order; prediction is always tried."""
    monkeypatch.setattr(candidates, "STEPS", (1000, 4000))
    monkeypatch.setattr(candidates, "HEAD_CHANNELS", (64, 32))
    monkeypatch.setattr(candidates, "NUM_HEADS", (1,))


def real_images(count: int) -> tuple[Tensor, Tensor]:
    dataset = open_dataset(IMAGES, 32, fit="pad")
    return dataset.batch([i * len(dataset) // count for i in range(count)])


# -- the shipped model -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_shipped_model_is_diagnosed_right_with_wrong_flags(shipped_pt, few_candidates):
    model = openai.load_diffusion(shipped_pt, WRONG)
    found = diagnose(model, *real_images(4))
    best = found.best.candidate
    assert (best.process.noise_schedule, best.process.diffusion_steps, best.predict) == ("cosine", 1000, "v")
    assert heads_by_block(model.network, best.attention) == (2, 2, 2, 2) and not best.attention.new_order
    assert found.verdict == "clear" and found.best.error < 0.2 and found.best.ratio == 1
    assert found.network == openai.parse(RIGHT).network
    assert found.stated.ratio > 3 and not found.as_stated
    assert found.stated.candidate.attention == Attention(4, 0, True)
    others = [t for t in found.trials if t.candidate.process != best.process]
    assert len(others) > 10 and min(t.ratio for t in others) > 3  # the process and the prediction stand out by far
    wrong = [t for t in found.trials[1:] if t.candidate.process == best.process]
    assert len(wrong) == 4 and min(t.rows for t in wrong) > 50  # and so does the order of the rows, in nats
    assert found.variance["learned_range"] <= 1.001 * min(found.variance.values()) < 0.1 * found.variance["learned"]
    assert dataclasses.replace(PROCESS, diffusion_steps=4000, rescale_timesteps=True) in found.equivalent
    assert Attention.of(model.network.config) == Attention(4, 0, True)  # it was only tried out
    assert [block.heads for block, _ in blocks(model.network)] == [4] * 4


def rearranged(model: Model) -> Model:
    """The same function, with the rows of qkv (2 heads of 64 channels) arranged as the new order has them."""
    for block, _ in blocks(model.network):
        for p in block.qkv.parameters():
            p.data = p.data.unflatten(0, (2, 3, 64)).transpose(0, 1).flatten(0, 2)
    return model


@pytest.mark.slow
def test_the_new_qkv_order_is_detected(few_candidates, monkeypatch):
    monkeypatch.setattr(candidates, "NUM_HEADS", ())
    model = rearranged(loading.load("fashion-mnist"))
    found = diagnose(model, *real_images(4))
    assert found.best.candidate.attention.new_order and found.best.candidate.process == PROCESS
    assert all(t.candidate.attention.new_order for t in found.rivals)
    assert {t.candidate.attention.head_channels for t in (found.best, *found.rivals)} >= {64}
    assert found.by_rows and not found.as_stated and found.stated.rows > 50
    assert min(t.rows for t in found.trials if not t.candidate.attention.new_order) > 50


@pytest.mark.slow
def test_the_number_of_heads_in_the_new_order_needs_more_images():
    """Weights do not tell it, and in the shipped model it changes the error by a fraction of a per cent."""
    found = diagnose(rearranged(loading.load("fashion-mnist")), *real_images(40))
    assert heads_by_block(loading.load("fashion-mnist").network, found.best.candidate.attention) == (2, 2, 2, 2)
    assert found.best.candidate.attention.new_order


@pytest.mark.slow
def test_all_candidates_on_more_images(shipped_pt):
    model = openai.load_diffusion(shipped_pt, WRONG)
    x0, y = real_images(16)
    *_, board = search(model, x0, y, exhaustive=True)
    found = conclude(board)
    assert found.verdict == "clear" and found.network == openai.parse(RIGHT).network
    assert found.process == PROCESS


@pytest.mark.slow
def test_the_command_names_the_fault_and_the_remedy(capsys, shipped_pt, few_candidates):
    arguments = ["diagnose", shipped_pt, "--images", IMAGES, "--num", 2, "--fit", "pad"]
    code, out, err = run(capsys, *arguments, "--flags", WRONG)
    assert code == 0, err
    assert "2 images of 32x32 pixels, conditioned on their labels" in out
    assert "The flags are wrong: eps, but v fits; 4 heads, but heads of 64 fits; new order, but old fits" in out
    assert "guided-diffusion has no flag for a network that predicts v" in out and "predict v, rescale" in out
    assert out.index("cosine 1000 ") < out.index("linear 1000 ")  # the table's order


@pytest.mark.slow
def test_the_command_confirms_correct_settings(capsys, few_candidates, monkeypatch):
    monkeypatch.setattr(candidates, "STEPS", (1000,))
    arguments = ["diagnose", "fashion-mnist", "--images", IMAGES, "--num", 2, "--fit", "pad", "--unconditional"]
    code, out, err = run(capsys, *arguments)
    assert code == 0, err
    assert "no labels" in out and "Clear: cosine 1000, v, heads of 64, old." in out
    assert "The settings of the checkpoint are right." in out and "The learned range of its variance fits" in out


@pytest.mark.slow
def test_a_prediction_type_without_a_flag(tiny_model):
    found = diagnose(tiny_model, torch.rand(2, 1, 8, 8), levels=(0.0,))
    found = dataclasses.replace(found, process=dataclasses.replace(found.process, predict="v"))
    (said,) = how_to_import(found, False, "x.pt")
    assert "No flags of guided-diffusion describe this" in said and "predict v" in said
    network = openai.parse(RIGHT).network
    process = DiffusionConfig(noise_schedule="cosine", diffusion_steps=4000, variance="learned_range")
    found = dataclasses.replace(found, process=process, network=network)
    _, command = how_to_import(found, False, "my model.pt")
    *_, file, option, flags, out, name = shlex.split(command)
    assert (file, option, out, name) == ("my model.pt", "--flags", "--out", "MODEL")
    assert openai.parse(flags).network == network and openai.parse(flags).diffusion == process


# -- candidates ------------------------------------------------------------------------------------------------------

CONFIG = UNetConfig(
    image_size=16, image_channels=1, channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(16, 8),
    num_heads=2, head_channels=0,
)  # fmt: skip


def test_attentions_divide_all_widths_and_differ():
    network = UNet(CONFIG)  # widths 32 and 64
    found = attentions(network)
    assert found[0] == Attention(2, 0, False)
    meaning = [(heads_by_block(network, a), a.new_order) for a in found]
    assert len(set(meaning)) == len(meaning)
    assert {heads for heads, _ in meaning} == {(h, 2 * h, 2 * h, 2 * h, 2 * h, h, h) for h in (1, 2)} | {
        (h,) * 7 for h in (1, 2, 4, 8, 16)
    }
    assert [new for heads, new in meaning if heads == (1,) * 7] == [False]  # of one head both orders are the same
    assert sum(new for _, new in meaning) == len(meaning) // 2
    upwards = dataclasses.replace(CONFIG, num_heads_upsample=4)
    assert heads_by_block(UNet(upwards), Attention.of(upwards)) == (2, 2, 2, 4, 4, 4, 4)


def test_identical_candidates_are_tried_once():
    groups = processes(DiffusionConfig(noise_schedule="cosine", diffusion_steps=4000, rescale_timesteps=True))
    assert groups[0][0] == DiffusionConfig(noise_schedule="cosine", diffusion_steps=4000, rescale_timesteps=True)
    assert DiffusionConfig(noise_schedule="cosine") in groups[0]
    firsts = [group[0] for group in groups]
    assert DiffusionConfig() in firsts and DiffusionConfig(noise_schedule="cosine", diffusion_steps=4000) in firsts
    assert len(firsts) == 8 and len({p for group in groups for p in group}) == 14
    for group in groups:
        for process in group[1:]:
            assert (timesteps(process, LEVELS) - timesteps(group[0], LEVELS)).abs().max() <= 2


def test_every_process_receives_the_timestep_of_its_noise_level():
    levels = (14.0, 2.0, -14.0)
    for schedule in ("linear", "cosine"):
        process = DiffusionConfig(noise_schedule=schedule, diffusion_steps=1000)
        alpha_bar = process.build().schedule.alpha_bar
        for level, t in zip(levels, timesteps(process, levels).tolist()):
            low, high = (10 * math.log10(alpha_bar[i] / (1 - alpha_bar[i])) for i in (math.ceil(t), math.floor(t)))
            assert low <= level + 1e-4 and level - 1e-4 <= high and abs(step(process, level) - t) <= 0.5
        large = dataclasses.replace(process, diffusion_steps=4000)
        assert torch.allclose(timesteps(large, levels) / 4, timesteps(process, levels), atol=1.5)
        rescaled = dataclasses.replace(large, rescale_timesteps=True)
        assert torch.allclose(4 * timesteps(rescaled, levels), timesteps(large, levels))
    at = NoiseSchedule.linear().alpha_bar[500]
    assert timesteps(DiffusionConfig(), [float(10 * (at / (1 - at)).log10())]).item() == pytest.approx(500, abs=1e-3)


@pytest.mark.parametrize("heads,new", [(1, False), (2, False), (4, False), (2, True), (4, True)])
def test_rows_by_kind_match_the_attention_layout(heads, new):
    rows = torch.arange(48.0).view(1, 1, 48)
    for kind, taken in zip(rows_by_kind(48, heads, new), split_heads(rows, heads, new)):
        assert kind.tolist() == taken.flatten().int().tolist()


@pytest.mark.slow
def test_rows_identify_the_qkv_order_when_keys_are_unchanged():
    network = randomised(UNet(CONFIG), 0)
    truth = Attention(2, 0, False)
    for block, _ in blocks(network):
        queries, _, values = rows_by_kind(len(block.qkv.bias), 2, False)
        block.qkv.bias.data[queries] *= 3
        block.qkv.weight.data[values] *= 0.8
    likelihood = {a: log_likelihood(network, a) for a in attentions(network)}
    assert max(likelihood, key=lambda a: likelihood[a]) == truth
    assert sorted(likelihood.values())[-2] < likelihood[truth] - 20
    new = {round(v, 6) for a, v in likelihood.items() if a.new_order}
    assert len(new) == 1  # thirds, whatever the heads


# -- the denoising error ---------------------------------------------------------------------------------------------


class Network(UNet):
    """Gives what it is asked to, whatever it sees."""

    answer: Tensor

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        return self.answer


def test_the_error_is_0_for_exact_and_1_for_uninformed_predictions():
    generator = torch.Generator().manual_seed(0)
    x0 = 0.2 + 0.4 * torch.randn(8, 1, 16, 16, generator=generator)  # pixels of which nothing more can be known
    config = DiffusionConfig(variance="fixed_large")
    model = Model(UNet(dataclasses.replace(CONFIG, learn_variance=False)), config.build(), (1, 16, 16), config=config)
    probe = make_probe(model, x0, None, LEVELS, seed=0)
    alpha_bar = probe.alpha_bar.float().view(-1, 1, 1, 1, 1)
    snr, mean = alpha_bar / (1 - alpha_bar), x0.mean()
    assert torch.allclose(10 * snr.log10().flatten(), torch.tensor(LEVELS), atol=1e-4)
    gain = snr * probe.spread / (1 + snr * probe.spread)
    guess = mean + gain * (probe.x_t / alpha_bar.sqrt() - mean)
    for name, x0_hat, expected in (("truth", x0.expand_as(guess), 0.0), ("guess", guess, 1.0)):
        eps = (probe.x_t - alpha_bar.sqrt() * x0_hat) / (1 - alpha_bar).sqrt()
        v = alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x0_hat
        for predict, output in (("eps", eps), ("x0", x0_hat), ("v", v)):
            with_variance = torch.cat([output, 9 + output], dim=2)  # which is not looked at
            errors = relative_errors(with_variance, predict, probe)
            assert errors.shape == (8, 5)
            np.testing.assert_allclose(errors.mean(0), expected, atol=0.1 if name == "guess" else 1e-6)
    eps = torch.zeros_like(guess)  # x_t / sqrt(ᾱ) is taken for the image
    expected = (1 + snr * probe.spread).flatten() / (snr * probe.spread).flatten()
    np.testing.assert_allclose(relative_errors(eps, "eps", probe).mean(0), expected, rtol=0.1)
    assert (relative_errors(eps * math.nan, "eps", probe) == 1e6).all()


def test_the_noise_of_an_image_does_not_depend_on_the_others(tiny_model):
    x0 = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    whole, part = (make_probe(tiny_model, x, None, LEVELS, seed=1) for x in (x0, x0[:2]))
    assert torch.allclose(whole.x_t[:, :2], part.x_t, atol=1e-6)
    chosen = whole.images(slice(2, 4))
    assert torch.equal(chosen.x_t, whole.x_t[:, 2:4]) and chosen.spread == whole.spread
    assert len(outputs(tiny_model, tiny_model.config, chosen)) == len(LEVELS)


@pytest.mark.slow
def test_labels_and_low_res_reach_the_network(tiny_upsampler):
    x0 = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    probe = make_probe(tiny_upsampler, x0, torch.tensor([0, 3]), LEVELS, seed=0)
    assert torch.allclose(probe.low_res, x0.unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5)), atol=1e-6)
    process = tiny_upsampler.config
    as_given = outputs(tiny_upsampler, process, probe)
    for field in ("y", "low_res"):
        other = dataclasses.replace(probe, **{field: 1 - getattr(probe, field).abs()})
        assert not torch.allclose(outputs(tiny_upsampler, process, other), as_given, rtol=1e-3)
    assert diagnose(tiny_upsampler, x0).verdict == "none"


# -- the verdict -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_untrained_network_fits_nothing_and_is_unchanged(tiny_model):
    x0 = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    before = [(block.heads, block.new_order) for block, _ in blocks(tiny_model.network)]
    found = diagnose(tiny_model, x0)
    assert found.verdict == "none" and not found.as_stated and found.best.error > 0.75
    walk = search(tiny_model, x0)
    next(walk)
    walk.close()
    assert [(block.heads, block.new_order) for block, _ in blocks(tiny_model.network)] == before


def board_of(scores: dict[str, list[float]]) -> tuple[Board, dict[str, candidates.Candidate]]:
    """A board with one candidate per name, and its log errors at one level."""
    config = DiffusionConfig()
    model = Model(UNet(CONFIG), config.build(), (1, 16, 16), Labels(0), config)
    probe = make_probe(model, torch.rand(4, 1, 16, 16), None, [0.0], 0)
    board = Board(model, probe, [(config,)], 1)
    named = {}
    for i, (name, values) in enumerate(scores.items()):
        named[name] = candidates.Candidate(dataclasses.replace(config, diffusion_steps=i + 1), Attention(2, 0, False))
        board.scores[named[name]] = torch.tensor(values).view(-1, 1)
        board.rows[named[name].attention] = 0.0
    return board, named


def test_alternatives_that_are_significantly_worse():
    base = np.array([0.1, -0.3, 0.4, 0.0, 0.2, -0.1, 0.3, -0.2])
    wobble = np.array([1, -1, 1, -1, 1, -1, 1, -1])
    board, named = board_of(
        {
            "best": list(base),
            "always a bit worse": list(base + 0.02 + 0.001 * wobble),
            "sometimes a bit worse": list(base + 0.02 + 0.1 * wobble),
            "next to the same": list(base + 0.0003),
            "far": list(base[:2] + 0.6),
            "near, of few images": list(base[:2] + 0.05),
        }
    )
    beaten = {name for name, c in named.items() if board.beaten(c, named["best"])}
    assert beaten == {"always a bit worse", "far"}
    assert board.contenders(list(named.values())[:4])[0] == named["best"]
    assert len(board.contenders(list(named.values())[:4])) == 3
    difference, mean = board.difference(named["far"], named["best"])
    assert len(difference) == 2 and mean == pytest.approx(0.6)


@pytest.mark.parametrize(
    "x0,levels,message",
    [
        (torch.zeros(2, 1, 8, 8), LEVELS, "no contrast"),
        (torch.rand(2, 3, 8, 8), LEVELS, r"must have shape \(N, 1, 8, 8\) with N > 0, got \(2, 3, 8, 8\)"),
        (torch.rand(0, 1, 8, 8), LEVELS, "N > 0"),
        (torch.rand(2, 1, 8, 8), (), "at least one noise level"),
    ],
)
def test_impossible_images_are_refused(tiny_model, x0, levels, message):
    with pytest.raises(ValueError, match=message):
        diagnose(tiny_model, x0, levels=levels)


def test_impossible_models_are_refused(tiny_model):
    x0 = torch.rand(2, 1, 8, 8)
    with pytest.raises(ValueError, match="with a DiffusionConfig"):
        diagnose(dataclasses.replace(tiny_model, config=None), x0)
    with pytest.raises(ValueError, match="U-Net of this package"):
        diagnose(dataclasses.replace(tiny_model, network=torch.nn.Linear(1, 1)), x0)


# -- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_native_checkpoint_of_an_untrained_model(capsys, tiny_folders, digits):
    code, out, err = run(capsys, "diagnose", tiny_folders["model"], "--images", digits, "--num", 4)
    assert code == 0 and "No candidate fits" in out and "import-openai" not in out, err
    assert "not conditioned on labels: the data's 10 labels are not the model's 5" in out


@pytest.mark.thorough
def test_the_image_size_of_small_square_images(shipped_pt, tmp_path):
    """Shapes suggest 64 for the shipped model; images of 28 pixels with a border, or of 32, say that it is 32."""
    model = load(str(shipped_pt), None)
    assert model.shape == (1, 64, 64)
    assert size_of_images(str(IMAGES), "pad", model) == 32
    assert size_of_images(str(IMAGES), None, model) is None  # 28 is no size of this network
    for i, size in enumerate(((32, 32), (32, 32), (32, 24))):
        Image.new("L", size).save(tmp_path / f"{i}.png")
        assert size_of_images(str(tmp_path), None, model) == (32 if i < 2 else None)
    (tmp_path / "photos").mkdir()
    Image.new("L", (512, 512)).save(tmp_path / "photos" / "large.png")
    assert size_of_images(str(tmp_path / "photos"), None, model) is None  # to be scaled down


@pytest.mark.thorough
def test_bad_input_is_one_line(capsys, tiny_folders, digits, shipped_pt, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.pt").write_bytes(b"no checkpoint")
    Image.new("L", (28, 28)).save(tmp_path / "black.png")
    tiny = [tiny_folders["model"], "--images"]
    wrong = [
        ([tmp_path / "none.pt", "--images", digits], "none.pt"),
        ([tmp_path / "broken.pt", "--images", digits], "broken.pt"),
        ([tiny_folders["classifier"], "--images", digits], "classifier"),
        ([*tiny, tmp_path / "empty"], "is an empty folder"),
        ([*tiny, tmp_path / "nowhere"], "does not exist"),
        ([*tiny, digits, "--num", 0], "--num must be at least 1"),
        ([*tiny, digits, "--seed", -1], "--seed must be at least 0"),
        ([*tiny, tmp_path / "black.png"], "black.png"),
        ([shipped_pt, "--images", digits, "--image-size", 32], "8x8, smaller than the model's 32x32: choose --fit pad"),
        ([shipped_pt, "--images", digits, "--image-size", 30], "must be a positive multiple of 8"),
        ([shipped_pt, "--images", digits, "--flags", RIGHT, "--image-size", 64], "contradicts the flags"),
        ([shipped_pt, "--images", digits, "--flags", f"{RIGHT} --noise_schedule liner"], "must be linear or cosine"),
        ([shipped_pt, "--images", digits, "--flags", RIGHT.replace("s 64", "s 32")], "--num_channels"),
        ([shipped_pt], "--images"),
    ]
    for arguments, message in wrong:
        assert message in refused(capsys, "diagnose", *arguments), arguments
