"""Compile the kernels in C anew, after a change of them: python tools/build_kernels.py"""

import sys

from admg.engine.cpu.build import build

try:
    for path in build():
        print(f"built {path}")
except OSError as error:
    sys.exit(f"not built: {error}")
