"""The documentation site builds strictly: links, anchors and pictures exist, and nothing is loaded from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import admg

pytestmark = pytest.mark.process
ROOT = Path(__file__).parents[2]
PACKAGES = ("guidance", "samplers", "diffusion", "models", "data", "generation", "training", "evaluation", "engine")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return folder


def test_every_link_picture_and_anchor_exists(site):
    """Checked in the HTML, without MkDocs' own checks; links elsewhere by their form."""
    anchors = {
        page: set(re.findall(r'\sid="([^"]+)"', page.read_text(encoding="utf-8"))) for page in site.rglob("*.html")
    }
    count = 0
    for page in anchors:
        content = re.sub(r"<(pre|code)\b.*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for link in re.findall(r'\s(?:href|src)="([^"]*)"', content):
            count += 1
            if re.match(r"https://[\w.-]+(/\S*)?$", link) or page.name == "404.html":
                continue
            assert "://" not in link, f"{page.name}: {link}"
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), f"{page.relative_to(site)}: {link}"
            if anchor and target.suffix == ".html":
                assert anchor in anchors[target], f"{page.relative_to(site)}: {link}"
    assert count > 2000


def test_the_site_needs_no_network(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r'<(script|img|iframe)[^>]*\ssrc="(https?:)?//', text), page
        assert not re.search(r'<link[^>]*rel="stylesheet"[^>]*href="(https?:)?//', text), page


def test_the_python_pages_have_every_public_name_with_its_signature(site):
    text = "".join(page.read_text(encoding="utf-8") for page in (site / "api").glob("*.html"))
    missing = []
    for package in PACKAGES:
        for name in getattr(admg, package).__all__:
            found = re.search(rf'id="admg\.({package}\.(\w+\.)*)?{name}"', text)
            if not found and getattr(vars(getattr(admg, package))[name], "__module__", "").startswith("admg."):
                missing.append(f"{package}.{name}")
    assert missing == []
    assert "&gt;&gt;&gt;" in text and "<blockquote>" not in text  # examples are code
    signature = text[text.index('id="admg.guidance.ClassifierGuidance"') :][:4000]
    assert re.search(r"scale.*Scale.*1\.0", re.sub(r"<[^>]+>", "", signature), re.DOTALL)


def test_formulas_are_drawn_without_scripts(site):
    for page in site.rglob("*.html"):
        assert "arithmatex" not in page.read_text(encoding="utf-8"), page
