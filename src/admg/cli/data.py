"""`admg data`: commands for data sets."""

from __future__ import annotations

from dataclasses import dataclass

EXAMPLES = """  admg data info photos
  admg data pack photos --image-size 64 --out photos-64.zip
  admg train --data photos-64.zip --image-size 64 --out runs/photos"""

TEXT = f"""Inspect data sets, and pack them for training.

commands (admg data COMMAND --help lists the options):
  info    show the contents of a data set: images, sizes, classes, damaged files
  pack    write a data set, resized once, as the zip of EDM's dataset tool

examples:
{EXAMPLES}"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Inspect data sets (admg data info), and pack them for training (admg data pack)."""


def run(options: Options) -> None:
    print(TEXT)
