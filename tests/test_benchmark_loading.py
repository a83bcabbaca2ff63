"""benchmarks/loading.py: the plain loader reads the same images, and the table has a row for each kind of data set."""

from __future__ import annotations

import re
from pathlib import Path

import loading
import pytest
import torch

from admg.data import open as open_dataset


def test_the_plain_loader_reads_the_same_images(tmp_path):
    loading.make_photographs(tmp_path, 4)
    dataset = open_dataset(tmp_path, 40, labels="none")
    plain = loading.Plain(list(map(Path, dataset.images)), 40)
    assert len(plain) == 4
    for i in range(4):
        assert torch.equal(plain[i][0], dataset[i][0])


@pytest.mark.thorough
def test_the_table(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("ADMG_HOME", str(tmp_path))
    loading.main(["--num", "8", "--image-size", "16", "--batch-size", "2", "--rounds", "2", "--workers", "0"])
    lines = capsys.readouterr().out.splitlines()
    assert re.split("  +", lines[0]) == ["images/s", "0 workers"]
    names = [re.split("  +", line)[0] for line in lines[1:]]
    assert [name for name in names if name != "parquet"] == ["plain DataLoader", "folder", "zip", "tar", "packed"]
    assert lines[1].endswith("(1.00x)") and all(re.search(r" \d+ \(\d+\.\d\dx\)$", line) for line in lines[1:])
