"""Options in files and on the command line mean the same, whatever their order, and none is dropped."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import refused, run, succeed

from admg.cli import (
    evaluate,
    interpolate,
    neighbours,
    sample,
    sweep,
    train,
    train_classifier,
    train_upsampler,
    tune_steps,
)
from admg.cli.options import Parser, add_options, parse
from admg.config import options
from admg.models import UNetConfig


def parsed(command, *arguments):
    parser = Parser(prog="admg")
    add_options(parser, command)
    return parse(parser, command, [str(argument) for argument in arguments])[0]


@pytest.mark.parametrize("lines", [
    ['samples = "s.npz"', "num = 5", 'reference = "r.npz"'],
    ['reference = "r.npz"', "num = 5", 'samples = "s.npz"'],
])  # fmt: skip
def test_positional_arguments_of_a_file_are_taken_by_name(tmp_path, lines):
    (tmp_path / "a.toml").write_text("\n".join(lines))
    found = parsed(evaluate, "--config", tmp_path / "a.toml")
    assert (found.samples, found.reference, found.num) == ("s.npz", "r.npz", 5)
    (tmp_path / "b.toml").write_text('reference = "r.npz"')
    found = parsed(evaluate, "s.npz", "--config", tmp_path / "b.toml")
    assert (found.samples, found.reference) == ("s.npz", "r.npz")
    (tmp_path / "c.toml").write_text('training = "t"\nsamples = "s"')
    found = parsed(neighbours, "--config", tmp_path / "c.toml")
    assert (str(found.samples), str(found.training)) == ("s", "t")


@pytest.mark.parametrize("command", [train, train_classifier, train_upsampler])
@pytest.mark.parametrize("more", [[], ["--num-heads", 2], ["--channels", 32, "--dropout", 0.1]])
def test_printed_options_of_a_training_are_the_same_training(tmp_path, capsys, command, more):
    """Fields of the network that are not given are chosen for the data, or are those of the initial model."""
    given = ["--data", "photos", "--out", "run", "--image-size", 32, *more]
    with pytest.raises(SystemExit):
        parsed(command, *given, "--print-config")
    (tmp_path / "printed.toml").write_text(capsys.readouterr().out)
    direct, printed = parsed(command, *given), parsed(command, "--config", tmp_path / "printed.toml")
    assert printed == direct and "# scale_shift_norm = true" in (tmp_path / "printed.toml").read_text()


def test_the_home_folder_is_expanded_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.toml").write_text('data = "photos"\nout = "~/runs/a"')
    assert parsed(train, "--config", tmp_path / "a.toml").out == tmp_path / "runs" / "a"
    assert parsed(sample, "--out=~/samples").out == tmp_path / "samples"


def test_a_number_of_heads_replaces_the_width_of_the_heads_of_a_recipe():
    for more, heads in (([], [3, 6, 9, 12]), (["--num-heads", 6], [6] * 4)):
        found = parsed(train, "--data", "x", "--out", "y", "--recipe", "adm-64", *more)
        network = UNetConfig(**{"head_channels": 0} | found.network | {"image_size": 64})
        assert [network.heads(network.width(level)) for level in range(network.levels)] == heads


def test_an_option_of_a_sampler_is_given_once(capsys):
    line = refused(capsys, "sample", "--eta", 0.5, "--sampler-option", "eta=1", "--out", "unused")
    assert "--eta and --sampler-option eta cannot be combined" in line
    line = refused(capsys, "sample", "--sampler-option", "eta=1", "--sampler-option", "eta=0.5", "--out", "unused")
    assert "sampler option eta=0.5: eta is given twice" in line


@pytest.mark.parametrize(
    ("command", "name", "text"),
    [(interpolate, "sampler", "ddim"), (interpolate, "steps", "100"), (tune_steps, "sampler", "unipc"),
     (sweep, "images", "no")],
)  # fmt: skip
def test_the_help_states_the_defaults_of_the_command(command, name, text):
    assert next(o for o in options(command.Options) if o.name == name).declared.default_text == text


def test_a_path_is_called_one_in_the_help(capsys):
    assert "--out PATH" in succeed(capsys, "export", "--help")


def test_overwriting_a_run_keeps_files_of_others(capsys, tiny_folders, tmp_path):
    out = tmp_path / "out"
    command = ["sample", "--model", tiny_folders["model"], "--label", "two", "--num", 2, "--steps", 1, "--scale", 0]
    succeed(capsys, *command, "--out", out)
    (out / "images" / "best.txt").write_text("000001")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    line = refused(capsys, *command, "--seed", 1, "--overwrite", "--out", out)
    assert "images holds best.txt, which is not a sample: move it, or choose another folder" in line
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    (out / "images" / "best.txt").unlink()
    succeed(capsys, *command, "--seed", 1, "--overwrite", "--out", out)


def test_background_is_no_option_of_averages(capsys, tmp_path):
    """Its comparison does not have one."""
    code, _, err = run(capsys, "ema", "run", "--out", tmp_path / "x", "--reference", "r", "--background", "black")
    assert code == 2 and "unknown option '--background'" in err
    assert not Path(tmp_path / "x").exists()
