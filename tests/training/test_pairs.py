"""What a run starts from and resumes must have the same meaning, and a model says whether labels were dropped."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from helpers import TRUNK, refused, state_file, succeed

import admg
from admg import guidance
from admg.data import from_arrays
from admg.training import DiffusionTask, ObjectiveConfig, TrainConfig

SMALL = {name: value for name, value in TRUNK.items() if name not in ("image_size", "image_channels")}
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
PETS = from_arrays(PIXELS, ["cat", "dog", "cat", "dog"])
OTHERS = from_arrays(PIXELS, ["cat", "fox", "cat", "fox"])


@pytest.fixture(autouse=True)
def without_previews(monkeypatch):
    """Save the time of drawing pictures at the last step."""
    monkeypatch.setattr(DiffusionTask, "preview", lambda *_: {})


def trained(out, data=PETS, steps=1, network=None, dropout=0.1, init=None, **process):
    """Train for a step, and return the model."""
    diffusion = admg.DiffusionConfig(**{"diffusion_steps": 50} | process)
    objective, config = ObjectiveConfig(label_dropout=dropout), TrainConfig(steps=steps, batch_size=2, precision="fp32")
    training = admg.train_diffusion(data, out, config, network=SMALL | (network or {}), diffusion=diffusion,
                                    objective=objective, init=init)  # fmt: skip
    for _ in training:
        pass
    return training.model


NEW_ORDER = {"new_attention_order": True}
MANY_HEADS = {"head_channels": 16}


@pytest.mark.thorough
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data": OTHERS}, "label 1 is 'fox' for this run and 'dog' for the run in"),
        ({"predict": "v"}, "this run predicts v, the run in .* eps"),
        ({"noise_schedule": "cosine"}, "at timestep .* of the variance is noise for this run"),
        ({"diffusion_steps": 1000}, "this run was trained on timesteps 0 to 999 .* the run in .* on 0 to 49"),
        ({"variance": "learned"}, "this run has the variance learned, the run in .* learned_range"),
        ({"network": NEW_ORDER}, "this run has 1 attention heads in new order, the run in .* in old order"),
        ({"network": MANY_HEADS}, "this run has 2 attention heads in old order, the run in .* 1 attention heads"),
    ],
    ids=str,
)
def test_resuming_with_another_meaning_is_refused(tmp_path_factory, changes, message):
    """Shapes are the same in each case, so that the weights could be loaded."""
    out = tmp_path_factory.getbasetemp() / "resumed"
    if not out.exists():
        trained(out)
    before = state_file(out).read_bytes()
    with pytest.raises(ValueError, match=f"this run and the run in .* do not belong together: {message}"):
        trained(out, steps=2, **changes)
    assert state_file(out).read_bytes() == before


@pytest.mark.thorough
@pytest.mark.parametrize(
    "changes, message",
    [({"predict": "x0"}, "this run predicts x0, .* eps"), ({"network": NEW_ORDER}, "in new order, .* in old order"),
     ({"variance": "learned"}, "this run has the variance learned, .* learned_range")],
    ids=["predict", "attention", "variance"],
)  # fmt: skip
def test_weights_of_another_meaning_are_no_start(tmp_path, changes, message):
    trained(tmp_path / "a")
    with pytest.raises(ValueError, match=f"do not belong together: .*{message}"):
        trained(tmp_path / "b", init=tmp_path / "a", **changes)
    assert not (tmp_path / "b").exists()


@pytest.mark.thorough
def test_weights_of_other_noise_are_a_start_and_that_is_said(tmp_path):
    trained(tmp_path / "a")
    with pytest.warns(UserWarning, match="of the variance is noise .* only a starting point"):
        model = trained(tmp_path / "b", data=OTHERS, init=tmp_path / "a", noise_schedule="cosine")
    assert model.label_names == ("cat", "fox") and model.config.noise_schedule == "cosine"


@pytest.mark.thorough
def test_a_model_says_whether_labels_were_dropped(tmp_path):
    never = trained(tmp_path / "never", dropout=0.0)
    assert never.label_dropout == admg.load(tmp_path / "never").label_dropout == 0
    options = {"steps": 1, "progress": False}
    admg.sample(never, ["cat"], **options)
    for label, more in (("cat", {"guide": guidance.ClassifierFreeGuidance(2.0)}), (None, {"unconditional": True})):
        with pytest.raises(ValueError, match="was never trained without labels"):
            admg.sample(never, [label], **options, **more)
    with pytest.raises(ValueError, match="was never trained without labels"):
        admg.sample(never, ["cat", None], **options)
    assert trained(tmp_path / "never", dropout=0.3, steps=2).label_dropout == 0.3
    assert trained(tmp_path / "never", dropout=0.0, steps=3).label_dropout == 0.3  # it has been, once
    assert trained(tmp_path / "b", dropout=0.0, init=tmp_path / "never").label_dropout == 0.3


@pytest.mark.thorough
def test_the_shipped_model_and_its_classifier_fit_without_a_note():
    model, classifier = admg.load("fashion-mnist"), admg.load_classifier("fashion-mnist")
    assert model.label_dropout == 0.4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        guide = guidance.ClassifierGuidance(classifier) + guidance.ClassifierFreeGuidance(2.0)
        admg.sample(model, ["coat"], guide=guide, steps="trailing1", progress=False)


@pytest.mark.thorough
def test_training_at_96_pixels_has_attention_and_says_where(capsys, tmp_path):
    np.savez(tmp_path / "data.npz", arr_0=np.zeros((2, 96, 96, 1), np.uint8))
    train = ["train", "--data", tmp_path / "data.npz", "--image-size", 96, "--channels", 32, "--head-channels", 32,
             "--num-res-blocks", 1, "--steps", 1, "--batch-size", 1, "--preview-every", 9]  # fmt: skip
    line = refused(capsys, *train, "--attention-resolutions", "16", "--out", tmp_path / "a")
    assert "no level has 16 pixels; the levels have 96, 48, 24, 12" in line and not (tmp_path / "a").exists()
    said = succeed(capsys, *train, "--channel-mult", "1,1,1,1", "--out", tmp_path / "a")
    assert "attention at 24, 12 pixels" in said
    assert admg.load(tmp_path / "a").network.config.attention_resolutions == (24, 12)
