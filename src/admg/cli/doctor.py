"""`admg doctor`: capabilities of this installation on this machine, and advice for problems."""

from __future__ import annotations

from dataclasses import dataclass

from admg.config import check, setting
from admg.engine.cpu.build import build
from admg.generation.doctor import examine

EXAMPLES = """  admg doctor
  admg doctor --seconds 0      # without the speed test
  admg doctor --build-kernels  # after a change of the C sources, or in an installation that has none"""
MARKS = {"ok": "ok", "note": "note", "problem": "PROBLEM"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Examine the installation: versions, device, precision, kernels, threads, memory, caches and speed, with advice
    for each problem.

    seconds: length of the speed test; 0 skips it
    build_kernels: compile the kernels for the CPU first, in the folder of the package
    """

    seconds: float = setting(5.0, min=0, max=600)
    build_kernels: bool = False

    def __post_init__(self) -> None:
        check(self)


def run(options: Options) -> None:
    if options.build_kernels:
        for path in build():
            print(f"built {path}")
    problems = 0
    for finding in examine(options.seconds):
        problems += finding.grade == "problem"
        print(f"{MARKS[finding.grade]:8}{finding.what:18}{finding.text}")
        if finding.advice:
            print(f"{'':26}-> {finding.advice}")
    print("no problem found" if not problems else f"{problems} problem{'s' if problems > 1 else ''} found")
