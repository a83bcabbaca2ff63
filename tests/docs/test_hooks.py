"""What tools/site/ does to pages: links, code from the source, formulas and docstrings."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from mkdocs.exceptions import PluginError

ROOT = Path(__file__).parents[2]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"site_{name}", ROOT / "tools" / "site" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hooks, docstrings = load("hooks"), load("docstrings")


def test_links_to_files_of_the_repository_become_links_to_pages():
    pages = {"src/admg/samplers/ddpm.py": "source/src/admg/samplers/ddpm.py.md", "ARCHITECTURE.md": "architecture.md"}
    link = hooks.site_link
    assert (
        link("../src/admg/samplers/ddpm.py", "docs/paper.md", "paper.md", pages) == pages["src/admg/samplers/ddpm.py"]
    )
    assert link("docs/guidance.md", "README.md", "source/README.md", pages) == "../guidance.md"
    assert link("ARCHITECTURE.md", "CONTRIBUTING.md", "contributing.md", pages) == "architecture.md"
    assert link("https://arxiv.org/abs/2105.05233", "docs/paper.md", "paper.md", pages).startswith("https")


def test_links_in_code_are_not_links():
    page = "[a](../src/admg/files.py)\n```python\nx = [1](../README.md)\n```\n[b](nowhere.md)"
    assert hooks.linked(page, "docs/x.md") == ["src/admg/files.py"]


def test_an_excerpt_is_dedented_source_and_fails_when_the_source_changes():
    text = hooks.excerpt("src/admg/samplers/ddpm.py", "p, g = guided.predict", "# Algorithm 1")
    assert text.splitlines()[0] == "p, g = guided.predict(x, i)"
    assert text.splitlines()[-1] == "mean = p.mean if g is None else p.mean + p.variance * g  # Algorithm 1"
    for first, last in (("no such line", "yield"), ("p, g = guided.predict", "no such line")):
        with pytest.raises(PluginError, match=r"ddpm\.py has no lines"):
            hooks.excerpt("src/admg/samplers/ddpm.py", first, last)


def test_formulas_are_mathml():
    text = hooks.on_page_content(r'<span class="arithmatex">\(\sqrt{x} &lt; 1\)</span>', None, None, None)
    assert text.startswith("<math") and "<msqrt><mrow><mi>x</mi></mrow></msqrt>" in text and "&#x0003C;" in text


def test_fields_and_examples_of_a_docstring():
    text = "Do it: now.\n\nx_T: noise of x_t,\n    standard normal\na, b: `x_0` and x_0\n\nRaises.\n\n>>> f(1)\n2\n"
    assert docstrings.as_markdown(text) == (
        "Do it: now.\n\n\n- `x_T`: noise of x\\_t,\n  standard normal\n- `a`, `b`: `x_0` and x\\_0\n\n"
        "Raises.\n\n\n```pycon\n>>> f(1)\n2\n```"
    )
