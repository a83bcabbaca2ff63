"""What MkDocs does beyond Markdown: links to files of the repository, code in pages, formulas, help of commands.

The pages in docs/ are also read in the repository, where they link to files outside of docs/. Such a file becomes a
page of the site, so that every link leads somewhere without a network.
"""

from __future__ import annotations

import html
import io
import posixpath
import re
import sys
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
SOURCE = re.compile(r'^!source (?P<path>\S+) "(?P<first>.+?)"(?: to "(?P<last>.+?)")?$', re.MULTILINE)
NAMED = {"architecture.md": "ARCHITECTURE.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
"""Pages of the site that are files of the repository outside of docs/."""
SHIM = "https://unpkg.com/iframe-worker/shim"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the help of all commands, and a page for each file outside of docs/ that a page links to."""
    files.append(File.generated(config, "commands.md", content=commands_page()))
    origins = {file.src_uri: f"docs/{file.src_uri}" for file in files.documentation_pages()} | NAMED
    origins.pop("commands.md")
    todo, done = list(origins.items()), {origin: uri for uri, origin in origins.items()}
    for uri, origin in NAMED.items():
        files.append(File.generated(config, uri, content=read(origin)))
    while todo:
        _, origin = todo.pop()
        for target in linked(read(origin), origin):
            if target in done or target.startswith("docs/"):
                continue
            done[target] = f"source/{target}" + ("" if target.endswith(".md") else ".md")
            if (ROOT / target).suffix in (".png", ".csv"):
                done[target] = f"source/{target}"
                files.append(File.generated(config, done[target], abs_src_path=str(ROOT / target)))
                continue
            files.append(File.generated(config, done[target], content=source_page(target)))
            if target.endswith(".md"):
                todo.append((done[target], target))
    config.extra["pages"] = done
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Resolve links to files of the repository, and include source code."""
    pages: dict[str, str] = config.extra["pages"]
    here = page.file.src_uri
    origin = next((origin for origin, uri in pages.items() if uri == here), None)
    if origin is not None and origin.endswith(".md"):
        markdown = LINK.sub(lambda m: m[1] + site_link(m[2], origin, here, pages) + (m[3] or "") + m[4], markdown)
    markdown = markdown.replace("<details>", '<details markdown="1">')
    return SOURCE.sub(lambda m: excerpt(m["path"], m["first"], m["last"] or m["first"]), markdown)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn formulas into MathML, which browsers draw without scripts and fonts of ours."""
    block = re.compile(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', re.DOTALL)
    inline = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
    content = block.sub(lambda m: f'<div class="formula">{mathml(m[1], "block")}</div>', content)
    return inline.sub(lambda m: mathml(m[1], "inline"), content)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Take the one script that the theme loads from elsewhere from docs/assets."""
    here = posixpath.dirname(page.file.dest_uri) or "."
    return output.replace(SHIM, posixpath.relpath("assets/iframe-worker.js", here))


def on_post_template(output_content: str, template_name: str, config: MkDocsConfig) -> str:
    """Do the same for 404.html."""
    return output_content.replace(SHIM, "/assets/iframe-worker.js")


# -- links -----------------------------------------------------------------------------------------------------------


def linked(markdown: str, origin: str) -> list[str]:
    """Return the paths in the repository that a page links to, those that exist."""
    targets = [m[2] for m in LINK.finditer(without_code(markdown)) if "://" not in m[2]]
    paths = [posixpath.normpath(posixpath.join(posixpath.dirname(origin), target)) for target in targets]
    return [path for path in paths if not path.startswith("..") and (ROOT / path).exists()]


def site_link(target: str, origin: str, here: str, pages: dict[str, str]) -> str:
    """Return a link of a page, written for the repository, as it is written on the site."""
    if "://" in target or target.startswith("mailto:"):
        return target
    path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
    uri = pages.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
    return target if uri is None else posixpath.relpath(uri, posixpath.dirname(here) or ".")


def without_code(markdown: str) -> str:
    """Return a page without its blocks of code, which may look like links."""
    return re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)


# -- pages that are made ---------------------------------------------------------------------------------------------


def read(path: str) -> str:
    """Return the text of a file of the repository."""
    return (ROOT / path).read_text(encoding="utf-8")


def source_page(path: str) -> str:
    """Return a page that shows a file or the names in a folder."""
    file = ROOT / path
    if path.endswith(".md"):
        return read(path)
    search = "---\nsearch:\n  exclude: true\n---\n\n"
    if file.is_dir():
        names = sorted(f"{p.name}/" if p.is_dir() else p.name for p in file.iterdir() if p.name[0] not in "._")
        return f"{search}# {path}/\n\n" + "".join(f"- `{name}`\n" for name in names)
    language = {".py": "python", ".toml": "toml", ".c": "c"}.get(file.suffix, "text")
    return f"{search}# {path}\n\n````{language}\n{read(path).rstrip()}\n````\n"


def commands_page() -> str:
    """Return the page with the help of every command."""
    sys.path.insert(0, str(ROOT / "src"))
    from admg.cli.main import COMMANDS

    pages = ["# Commands\n\nWhat `admg COMMAND --help` prints.\n"]
    for name, purpose in COMMANDS.items():
        pages.append(f"## admg {name}\n\n{purpose[0].upper()}{purpose[1:]}.\n\n````text\n{help_of(name)}\n````\n")
    return "\n".join(pages)


def help_of(command: str) -> str:
    """Return the help of a command."""
    from admg.cli.main import main

    with redirect_stdout(io.StringIO()) as out, suppress(SystemExit):
        main([*command.split(), "--help"])
    return out.getvalue().rstrip()


# -- code and formulas -----------------------------------------------------------------------------------------------


def excerpt(path: str, first: str, last: str) -> str:
    """Return the lines of a file from the one that contains `first` to the next that contains `last`, dedented.

    Raises PluginError if there are none, so that a page cannot show code that is gone.
    """
    lines = read(path).splitlines()
    begin = next((i for i, line in enumerate(lines) if first in line), None)
    end = None if begin is None else next((i for i in range(begin, len(lines)) if last in lines[i]), None)
    if begin is None or end is None:
        raise PluginError(f"{path} has no lines from {first!r} to {last!r}")
    indent = len(lines[begin]) - len(lines[begin].lstrip())
    return "\n".join(line[indent:] for line in lines[begin : end + 1])


def mathml(formula: str, display: Any) -> str:
    """Return a formula in LaTeX as MathML."""
    return convert(html.unescape(formula).strip().replace("\\log ", "\\log\\, "), display=display)
