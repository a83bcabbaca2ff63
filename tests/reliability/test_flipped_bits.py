"""A flipped bit in any file that is written and read again is noticed, or changes nothing that is read."""

from __future__ import annotations

import os

import corpus
import flips
import numpy as np
import pytest
import sandbox
from helpers import write_npz

from admg.evaluation.features import Activations, extraction

NUM = int(os.environ.get("FLIPPED_BITS", 500))


def missed(found: list[tuple[str, flips.Outcome, object, int]]) -> list[tuple[str, flips.Outcome, object, int]]:
    return [flip for flip in found if flip[1] == "missed"]


@pytest.mark.slow
def test_no_flipped_bit_of_500_is_believed(tmp_path, monkeypatch):
    sandbox.preload()
    corpus.build(tmp_path / "files")
    monkeypatch.setenv("ADMG_HOME", str(tmp_path / "files" / "home"))
    flips.prepare(tmp_path / "files")
    found = list(flips.flips(tmp_path / "files", NUM, 0))
    print(flips.table(found))
    assert not missed(found) and {name for name, *_ in found} == set(flips.KINDS)
    assert sum(outcome == "noticed" for _, outcome, *_ in found) > 0.75 * len(found)


@pytest.mark.thorough
def test_flipped_bits_of_files_that_need_no_command(tmp_path, monkeypatch, tiny_folders):
    """Models, samples, cached features, a packed data set and a download; and a check of the test itself."""
    monkeypatch.setenv("ADMG_HOME", str(tmp_path / "home"))
    corpus.write_files(tmp_path)
    flips.prepare_files(tmp_path)
    (tmp_path / "o").mkdir()
    write_npz(tmp_path / "o" / "samples_24x8x8x1.npz", np.load(tmp_path / "data.npz")["arr_0"], np.arange(24))
    extraction.write(tmp_path / "home" / "features" / "ab" / "c.npz", Activations(np.ones((3, 4), np.float32)))
    names = ("weights of a model", "config.json of a model", "merged samples", "cached features", "packed data set",
             "index of a folder", "download", "record of a download")  # fmt: skip
    found = list(flips.flips(tmp_path, 80, 1, names))
    assert not missed(found) and {name for name, *_ in found} == set(names)
    monkeypatch.setitem(flips.KINDS, "download", flips.Kind("download.bin", lambda path: path.read_bytes()))
    assert len(missed(list(flips.flips(tmp_path, 10, 1, ("download",))))) == 10
