"""Downloads are forbidden for one command, and in one thread at a time."""

from __future__ import annotations

import os
import threading

import pytest

from admg.cli import info
from admg.cli.main import main
from admg.offline import VARIABLES, downloads_forbidden, hub_as_allowed, offline


@pytest.fixture(autouse=True)
def allowed(monkeypatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("before", [None, "0"])
def test_the_environment_is_restored(monkeypatch, before):
    if before is not None:
        monkeypatch.setenv("HF_HUB_OFFLINE", before)
    with downloads_forbidden(False):
        assert not offline() and os.environ.get("HF_HUB_OFFLINE") == before
    with pytest.raises(KeyError), downloads_forbidden(True):
        assert offline() and os.environ["HF_HUB_OFFLINE"] == "1"
        raise KeyError
    assert not offline() and os.environ.get("HF_HUB_OFFLINE") == before


@pytest.mark.parametrize("by", ["option", "variable", "nothing"])
def test_a_command_forbids_downloads_while_it_runs(monkeypatch, by):
    seen = []
    monkeypatch.setattr(info, "run", lambda options: seen.append([os.environ.get(name) for name in VARIABLES]))
    if by == "variable":
        monkeypatch.setenv("ADMG_OFFLINE", "1")
    assert main(["info", "fashion-mnist", *(["--offline"] if by == "option" else [])]) == 0
    assert seen == [[None, None] if by == "nothing" else ["1", "1"]]
    assert os.environ.get("HF_HUB_OFFLINE") is None and offline() is (by == "variable")


def test_threads_take_turns(monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("ADMG_OFFLINE", "1")
    inside, seen = threading.Event(), []

    def load() -> None:
        with hub_as_allowed():
            seen.append(inside.is_set())

    other = threading.Thread(target=load)
    with hub_as_allowed():
        other.start()
        other.join(0.2)
        assert not seen and constants.HF_HUB_OFFLINE
        inside.set()
    other.join()
    assert seen == [True] and constants.HF_HUB_OFFLINE is False
