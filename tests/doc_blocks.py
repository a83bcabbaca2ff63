"""The blocks of code on the pages of the documentation, and how tests run them on small settings.

`python tests/doc_blocks.py` prints how many there are, and which of their lines are not run, with the reason.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHELL = ("bash", "sh", "console")
INDENTED = re.compile(r"    (admg|python|torchrun|srun|make|pip)\b(?! [\w-]+: )")
"""The beginning of an indented block of shell commands, and not of what a command prints."""

NOT_RUN = {
    r"pip install": "installs packages; the test compares the extras with pyproject.toml",
    r"make |.*mkdocs ": "builds environments, or runs this test; the test looks for the target",
    r"python3? -m venv|source |cd ": "makes and enters an environment",
    r"python3? -m (pytest|build)": "runs other tests, or builds wheels",
    r"(sudo )?python (benchmarks|tools|tests)/": "takes minutes to hours; the test compares options with the script",
    r"python \$?examples/|for example in ": "run by tests/test_examples.py",
    r"\[ \$\? |#SBATCH|scontrol ": "needs SLURM",
    r".*\b(ATEN_CPU_CAPABILITY|ONEDNN_MAX_CPU_ISA|OMP_NUM_THREADS|TRITON_INTERPRET|FLIPPED_BITS)=": "runs other tests",
    r"python (scripts|evaluations)/": "scripts of guided-diffusion",
    r"admg studio": "serves until it is stopped",
}
"""Beginnings of shell lines that are not run, each with the reason."""


@dataclass(frozen=True)
class Block:
    """A block of code on a page.

    page: path in the repository
    line: number of its first line of code
    language: python or bash
    code: its text, without the indentation that all lines share
    file: name of the file that it shows, or ""
    """

    page: str
    line: int
    language: str
    code: str
    file: str = ""

    def commands(self) -> list[str]:
        """Return the commands of a shell block, without comments; a backslash continues a line."""
        lines = re.sub(r"\\\n\s*", " ", self.code).splitlines()
        return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def pages() -> list[str]:
    """Return the paths of all pages with code."""
    docs = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "api")
    return ["README.md", "CONTRIBUTING.md", *docs]


def blocks(page: str) -> Iterator[Block]:
    """Yield the Python and shell blocks of a page in order. Raises ValueError for a fence without a language."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    i = 0
    while i < len(lines):
        fence = re.match(r'^(\s*)(`{3,})\s*(\w*)(?:.*title="([^"]+)")?', lines[i])
        if fence:
            indent, ticks, language, file = fence.groups()
            end = next(j for j in range(i + 1, len(lines)) if lines[j].strip() == ticks)
            if not language:
                raise ValueError(f"{page}:{i + 1}: say what this block is: ```python, ```bash or ```text")
            code = "\n".join(line.removeprefix(indent) for line in lines[i + 1 : end])
            if language == "python" and not code.startswith("!source "):
                yield Block(page, i + 2, "python", code, file or "")
            elif language in SHELL:
                yield Block(page, i + 2, "bash", code, file or "")
            i = end + 1
        elif i and not lines[i - 1].strip() and INDENTED.match(lines[i]):
            end = next((j for j in range(i, len(lines)) if lines[j].strip() and lines[j][:4] != "    "), len(lines))
            yield Block(page, i + 1, "bash", "\n".join(line[4:] for line in lines[i:end]))
            i = end
        else:
            i += 1


def reason(command: str) -> str | None:
    """Return why a shell line is not run, or None if it is run."""
    return next((why for pattern, why in NOT_RUN.items() if re.match(pattern, command)), None)


def words(command: str) -> list[str]:
    """Return the words of a shell line without its comment, its launcher and its variables."""
    found = shlex.split(command, comments=True)
    starts = [i for i, word in enumerate(found) if word == "admg"]
    return found[starts[0] :] if starts else found


def count() -> str:
    """Return how many blocks there are and are run, and which lines are not run."""
    found = [block for page in pages() for block in blocks(page)]
    python = [block for block in found if block.language == "python"]
    shell = [block for block in found if block.language == "bash"]
    run = [block for block in shell if any(reason(command) is None for command in block.commands())]
    left = [(block, command) for block in shell for command in block.commands() if reason(command) is not None]
    lines = [
        f"{len(found)} blocks on {len(pages())} pages: {len(python) + len(run)} are run ({len(python)} of Python and "
        f"{len(run)} of the {len(shell)} of commands), {len(found) - len(python) - len(run)} are not",
        f"{sum(len(block.commands()) for block in shell)} commands, of which {len(left)} are not run:",
    ]
    for why in NOT_RUN.values():
        commands = [(block, command) for block, command in left if reason(command) == why]
        lines += [f"  {why}:"] if commands else []
        lines += [f"    {block.page}:{block.line} {command[:100]}" for block, command in commands]
    return "\n".join(lines)


if __name__ == "__main__":
    print(count())
