"""Every block of code in the README and the documentation runs, page by page, on small settings."""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
import warnings
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import doc_blocks
import pytest
from doc_blocks import ROOT, Block
from doc_stand_ins import StandIns

import admg
from admg import config
from admg.cli import demo
from admg.cli.main import COMMANDS, main

PAGES = [page for page in doc_blocks.pages() if any(doc_blocks.blocks(page))]
SLOW = (
    "README.md", "docs/ecosystem.md", "docs/emoji.md", "docs/evaluation.md", "docs/from-guided-diffusion.md",
    "docs/guides.md", "docs/inverse-problems.md", "docs/openai.md", "docs/own-images.md", "docs/report.md",
    "docs/training.md",
)  # fmt: skip
"""Pages whose blocks take long."""


@pytest.fixture
def folder(tmp_path_factory, tmp_path, monkeypatch):
    """An empty current directory and stand-ins for what the pages name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADMG_HOME", str(tmp_path_factory.getbasetemp() / "admg-home"))
    monkeypatch.setenv("ADMG_OFFLINE", "1")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(demo, "SCALES", [0.0, 4.0])
    monkeypatch.setattr(demo, "Recipe", partial(demo.Recipe, steps=2))

    def few(model, labels, **options):
        return admg.sample(model, labels[::8], **options | {"steps": 2})

    names = {name: getattr(admg, name) for name in admg.__all__}
    monkeypatch.setattr(demo, "admg", SimpleNamespace(**names | {"sample": few}))
    return StandIns(tmp_path_factory.getbasetemp() / "stand-ins")


@pytest.mark.thorough
@pytest.mark.parametrize("page", [pytest.param(p, marks=pytest.mark.slow if p in SLOW else ()) for p in PAGES])
def test_the_blocks_of_a_page_run(page, folder, capsys, monkeypatch):
    module = ModuleType("page")  # dataclasses look for it among the modules
    monkeypatch.setitem(sys.modules, "page", module)
    scope = vars(module)
    for block in doc_blocks.blocks(page):
        if block.language == "python":
            run_python(block, folder, scope)
        else:
            for command in block.commands():
                run_command(block, command, folder, capsys)


def run_python(block: Block, folder: StandIns, scope: dict[str, object]) -> None:
    """Run a block of Python in the scope of its page; a block with a title is also a file of that name."""
    if block.file:
        Path(block.file).write_text(block.code, encoding="utf-8")
    code = folder.fitted_python(block.code)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile("\n" * (block.line - 1) + code, block.page, "exec"), scope)


def run_command(block: Block, command: str, folder: StandIns, capsys) -> None:
    """Run a line of a shell block, or check what can be checked of it."""
    where = f"{block.page}:{block.line}: {command}"
    if doc_blocks.reason(command) is not None:
        check(command, where)
        return
    words = doc_blocks.words(command)
    assert words[0] == "admg", f"{where}: neither run nor named in NOT_RUN"
    words, redirection = (words[: words.index(">")], words[-1]) if ">" in words else (words, None)
    fitted = folder.fitted(words[1:]) if len(words) > 2 else words[1:]
    try:
        code = main(fitted)
    except SystemExit as end:
        code = int(end.code or 0)
    out, err = capsys.readouterr()
    if redirection is not None:
        Path(redirection).write_text(out, encoding="utf-8")
    assert code == 0, f"{where}\nadmg {' '.join(fitted)}\n{out[-500:]}\n{err[-2000:]}"


def check(command: str, where: str) -> None:
    """Check a line that is not run: extras, targets, and the options of scripts exist."""
    for extras in re.findall(r"\.\[([\w,]+)\]|admg\[([\w,]+)\]", command):
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert {name for extra in extras if extra for name in extra.split(",")} <= set(known), where
    if target := re.match(r"make (\S+)", command):
        assert re.search(rf"^{target[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), where
    if script := re.match(r"python ((?:benchmarks|tools)/\S+)", command):
        text = "".join(path.read_text(encoding="utf-8") for path in {(ROOT / script[1]), *ROOT.glob("benchmarks/*.py")})
        for option in re.findall(r" --([a-z-]+)", command.split("#")[0]):
            assert re.search(rf"\b{option.replace('-', '[-_]')}\b", text), f"{where}: --{option}"


def test_every_fence_names_its_language():
    for page in doc_blocks.pages():
        list(doc_blocks.blocks(page))


def test_the_numbers_of_blocks(capsys):
    """They are printed by pytest -s and by `make docs`."""
    text = doc_blocks.count()
    print(text)
    found = [block for page in doc_blocks.pages() for block in doc_blocks.blocks(page)]
    assert text.startswith(f"{len(found)} blocks")
    assert sum(block.language == "python" for block in found) > 20


def test_every_option_that_a_page_names_exists():
    """In the text; blocks are run. Options with underscores are those of guided-diffusion."""
    known = {"--config", "--print-config", "--offline", "--help", "--version", "--threads"}
    for command in COMMANDS:
        module = importlib.import_module(f"admg.cli.{command.replace('-', '_').replace(' ', '_')}")
        known |= {f"--{option.name.replace('_', '-')}" for option in config.options(module.Options)}
    others = {"--nproc-per-node", "--kill-on-bad-exit", "--signal", "--exclude"}  # of torchrun, srun, SLURM, auditwheel
    found = 0
    for page in doc_blocks.pages():
        text = re.sub(
            r"^\s*```.*?^\s*```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
        )
        text = re.sub(r"^\| [^|]*\|", "", text, flags=re.MULTILINE) if page == "docs/from-edm2.md" else text
        for code in re.findall(r"`([^`\n]+)`", text):
            for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", code):
                ours = option in known | others or option.replace("--no-", "--") in known or "_" in option
                files = [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "tests" / "reliability").glob("*.py")]
                scripts = (path.read_text(encoding="utf-8") for path in files)
                assert ours or any(f'"{option}"' in script for script in scripts), f"{page}: {option}"
                found += 1
    assert found > 200


def test_the_page_for_users_of_guided_diffusion_has_every_script_and_every_flag_of_sampling():
    page = (ROOT / "docs" / "from-guided-diffusion.md").read_text(encoding="utf-8")
    for script in ("image_train", "classifier_train", "super_res_train", "image_sample", "classifier_sample",
                   "super_res_sample", "image_nll", "evaluations/evaluator"):  # fmt: skip
        assert f"`{script}.py`" in page
    for flag in (
        "model_path", "classifier_path", "classifier_scale", "num_samples", "batch_size", "use_ddim", "use_fp16",
        "timestep_respacing", "clip_denoised", "class_cond", "base_samples", "classifier_use_fp16",
    ):  # fmt: skip
        assert re.search(rf"^\|[^|]*`{flag}`", page, re.MULTILINE), flag


def test_every_extra_is_on_the_page_about_the_installation():
    page = (ROOT / "docs" / "installation.md").read_text(encoding="utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert {extra for extra in extras if f'".[{extra}]"' not in page} == set()
