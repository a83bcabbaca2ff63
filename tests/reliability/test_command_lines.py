"""Bad command lines: exit code 2, one line on stderr that names what is wrong, and nothing written."""

from __future__ import annotations

import command_lines
import pytest
from helpers import run


def check(capsys, folder, lines) -> None:
    for line in lines:
        code, out, err = run(capsys, *line.words)
        assert code == 2 and not out and err.count("\n") == 1 and len(err) < 2000, (line.words, code, err)
        assert not line.named or any(text in err for text in line.named), (line.words, err)
        assert not list(folder.iterdir()), line.words


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADMG_OFFLINE", "1")
    return tmp_path


@pytest.mark.thorough
def test_some_bad_command_lines_are_refused_in_one_line(capsys, folder):
    check(capsys, folder, command_lines.some(150, seed=0))


@pytest.mark.slow
def test_every_bad_command_line_is_refused_in_one_line(capsys, folder):
    lines = command_lines.every()
    assert len(lines) > 5000 and {line.words[0] for line in lines} >= {
        name.split()[0] for name in command_lines.MODULES
    }
    check(capsys, folder, lines)
