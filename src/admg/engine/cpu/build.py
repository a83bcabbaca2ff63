"""Compile the kernels of this folder. It runs while admg is installed, before its dependencies are available."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
FLAGS = "-std=gnu11 -O3 -fPIC -shared -fopenmp -fno-math-errno -fno-trapping-math -fno-signed-zeros -ffp-contract=fast"
CAPABILITIES = {
    "AVX2": "-mavx2 -mfma -mtune=haswell",
    "AVX512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mprefer-vector-width=512 -mtune=skylake-avx512",
}
"""Name of a processor's capability, as torch.backends.cpu.get_cpu_capability() returns it -> compiler flags."""
SOURCE = "ADMG_SOURCE"
"""Macro that holds the digest of the sources that a library was built from."""


def sources() -> list[Path]:
    return sorted(HERE.glob("*.c"))


def digest() -> str:
    """Return a digest of the sources, which identifies the libraries that were built from them."""
    content = b"".join(path.read_bytes() for path in [*sorted(HERE.glob("*.h")), *sources()])
    return hashlib.sha256(content + FLAGS.encode() + repr(CAPABILITIES).encode()).hexdigest()[:16]


def library(capability: str) -> Path:
    return HERE / f"kernels-{capability.lower()}.so"


def compiler() -> list[str] | None:
    """Return the command of the C compiler, $CC or cc, or None if there is none."""
    command = shlex.split(os.environ.get("CC", "")) or ["cc"]
    return command if shutil.which(command[0]) else None


def build(portable: bool = False) -> Iterator[Path]:
    """Build the libraries and yield their paths. Raises OSError, with the reason, if none can be built here.

    portable: Do not name libgomp as a dependency, for wheels: the functions of OpenMP are found in the library that
        torch has loaded. Needs GCC.
    """
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        raise OSError("the kernels are for Linux on x86-64")
    command = compiler()
    if command is None:
        raise OSError("there is no C compiler (cc or $CC)")
    for capability, flags in CAPABILITIES.items():
        with tempfile.TemporaryDirectory(dir=HERE) as folder:
            line = [*command, *FLAGS.split(), *flags.split(), f'-D{SOURCE}="{digest()}"']
            result = Path(folder, "kernels.so")
            if portable:
                _run([*line, "-c", *map(str, sources())], folder)
                _run(
                    [*command, "-shared", "-o", str(result), *map(str, sorted(Path(folder).glob("*.o"))), "-lm"], folder
                )
            else:
                _run([*line, "-o", str(result), *map(str, sources()), "-lm"], folder)
            os.replace(result, library(capability))
        yield library(capability)


def _run(command: list[str], folder: str) -> None:
    """Run a compiler in a folder. Raises OSError with the first line of its output if it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise OSError(": ".join([f"{command[0]} failed", *said[:1]]))
