"""The options of `admg studio`."""

from __future__ import annotations

from admg.cli.main import main


def test_bad_options_of_the_command(capsys, tmp_path):
    for options, message in (
        (["--port", "0"], "port must be at least 1 and at most 65,535"),
        (["--data", str(tmp_path)], "--data requires --runs"),
        (["--runs", str(tmp_path / "none")], "is not a folder"),
        (["--models", "fashion-mnits"], "unknown model 'fashion-mnits'"),
        (["--max-images", "0"], "--max-images must be at least 1 and at most 1,000, got 0"),
    ):
        try:
            code = main(["studio", *options])
        except SystemExit as stopped:
            code = stopped.code
        assert code == 2
        assert message in capsys.readouterr().err
