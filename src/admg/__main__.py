"""`python -m admg`: the same as the command `admg`."""

import sys

from admg.cli.main import main

sys.exit(main())
