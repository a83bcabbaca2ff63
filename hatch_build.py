"""Build hook that compiles the C kernels when admg is built from source. Without a C compiler they are left out."""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = "src/admg/engine/cpu"


class KernelsHook(BuildHookInterface):
    """Compile the C kernels and add them to the wheel, which is then specific to the platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        spec = importlib.util.spec_from_file_location("build_kernels", Path(self.root, NATIVE, "build.py"))
        assert spec is not None and spec.loader is not None
        kernels = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(kernels)
        try:
            built = list(kernels.build())
        except OSError as error:
            self.app.display_warning(f"admg is installed without its C kernels and runs slower on CPUs: {error}")
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
        build_data["artifacts"] += [f"/{path.relative_to(self.root)}" for path in built]
