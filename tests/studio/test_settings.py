"""What a page may send: converted, checked against ranges and limits, and refused in one line."""

from __future__ import annotations

import math

import pytest

from admg.studio.catalog import Catalog
from admg.studio.limits import Limits
from admg.studio.sampling import parse_scales, sheet_option
from admg.studio.settings import Settings, guidance_choices, read

PAGE = {"model": "m", "labels": ["two"], "num": 8, "guidance": "classifier", "scale": 4, "low": 0, "high": 0,
        "sampler": "ddim", "steps": 25, "spacing": "even", "eta": 0, "unconditional": False, "seed": 0}  # fmt: skip


def test_a_page_becomes_settings(limits):
    found = read(PAGE | {"num": 4.0, "spacing": "karras", "low": 0.5, "labels": "two"}, limits)
    assert found == Settings(model="m", labels=("two",), num=4, spacing="karras", low=0.5)
    assert type(found.num) is int and type(found.scale) is float
    assert found.spec == "karras25" and found.interval == (0.5, math.inf)
    assert read(PAGE | {"spacing": "tuned", "steps": 5}, limits).spec == "tuned5"  # of `admg tune-steps`
    assert read(PAGE, limits).interval is None and read(PAGE | {"labels": None}, limits).labels == ()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num": 10_000}, "the number of images must be from 1 to 64, got 10,000"),
        ({"num": 0}, "the number of images must be from 1 to 64, got 0"),
        ({"num": 1.5}, "num must be a whole number, got 1.5"),
        ({"num": None}, "num must be a number, got nothing"),
        ({"num": True}, "num must be a number, got True"),
        ({"num": "8"}, "num must be a number, got '8'"),
        ({"num": math.nan}, "num must be a number, got nan"),
        ({"steps": 251}, "the number of steps must be from 1 to 250, got 251"),
        ({"seed": -1}, "seed must be at least 0 and at most 4,294,967,295, got -1"),
        ({"scale": 1e6}, "scale must be at least -100 and at most 1,000, got 1000000.0"),
        ({"eta": 2}, "eta must be at least 0 and at most 1, got 2.0"),
        ({"eta": 0.5, "sampler": "unipc"}, "eta applies only to the sampler ddim, not to unipc: set it to 0"),
        ({"sampler": "my.py:f"}, "sampler must be one of ddim, ddpm"),
        ({"guidance": "my_guides.py:f"}, "guidance must be one of none, classifier"),
        ({"spacing": ["x"]}, "spacing must be chosen"),
        ({"unconditional": "yes"}, "unconditional must be on or off"),
        ({"labels": [1]}, "labels must be names of labels"),
        ({"labels": ["a"] * 1001}, "at most 1,000 labels"),
        ({"low": 5, "high": 1}, "the lowest noise level of guidance, 5, is above the highest, 1"),
    ],
)
def test_what_a_page_may_not_send(changed, message, limits):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        read(PAGE | changed, limits)
    assert str(error.value).startswith(message)


def test_limits_can_be_set():
    assert read(PAGE | {"num": 100}, Limits(max_images=100)).num == 100
    with pytest.raises(ValueError, match="max_images must be at least 1"):
        Limits(max_images=0)


def test_only_the_given_models_can_be_chosen(tiny_catalog, tiny_folders):
    assert tiny_catalog[tiny_folders["model"]].label_names[:2] == ["zero", "one"]
    for other in ("fashion-mnist", "/etc/passwd", "../model", None, ["m"]):
        with pytest.raises(ValueError, match=r"unknown model .*: this studio has "):
            tiny_catalog[other]


def test_models_that_cannot_be_used_are_refused_at_the_start(tiny_folders):
    with pytest.raises(ValueError, match="at least one model"):
        Catalog([])
    with pytest.raises(ValueError, match="unknown model 'fashion-mnits'"):
        Catalog(["fashion-mnits"])
    with pytest.raises(ValueError, match="do not belong together"):
        Catalog([f"{tiny_folders['model']},fashion-mnist"])


def test_every_kind_of_guidance_can_be_built(entry, limits):
    for kind in guidance_choices():
        read(PAGE | {"guidance": kind, "scale": 0.5}, limits).recipe(entry)


def test_guidance_that_needs_a_classifier_is_refused_without_one(tiny_folders, limits):
    plain = Catalog([tiny_folders["model"]]).first
    assert plain.classifier is None
    with pytest.raises(ValueError, match="has no classifier"):
        read(PAGE, limits).guides(plain)
    with pytest.raises(ValueError, match="has no classifier"):
        read(PAGE | {"guidance": "gradient-free"}, limits).guides(plain)


@pytest.mark.parametrize("text", ["", "a,b", "1,,2", "1e9", "nan", ",".join("1" * 13), None])
def test_scales_of_a_sheet_are_checked(text):
    with pytest.raises(ValueError, match="the scales must be 1 to 12 numbers"):
        parse_scales(text)


def test_a_sheet_is_for_guidance_with_one_scale(limits):
    assert sheet_option(read(PAGE, limits)) == "scale"
    assert sheet_option(read(PAGE | {"guidance": "classifier-free"}, limits)) == "cfg"
    with pytest.raises(ValueError, match="choose one of them"):
        sheet_option(read(PAGE | {"guidance": "apg"}, limits))
