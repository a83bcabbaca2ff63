"""config.json: whatever stands in it, a model is loaded as it is described or refused with one line."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from helpers import refused

import admg
from admg.checkpoints import native
from admg.checkpoints.weights import CheckpointError

VALUES: list[Any] = [None, "", "x", "8", -1, 0, 1, 2**70, 10**9, 0.5, float("nan"), float("inf"), 1e300, True, [], {},
                     [[]], [None], ["a", "a"], [10**9], {"a": 1}]  # fmt: skip


def places(content: dict[str, Any]) -> Iterator[list[str]]:
    """Yield the keys of every entry of a dictionary, and of those within it."""
    for key, value in content.items():
        yield [key]
        if isinstance(value, dict):
            yield from ([key, *inner] for inner in places(value))


def with_value(content: dict[str, Any], place: list[str], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(content)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    changed.pop("checksum", None)  # as for a file that was changed by hand
    return changed


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["diffusion", "classifier", "upsampler"])
def test_every_entry_with_any_value_loads_or_is_refused(kind, tiny_model, tiny_classifier, tiny_upsampler, tmp_path):
    """In one line that names the file or the value, and quickly: no entry makes the computer build a huge network."""
    part = {"diffusion": tiny_model, "classifier": tiny_classifier, "upsampler": tiny_upsampler}[kind]
    part.save(tmp_path / "part")
    path = tmp_path / "part" / "config.json"
    content = json.loads(path.read_text())
    outcomes = {"loaded": 0, "refused": 0}
    for place in places(content):
        for value in VALUES:
            path.write_text(json.dumps(with_value(content, place, value)))
            start = time.process_time()
            try:
                type(part).load(tmp_path / "part")
                outcomes["loaded"] += 1
            except ValueError as error:
                outcomes["refused"] += 1
                assert str(error).strip() and "\n" not in str(error), (place, value)
            assert time.process_time() - start < 5, (place, value)
    assert outcomes["refused"] > 3 * outcomes["loaded"] > 0


@pytest.mark.parametrize(
    "place, value, message",
    [
        (["network", "channels"], "32", "network.channels: Expected `int`, got `str`"),
        (["network", "channels"], None, "network.channels: Expected `int`, got `null`"),
        (["network", "channel_mult"], [1, "a"], "network.channel_mult[1]: Expected `float`, got `str`"),
        (["network", "chanels"], 32, "network has an unknown entry 'chanels'"),
        (["network", "num_res_blocks"], 10**9, "num_res_blocks must be at least 1 and at most 64, got 1000000000"),
        (["network", "dropout"], 1.5, "dropout must be at least 0 and at most 0.999, got 1.5"),
        (
            ["diffusion", "predict"],
            "noise",
            "diffusion.predict: Invalid enum value 'noise', must be one of 'eps', 'x0', 'v'",
        ),
        (["diffusion", "diffusion_steps"], 10**9, "at most 1,000,000 steps, got 1000000000"),
        (["labels"], 10**9, "labels: Expected `int` <= 10000000"),
        (["labels"], ["a", 1], "labels[1]: Expected `str`, got `int`"),
        (["training"], [], "training: Expected `object`, got `array`"),
        (["version"], True, "has version True"),
        (["sha256"], "0" * 63, "sha256: Expected `str` matching"),
    ],
)
def test_the_entry_and_what_is_allowed_are_named(tiny_model, tmp_path, place, value, message):
    tiny_model.save(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(with_value(json.loads(path.read_text()), place, value)))
    with pytest.raises(ValueError) as refusal:
        admg.load(tmp_path / "model")
    assert message in str(refusal.value)


def test_files_that_are_no_config(capsys, tiny_model, tmp_path):
    tiny_model.save(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    for text in ("[" * 100_000, '{"a":' * 100_000, "", "null", "[]", "1", '"admg"', '{"format": "admg"}', "\x00\x01"):
        path.write_text(text)
        with pytest.raises(CheckpointError, match="config"):
            native.read_about(tmp_path / "model")
        assert "config" in refused(capsys, "info", tmp_path / "model")
    with path.open("wb") as file:
        file.truncate(100 << 20)  # sparse
    assert "more than 64 MiB" in refused(capsys, "sample", "--model", tmp_path / "model", "--out", tmp_path / "out")
