"""Configurations: ranges, texts, nested groups and TOML."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest

from admg import config
from admg.config import check_integer
from admg.training import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """How to optimise. It is only an example.

    lr: Learning rate
    betas: Two decay rates,
        of which both are below 1
    """

    lr: float = config.setting(1e-3, above=0)
    betas: tuple[float, ...] = config.setting((0.9, 0.999), min=0, below=1)

    def __post_init__(self) -> None:
        config.check(self)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run.

    data: Folder of images
    kind: Which kind
    """

    data: str
    kind: Literal["a", "b"] = "a"
    steps: int | None = config.setting(None, min=1)
    optimiser: Optimiser = config.group(Optimiser, title="optimisation")
    network: dict[str, Any] = config.overrides(Optimiser, omit=("lr", "betas"))

    def __post_init__(self) -> None:
        config.check(self)


def test_flat_values_build_nested_configurations():
    run = config.build(Run, {"data": "images", "lr": 0.5, "betas": (0.0,), "unknown": 1})
    assert run == Run(data="images", optimiser=Optimiser(lr=0.5, betas=(0.0,)))


def test_overrides_are_the_given_fields_of_a_later_configuration():
    @dataclass(frozen=True)
    class Later:
        optimiser: dict[str, Any] = config.overrides(Optimiser, omit=("betas",))

    assert config.build(Later, {"lr": 2.0, "betas": (0.1,)}).optimiser == {"lr": 2.0}


@pytest.mark.parametrize(
    "values, message",
    [
        ({}, "data is required"),
        ({"data": "x", "lr": 0.0}, "lr must be above 0, got 0.0"),
        ({"data": "x", "lr": float("nan")}, "lr must be above 0, got nan"),
        ({"data": "x", "lr": float("inf")}, "lr must be above 0, got inf"),
        ({"data": "x", "betas": (0.5, 1.0)}, "betas must be at least 0 and below 1, got 1.0"),
        ({"data": "x", "steps": 0}, "steps must be at least 1, got 0"),
        ({"data": "x", "kind": "c"}, "kind must be one of a, b, got 'c'"),
    ],
)
def test_values_out_of_range_are_named(values, message):
    with pytest.raises(ValueError) as error:
        config.build(Run, values)
    assert str(error.value) == message


def test_texts_come_from_the_docstring():
    assert config.field_texts(Optimiser)["betas"] == "Two decay rates, of which both are below 1"
    assert config.summary(Optimiser) == "How to optimise. It is only an example."
    assert [(o.name, o.group) for o in config.options(Run)] == [
        ("data", ""),
        ("kind", ""),
        ("steps", ""),
        ("lr", "optimisation"),
        ("betas", "optimisation"),
    ]


def test_toml_holds_every_option_and_reads_back(tmp_path):
    text = config.to_toml(Run, {"data": 'a "b" é', "betas": (0.5, 0.25)})
    assert tomllib.loads(text) == {"data": 'a "b" é', "kind": "a", "lr": 1e-3, "betas": [0.5, 0.25]}
    assert "# steps =" in text and "# optimisation" in text
    path = tmp_path / "run.toml"
    path.write_text('batch-size = 3\n[table]\nlr = 1.0\n[table.inner]\nname = "x"\n', encoding="utf-8")
    assert config.read_toml(path) == {"batch_size": 3, "lr": 1.0, "name": "x"}
    path.write_text("a-b = 1\na_b = 2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="sets 'a_b' twice"):
        config.read_toml(path)
    path.write_text("a = = 1", encoding="utf-8")
    with pytest.raises(ValueError, match=r"run\.toml is not valid TOML"):
        config.read_toml(path)


@pytest.mark.parametrize("value", [1.5, 2.0, "3", None, True, np.float64(2)])
def test_integers_are_not_other_numbers(value):
    with pytest.raises(ValueError, match="seed must be an integer of at least 0, got"):
        check_integer("seed", value, 0)
    with pytest.raises(ValueError, match=r"steps must be an integer, got 2\.5"):
        TrainConfig(steps=2.5)
    check_integer("seed", np.int64(0), 0)
