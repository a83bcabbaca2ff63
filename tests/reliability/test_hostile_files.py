"""Changed files of every kind: a command does its work or refuses with one line; no code of the file runs."""

from __future__ import annotations

import os
from dataclasses import replace

import corpus
import hostile
import pytest
import sandbox

NUM = int(os.environ.get("HOSTILE_FILES", 2000))
QUICK = (
    "config.json of a model",
    ".npz of images",
    "IDX images",
    "images",
    "zip of images",
    "tar of images",
    "dataset.json",
)


@pytest.fixture(scope="module", autouse=True)
def preloaded() -> None:
    sandbox.preload(networks=False)


def check(found) -> None:
    wrong = [f"{t.kind}: {t.problems}: {' '.join(t.result.argv)}: {t.result.err[-300:]}" for t in found if t.problems]
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_hostile_files_are_read_or_refused(tmp_path):
    """See hostile.py, whose options choose other seeds and keep the files that go wrong."""
    corpus.build(tmp_path / "trial")
    (tmp_path / "trial").rename(tmp_path / "base")
    check(hostile.trials(NUM, 0, tmp_path / "base", tmp_path, coverage=True))


@pytest.mark.thorough
@pytest.mark.parametrize("name", QUICK)
def test_some_hostile_files_are_read_or_refused(name, tmp_path, monkeypatch):
    corpus.write_files(tmp_path / "base")
    kind = next(kind for kind in corpus.KINDS if kind.name == name)
    cheap = [command for command in kind.commands if command[0] in ("info", "data")]
    monkeypatch.setattr(hostile, "KINDS", [replace(kind, commands=cheap)])
    check(hostile.trials(14, 1, tmp_path / "base", tmp_path))


@pytest.mark.thorough
def test_the_sandbox_sees_what_goes_wrong(tmp_path, monkeypatch):
    """A command that writes a canary, raises, prints control characters, hangs or takes memory is reported."""
    from admg.cli import info

    monkeypatch.setattr(sandbox, "MAX_SECONDS", 2)
    wrong = {
        "code ran": lambda options: (tmp_path / sandbox.CANARY).touch(),
        "unforeseen: KeyError": lambda options: {}["x"],
        "control characters": lambda options: os.write(1, b"\x1b[31m"),
        "not one line": lambda options: (os.write(2, b"admg info: note\n"), int("x")),
        "hangs": lambda options: __import__("time").sleep(60),
        "exit code -9": lambda options: os.kill(os.getpid(), 9),
        "a warning of Python": lambda options: os.write(2, b"x.py:1: RuntimeWarning: x\n"),
    }
    for problem, run in wrong.items():
        monkeypatch.setattr(info, "run", run)
        found = sandbox.problems(sandbox.run(["info", "x"], tmp_path), tmp_path)
        assert any(problem in text for text in found), (problem, found)
        (tmp_path / sandbox.CANARY).unlink(missing_ok=True)
    monkeypatch.setattr(info, "run", lambda options: None)
    assert sandbox.problems(sandbox.run(["info", "x"], tmp_path), tmp_path) == []
    monkeypatch.setattr(sandbox, "MEMORY", 1)
    assert "GiB" in sandbox.problems(sandbox.run(["info", "x"], tmp_path), tmp_path)[0]
