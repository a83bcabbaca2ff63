"""The command-line framework: options from dataclasses, configuration files, suggestions, one-line errors."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
from helpers import admg, run
from PIL import Image

from admg import config
from admg.cli import main as cli
from admg.cli.names_elsewhere import NAMES_ELSEWHERE
from admg.cli.options import with_options


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Sampling.

    steps: Number of steps
    guide: Guide, by name
    """

    steps: int = config.setting(25, min=1)
    guide: tuple[str, ...] = config.setting((), repeat=True)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Do something. This is the description, 100 % of it.

    source: Where to read
    sizes: Pixels of the side
    kind: Kind of thing
    fast: Whether to hurry
    flags: Other flags
    """

    source: str = config.setting(positional=True)
    sizes: tuple[int, ...] = (8, 16)
    kind: Literal["ddim", "ddpm"] = "ddim"
    fast: bool | None = None
    flags: str = config.setting("", dashes=True)
    sampler: Sampler = config.group(Sampler)

    def __post_init__(self) -> None:
        config.check(self)
        config.check(self.sampler)
        if self.kind == "ddpm" and self.fast:
            raise ValueError("fast is for kind ddim")


@pytest.fixture
def command(monkeypatch) -> list[Options]:
    """The options that the command `demo`, replaced by one of the module here, is run with."""
    module: Any = ModuleType("admg.cli.demo")
    seen: list[Options] = []
    module.Options, module.EXAMPLES, module.run = Options, "  admg demo here", seen.append
    monkeypatch.setitem(sys.modules, "admg.cli.demo", module)
    return seen


def test_options_of_every_type(capsys, command):
    text = "demo here --sizes 4,5 --kind ddpm --no-fast --flags --image_size=64 --steps 3 --guide a --guide=b,c"
    words = text.split()
    assert run(capsys, *words)[0] == 0
    sampler = Sampler(steps=3, guide=("a", "b,c"))
    expected = Options(source="here", sizes=(4, 5), kind="ddpm", fast=False, flags="--image_size=64", sampler=sampler)
    assert command == [expected]
    assert run(capsys, "demo", "here")[0] == 0 and command[1] == Options(source="here")


def test_help_explains_defaults_ranges_and_shows_examples(capsys, command):
    code, out, _ = run(capsys, "demo", "--help")
    text = " ".join(out.split())
    assert code == 0 and not command
    for part in ("This is the description, 100 % of it.", "Number of steps (at least 1; default: 25)",
                 "Guide, by name (may be repeated)", "(default: 8,16)", "Where to read (required)",
                 "examples: admg demo here"):  # fmt: skip
        assert part in text, part


def test_the_command_line_takes_precedence_over_the_file(capsys, command, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('source = "there"\nsizes = [1, 2]\nfast = true\n[sampling]\nsteps = 7\nguide = ["x", "y,z"]\n')
    assert run(capsys, "demo", "--config", file, "--steps", 9, "--guide", "q")[0] == 0
    sampler = Sampler(steps=9, guide=("q",))
    assert command == [Options(source="there", sizes=(1, 2), fast=True, sampler=sampler)]


def test_every_name_elsewhere_stands_for_an_option():
    modules = [
        importlib.import_module(f"admg.cli.{name}") for name in ("sample", "upsample", "train", "train_classifier")
    ]
    ours = {f"--{option.name.replace('_', '-')}" for module in modules for option in config.options(module.Options)}
    assert not [other for other, here in NAMES_ELSEWHERE.items() if not ours.issuperset(here.split())]


def test_a_printed_configuration_gives_the_same_options(capsys, command, tmp_path):
    words = ["demo", "here", "--sizes", "3", "--guide", "a=1,b", "--guide", "c", "--kind", "ddpm"]
    assert run(capsys, *words)[0] == 0
    code, out, _ = run(capsys, *words, "--print-config")
    file = tmp_path / "run.toml"
    file.write_text(out)
    assert code == 0 and run(capsys, "demo", "--config", file)[0] == 0
    assert len(command) == 2 and command[0] == command[1]


@pytest.mark.parametrize(
    "words, line",
    [
        (["demo"], "admg demo: error: SOURCE is required"),
        (["demo", "x", "--steps", "0"], "admg demo: error: --steps must be at least 1, got 0"),
        (["demo", "x", "--steps", "many"], "invalid int value: 'many'"),
        (["demo", "x", "--stepps", "3"], "unknown option '--stepps': did you mean '--steps'?"),
        (["sample", "--num_samples", "3"], "unknown option '--num_samples': here it is '--num'"),
        (["sample", "--class-cond=False"], "unknown option '--class-cond': here it is '--unconditional'"),
        (["train", "--class-cond=False"], "unknown option '--class-cond': here it is '--unlabelled'"),
        (["demo", "x", "y"], "unknown argument 'y'"),
        (["demo", "x", "--kind", "ddin"], "'ddin' is not one of ddim, ddpm: did you mean 'ddim'?"),
        (["demo", "x", "--kind", "ddpm", "--fast"], "admg demo: error: --fast is for kind ddim"),
        (["demo", "x", "--config", "missing.toml"], "No such file or directory: missing.toml"),
        (["demo", ""], "argument SOURCE: must not be empty"),
        (["demo", "x", "--guide", " "], "argument --guide: must not be empty"),
        (["demo", "x", "--config", "/dev/zero"], "/dev/zero has more than 1 MiB, so it is not a file of options"),
        (["dem"], "admg: error: unknown command 'dem': did you mean 'demo'?"),
        (["--versoin"], "unknown option '--versoin': did you mean '--version'?"),
    ],
)
def test_bad_input_is_one_line_with_a_suggestion(capsys, command, words, line):
    code, _, err = run(capsys, *words)
    assert code == 2 and line in err and len(err.splitlines()) == 1 and not command, err


@pytest.mark.thorough
@pytest.mark.parametrize(
    "content, part",
    [
        ("stpes = 3", "unknown option 'stpes': did you mean 'steps'?"),
        ("steps = 'x'", "--steps: invalid int value: 'x'"),
        ("steps = 0", "--steps must be at least 1"),
        ("kind = 'dddpm'", "did you mean 'ddpm'?"),
        ("steps = ", "is not valid TOML"),
        ("steps = " + "[" * 10_000, "is not valid TOML"),
        ("source = ''", "SOURCE: must not be empty"),
        ("fast = 1", "run.toml: --fast must be true or false, got 1"),
        ("fast = 'yes'", 'run.toml: --fast must be true or false, got "yes"'),
        ("steps = true", "run.toml: --steps must be a value, got true"),
        ("kind = false", "run.toml: --kind must be a value, got false"),
    ],
)
def test_bad_files_are_named(capsys, command, tmp_path, content, part):
    file = tmp_path / "run.toml"
    file.write_text(content)
    code, _, err = run(capsys, "demo", "x", "--config", file)
    assert code == 2 and part in err and len(err.splitlines()) == 1 and not command
    assert "steps = 0" in content or "run.toml" in err


def test_admg_alone_says_what_to_do_first(capsys):
    code, out, _ = run(capsys)
    assert code == 0 and "admg demo" in out and "admg --help" in out
    code, out, _ = run(capsys, "--help")
    assert code == 0 and all(name in out for name in cli.COMMANDS)


@pytest.mark.process
def test_an_unforeseen_error_is_one_line_and_a_report(capsys, monkeypatch):
    def fail(options):
        raise KeyError("nobody\nexpects this")

    monkeypatch.setattr("admg.cli.models.run", fail)
    code, out, err = run(capsys, "models")
    assert code == 1 and not out and err.count("\n") == 1
    assert err.startswith("admg models: this is a bug in admg, not in your input: KeyError: ")
    report = Path(err.split("report it with ")[1].strip())
    text = report.read_text()
    report.unlink()
    assert "Traceback" in text and 'raise KeyError("nobody' in text and "\nmodels\n" in text
    monkeypatch.setenv("ADMG_TRACEBACK", "1")
    with pytest.raises(KeyError):
        run(capsys, "models")


@pytest.mark.thorough
def test_python_m_admg():
    import subprocess

    result = subprocess.run([sys.executable, "-m", "admg", "--version"], capture_output=True, text=True)
    assert result.stdout.startswith("admg 0.") and result.returncode == 0
    assert admg("--version").stdout == result.stdout


def test_a_completion_script_knows_commands_and_options(capsys):
    code, out, _ = run(capsys, "completion", "bash")
    assert code == 0 and "train-classifier" in out and "--steps" in out


def test_control_characters_in_names_never_reach_the_terminal(capsys, tmp_path):
    for name in ("a\x1b[31mred", "b\x07"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "data" / name / "1.png")
        (tmp_path / "data" / name / "broken\x1b[2J.png").write_bytes(b"no image")
    for words in (["info"], ["pack", "--image-size", "8", "--workers", "0", "--out", tmp_path / "a.zip"]):
        code, out, err = run(capsys, "data", words[0], tmp_path / "data", *words[1:])
        assert code == 0 and "\\x1b[" in out + err and not {"\x1b", "\x07"} & set(out + err.replace("\x1b[A", ""))


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("val_images needs val_data or val_fraction", "--val-images needs --val-data or --val-fraction"),
        ("pass labels='none' or labels=\"folders\"", "pass --labels none or --labels folders"),
        ("such as value_range=(0, 255)", "such as --value-range 0,255"),
        ("pass overwrite=True, and unlabelled=False", "pass --overwrite, and no --unlabelled"),
        ("steps must be at least 1, got 0", "--steps must be at least 1, got 0"),
        ("data does not exist", "data does not exist"),  # a folder of this name
        ("labels are numbers", "labels are numbers"),
        ("run/batch_size/a.png is damaged", "run/batch_size/a.png is damaged"),
        ("config.json: network.image_size must be positive", "config.json: network.image_size must be positive"),
        ("the flag --image_size 64", "the flag --image_size 64"),
        ("a column 'image_size'", "a column 'image_size'"),
    ],
)
def test_parameters_in_messages_of_the_library_are_written_as_options(message, expected):
    assert with_options(message, importlib.import_module("admg.cli.train")) == expected
