"""Hooks of the build: the C kernels of a wheel, and the description of the package for an index.

The variable ADMG_WHEEL chooses what a wheel holds: "manylinux" kernels for any Linux on x86-64, "pure" none. Without
it, the kernels are built for this machine, and left out where there is no C compiler.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

NATIVE = "src/admg/engine/cpu"
MANYLINUX = "manylinux2014_x86_64.manylinux_2_17_x86_64"
"""Platform of a wheel that needs glibc 2.17 or newer, under its old and its new name."""


class KernelsHook(BuildHookInterface):
    """Compile the C kernels and add them to the wheel, which is then specific to the platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        wheel = os.environ.get("ADMG_WHEEL", "")
        if wheel not in ("", "pure", "manylinux"):
            raise ValueError(f"ADMG_WHEEL must be pure or manylinux, got {wheel!r}")
        if wheel == "pure":
            return
        spec = importlib.util.spec_from_file_location("build_kernels", Path(self.root, NATIVE, "build.py"))
        assert spec is not None and spec.loader is not None
        kernels = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(kernels)
        try:
            built = list(kernels.build(portable=wheel == "manylinux"))
        except OSError as error:
            if wheel == "manylinux":
                raise
            self.app.display_warning(f"admg is installed without its C kernels and runs slower on CPUs: {error}")
            return
        local = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{MANYLINUX if wheel == 'manylinux' else local}"
        build_data["artifacts"] += [f"/{path.relative_to(self.root)}" for path in built]


class DescriptionHook(MetadataHookInterface):
    """Set the long description and the URLs from the address of the repository, `repository` in pyproject.toml."""

    def update(self, metadata: dict[str, Any]) -> None:
        repository = self.config["repository"].rstrip("/")
        readme = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": described(readme, repository)}
        if repository:
            metadata["urls"] |= {
                "Source": repository,
                "Documentation": f"{repository}/tree/main/docs",
                "Changelog": f"{repository}/blob/main/CHANGELOG.md",
            }


def described(readme: str, repository: str) -> str:
    """Return the README as an index shows it: with absolute links, or without relative links if there is no address."""
    picture = r"!\[([^\]]*)\]\((?!https?://)([^)\s]+)\)"
    link = r"(?<!!)\[([^\]]+)\]\((?!https?://|#)([^)\s]+)\)"
    if not repository:
        return re.sub(link, r"\1", re.sub(picture + r"\n*", "", readme))
    readme = re.sub(picture, rf"![\1]({repository}/raw/main/\2)", readme)
    return re.sub(link, rf"[\1]({repository}/blob/main/\2)", readme)
