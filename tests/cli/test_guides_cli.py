"""Guidance and sampler options on the command line: compared with sample(), recorded, refused in one line."""

from __future__ import annotations

import functools
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import refused, run
from PIL import Image

import admg
from admg import guidance, samplers
from admg.cli.sampling_options import GuidanceOptions
from admg.generation import guide_specs
from admg.generation.guide_specs import GuideSet, UserGuide, guide_title
from admg.generation.identity import identify
from admg.generation.images import to_float
from admg.generation.upsample import UPSAMPLER_SEED
from admg.userfile import load_object

OWN = """
import torch
from admg import guidance

PULL = 3.0


def pull(state):
    return -PULL * state.x


class Pull(guidance.Guidance):
    def __call__(self, state):
        return -PULL * state.x


as_object = Pull()
number = 4


def wrong_shape(state):
    return torch.zeros(3)


def fails(state):
    wanted = state.no_such_thing
    return wanted


changing = guidance.ClassifierFreeGuidance(3.0)
"""


@pytest.fixture
def own(tmp_path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), torch.OutOfMemoryError()]
)
def test_running_out_of_memory_in_a_user_guide_is_passed_on(error):
    """The caller retries with a smaller batch."""

    def guide(state):
        raise error

    with pytest.raises(type(error)) as raised:
        UserGuide(guide, Path("own.py"), "guide")(None)
    assert raised.value is error


@pytest.fixture
def command(tiny_folders, tmp_path):
    return ["sample", "--model", tiny_folders["model"], "--classifier", tiny_folders["classifier"], "--steps", 4,
            "--label", "two", "--label", "one", "--num", 4, "--precision", "fp32",
            "--out", tmp_path / "out"]  # fmt: skip


@pytest.fixture
def expected(tiny_folders):
    """Return a function (guide of a classifier, options) -> the images that the command should write."""
    model, classifier = admg.load(tiny_folders["model"]), admg.load_classifier(tiny_folders["classifier"])

    def make(guide=lambda _: None, **options):
        options = {"steps": 4, "progress": False} | options
        return admg.sample(model, [2, 1, 2, 1], guide=guide(classifier), **options).images

    return make


def made(capsys, tmp_path, *command) -> np.ndarray:
    code, _, err = run(capsys, *command)
    assert code == 0, err
    return np.load(tmp_path / "out" / "samples_4x8x8x1.npz")["arr_0"]


def pull(state):
    return -3.0 * state.x


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("options", "guide"),
    [
        (["--scale", 2], lambda c: guidance.ClassifierGuidance(c, 2.0)),
        (["--cfg", 3], lambda c: guidance.ClassifierFreeGuidance(3.0)),  # replaces the classifier
        (["--guide", "classifier-free:3"], lambda c: guidance.ClassifierFreeGuidance(3.0)),
        (["--cfg", 3, "--scale", 2],
         lambda c: guidance.ClassifierGuidance(c, 2.0) + guidance.ClassifierFreeGuidance(3.0)),
        (["--guide", "apg:4,eta=0.5,momentum=0.25"], lambda c: guidance.APG(4.0, 0.5, 0.25)),
        (["--guide", "cfg-plus-plus"], lambda c: guidance.CFGPlusPlus()),
        (["--guide", "cfg-zero-star:3"], lambda c: guidance.CFGZeroStar(3.0)),
        (["--guide", "perturbed-attention:2"], lambda c: guidance.PerturbedAttentionGuidance(2.0)),
        (["--guide", "gradient-free:3,reference=null"], lambda c: guidance.GradientFreeGuidance(c, 3.0, "null")),
        (["--scale", 99, "--interval", "0.5,3"],
         lambda c: guidance.Interval(guidance.ClassifierGuidance(c, 99.0), 0.5, 3.0)),
        (["--guide", "OWN:pull"], lambda c: guidance.ClassifierGuidance(c, 4.0) + pull),  # added to the classifier
        (["--guide", "OWN:pull", "--scale", 0], lambda c: pull),
        (["--guide", "OWN:as_object", "--guide", "OWN:changing", "--scale", 0],
         lambda c: guidance.ClassifierFreeGuidance(3.0) + pull),
        (["--guide", "OWN:pull:0.5", "--scale", 0], lambda c: 0.5 * guidance.guide(pull)),
        (["--guide", "OWN:changing:2", "--guide", "OWN:as_object:-1e-1", "--scale", 0],
         lambda c: 2 * guidance.ClassifierFreeGuidance(3.0) + -0.1 * guidance.guide(pull)),
        (["--guide", "OWN:pull", "--cfg", 2], lambda c: guidance.ClassifierFreeGuidance(2.0) + pull),
    ],
)  # fmt: skip
def test_the_command_equals_the_call_from_python(capsys, command, expected, own, tmp_path, options, guide):
    options = [option.replace("OWN", str(own)) if isinstance(option, str) else option for option in options]
    images = made(capsys, tmp_path, *command, *options)
    assert np.abs(images.astype(int) - expected(guide)).max() <= 1
    assert np.abs(images.astype(int) - expected()).max() > 5  # unguided


def test_every_guide_with_a_scale_is_offered(capsys):
    """Guides are found by their fields, so that a new class needs no registration."""
    names = ["apg", "cfg-plus-plus", "cfg-zero-star", "classifier-free", "gradient-free", "perturbed-attention"]
    assert list(guide_specs.guide_kinds()) == names
    assert guide_specs.guide_kinds()["apg"] is guidance.APG
    help_text = " ".join(run(capsys, "sample", "--help")[1].split()).replace("- ", "-")
    assert all(name in help_text for name in names)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("options", "function"),
    [
        (["--sampler", "unipc", "--sampler-option", "order=3", "--sampler-option", "lower_order_final=false"],
         functools.partial(samplers.unipc, order=3, lower_order_final=False)),
        (["--sampler", "heun", "--sampler-option", "s_churn=2", "--sampler-option", "s_noise=1.5"],
         functools.partial(samplers.heun, s_churn=2.0, s_noise=1.5)),
    ],
)  # fmt: skip
def test_sampler_options(capsys, command, expected, tmp_path, options, function):
    images = made(capsys, tmp_path, *command, "--scale", 0, *options)
    assert np.abs(images.astype(int) - expected(sampler=function)).max() <= 1
    assert "options.s_churn" in refused(capsys, *command, "--scale", 0, "--sampler", "heun", "--sampler-option",
                                        "s_churn=1") or function.func is samplers.unipc  # fmt: skip


def test_a_file_that_changed_within_a_second_is_read_again(tmp_path):
    path = tmp_path / "own.py"
    found = []
    for value in ("1", "2"):  # of equal length
        path.write_text(f"value = {value}\n")
        os.utime(path, (1e9, 1e9))
        found.append(load_object(f"{path}:value"))
    assert [value for value, _ in found] == [1, 2] and found[0][1] != found[1][1]


def test_a_guide_of_a_file_beside_the_default_classifier_is_noted(own):
    model = admg.load("fashion-mnist")
    with pytest.warns(UserWarning, match="own.py:pull is added to the classifier, which guides at scale .*--scale 0"):
        GuidanceOptions(guide=(f"{own}:pull",)).load(model, "fashion-mnist")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GuidanceOptions(guide=(f"{own}:pull",), scale=0.0).load(model, "fashion-mnist")
        GuidanceOptions(guide=(f"{own}:pull",), classifier="fashion-mnist").load(model, "fashion-mnist")


@pytest.mark.thorough
def test_run_json_records_what_decides_the_images(capsys, command, own, tmp_path):
    """A file with other content is another guide; a file that was moved is the same."""
    options = ["--guide", f"{own}:pull", "--cfg", 2, "--interval", "0.1,inf"]
    made(capsys, tmp_path, *command, *options)
    settings = json.loads((tmp_path / "out" / "run.json").read_text())["settings"]
    interval = settings["guide"]
    cfg, mine = interval["guide"]["guides"]
    assert cfg == {"type": "ClassifierFreeGuidance", "scale": 2.0} and interval["low"] == 0.1
    assert mine["file"] == "own.py:pull" and len(mine["checksum"]) == 12
    (tmp_path / "elsewhere").mkdir()
    moved = own.rename(tmp_path / "elsewhere" / "own.py")
    options[1] = f"{moved}:pull"
    assert "finished run with these settings" in run(capsys, *command, *options)[1]
    moved.write_text(OWN.replace("PULL = 3.0", "PULL = 3.5"))
    assert "guide.guide.guides.1.checksum is" in refused(capsys, *command, *options)
    moved.write_text(OWN)
    assert "guide.low is 0.1 there, unset here" in refused(capsys, *command, *options[:4])


@pytest.mark.thorough
def test_settings_that_a_record_does_not_have_are_unset(capsys, command, tmp_path):
    """A run continues if its record lacks settings that are None here."""
    made(capsys, tmp_path, *command)
    path = tmp_path / "out" / "run.json"
    record = json.loads(path.read_text())
    for name in ("options", "base", "start"):
        assert record["settings"].pop(name) is None
    del record["checksum"]  # as whoever edits a record by hand
    path.write_text(json.dumps(record))
    assert "finished run with these settings" in run(capsys, *command)[1]


@pytest.mark.thorough
def test_sheet_over_the_scale_of_cfg(capsys, command, expected, tmp_path, monkeypatch):
    drawn = []

    def draw(columns, scales, names, title, option, guided):
        drawn.append((columns, scales, title, option, guided))
        return Image.new("L", (1, 1))

    monkeypatch.setattr("admg.generation.scale_sheet.scale_sheet", draw)
    assert run(capsys, *command, "--scale", 2, "--sheet", "cfg=1,4")[0] == 0
    ((one, four), scales, title, name, guided), = drawn  # fmt: skip
    assert (scales, name, guided) == ([1, 4], "cfg", True) and "scale 2" in title and "cfg" not in title
    for column, scale in ((one, 1.0), (four, 4.0)):
        wanted = expected(lambda c, w=scale: guidance.ClassifierGuidance(c, 2.0) + guidance.ClassifierFreeGuidance(w))
        assert np.abs(column.astype(int) - wanted).max() <= 1
    start = command.index("--classifier")
    alone = [*command[:start], *command[start + 2 :]]
    assert run(capsys, *alone, "--sheet", "cfg=1,4")[0] == 0  # without the classifier, as --cfg
    (_, four), _, title, _, guided = drawn[-1]
    assert np.abs(four.astype(int) - expected(lambda c: guidance.ClassifierFreeGuidance(4.0))).max() <= 1
    assert not guided and "scale" not in title


def test_titles_name_the_guide(own):
    others = (guide_specs.parse_guide("apg:4,eta=0.5"), guide_specs.load_user_guide(f"{own}:pull"))
    guide = GuideSet(object(), 4.0, 2.0, others, (0.3, 5.0)).build()
    assert guide_title(guide) == "scale 4, cfg 2, apg 4 eta=0.5, pull, noise 0.3 to 5"
    scaled = guide_specs.load_user_guide(f"{own}:pull:2.5")
    assert guide_title(scaled) == "2.5 x (pull)" and identify(scaled)["factor"] == 2.5
    assert GuideSet().build() is None and guide_title(None) == ""


@pytest.mark.thorough
def test_upsampling_with_a_guide(capsys, tiny_upsampler, own, tmp_path):
    tiny_upsampler.save(tmp_path / "up")
    small = np.random.default_rng(0).integers(256, size=(2, 4, 4, 1), dtype=np.uint8)
    np.savez(tmp_path / "small.npz", arr_0=small, arr_1=np.array([1, 2]))
    command = ["upsample", "--model", tmp_path / "up", "--base", tmp_path / "small.npz", "--steps", 3,
               "--precision", "fp32"]  # fmt: skip
    assert run(capsys, *command, "--cfg", 3, "--out", tmp_path / "out")[0] == 0
    x = to_float(small)
    expected = admg.sample(tiny_upsampler, [1, 2], low_res=x, guide=guidance.ClassifierFreeGuidance(3.0), steps=3,
                           seed=UPSAMPLER_SEED, progress=False).images  # fmt: skip
    images = np.load(tmp_path / "out" / "samples_2x8x8x1.npz")["arr_0"]
    assert np.abs(images.astype(int) - expected).max() <= 1


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--guide", "apq:4"], "unknown guidance 'apq': apg, cfg-plus-plus"),
        (["--guide", "apg:four"], "scale must be a number, not 'four'"),
        (["--guide", "apg:4,speed=2"], "apg has no option 'speed'; its options are scale, eta, momentum, max_norm"),
        (["--guide", "apg:4,2"], "apg has no option '2'"),
        (["--guide", "apg:4,momentum=2"], "momentum must be between"),
        (["--guide", "apg:inf"], "finite number"),
        (["--cfg", "nan"], "finite number"),
        (
            ["--cfg", 2, "--unconditional"],
            "this guidance needs conditional predictions: it cannot be used with --unconditional",
        ),
        (
            ["--cfg", 2, "--unconditional", "--scale", 2],
            "this guidance needs conditional predictions: it cannot be used with --unconditional",
        ),
        (["--cfg", 2, "--guide", "cfg-plus-plus"], "CFG++"),
        (["--guide", "cfg-plus-plus:0.5", "--sampler", "ddpm"], "CFG++ needs a sampler that combines x0"),
        (["--interval", "3"], "--interval must be two noise levels"),
        (["--interval", "3,1"], "0 <= low <= high"),
        (["--interval", "1,3", "--scale", 0], "the interval limits guidance, and there is none"),
        (["--reuse", "2", "--scale", 0], "guidance is to be reused, and there is none"),
        (["--reuse", "0"], "--reuse must be at least 1"),
        (["--sheet", "cfg=1,b"], "scale=0,1,2,4,8"),
        (["--sheet", "cfg=nan"], "finite"),
        (["--sampler", "ddpm", "--sampler-option", "order=2"], "ddpm has no option 'order' (available: none)"),
        (["--sampler", "unipc", "--sampler-option", "order=two"], "order must be a whole number"),
        (["--sampler", "unipc", "--sampler-option", "order=4"], "order must be 1, 2 or 3"),
        (["--sampler", "unipc", "--sampler-option", "lower_order_final=2"], "must be true or false"),
        (["--sampler", "heun", "--sampler-option", "s_churn=-1"], "must not be negative"),
        (["--guide", "no/such.py:g"], "there is no file no/such.py"),
        (["--guide", "OWN:nothing"], "no 'nothing': it has pull, Pull, as_object, wrong_shape, fails, changing"),
        (["--guide", "OWN"], "expected path/to/file.py:name"),
        (["--guide", "OWN:pull:two"], "the SCALE of path/to/file.py:name:SCALE must be a number"),
        (["--guide", "OWN:pull:nan"], "the factor of a guide must be a finite number, got nan"),
        (["--guide", "OWN:pull,scale=3"], "expected path/to/file.py:name or path/to/file.py:name:SCALE"),
        (["--guide", "OWN:nothing:2"], "no 'nothing': it has pull"),
        (["--guide", "OWN:number"], "is not a guide: expected a function of guidance.State or a Guidance, got int"),
        (["--guide", "OWN:Pull"], "must be an object, not a class: define one, such as my_guide = Pull()"),
        (["--guide", "OWN:wrong_shape"], "wrong_shape must return a gradient like x"),
        (["--guide", "OWN:fails"], "AttributeError: 'State' object has no attribute 'no_such_thing' (line 26)"),
        (["--guide", "BROKEN:g"], "broken.py cannot be imported: NameError: name 'undefined' is not defined (line 2)"),
        (["--guide", "SYNTAX:g"], "syntax.py cannot be imported: SyntaxError: '(' was never closed (line 1)"),
        (["--guide", "EXITS:g"], "exits.py cannot be imported: SystemExit: 3"),
    ],
)
def test_bad_guides_give_one_line_and_write_nothing(capsys, command, own, tmp_path, options, message):
    files = {"BROKEN": "import math\nundefined\n", "SYNTAX": "f(\n", "EXITS": "raise SystemExit(3)\n"}
    for name, text in files.items():
        (tmp_path / f"{name.lower()}.py").write_text(text)
    paths = {name: str(tmp_path / f"{name.lower()}.py") for name in files} | {"OWN": str(own)}
    for i, option in enumerate(options):
        name, colon, rest = str(option).partition(":")
        options = [*options[:i], f"{paths.get(name, name)}{colon}{rest}", *options[i + 1 :]]
    assert message in refused(capsys, *command, *options)
    assert not (tmp_path / "out").exists()


def test_a_guide_may_import_a_module_beside_it(tmp_path):
    (tmp_path / "beside.py").write_text("WEIGHT = 2.0\n")
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom beside import WEIGHT\n\n"
        "@dataclass\nclass G:\n    w: float = WEIGHT\n    def __call__(self, state): return None\n\ng = G()\n"
    )
    assert guide_specs.load_user_guide(f"{tmp_path / 'mine.py'}:g").guide.w == 2.0
