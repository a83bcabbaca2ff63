"""A process of `admg train` that ends in the middle: the one of rank sys.argv[2] before step sys.argv[3] (from 0).

sys.argv[1] is how it ends: "error", "kill" or "exit". The other arguments are those of admg.
"""

from __future__ import annotations

import os
import signal
import sys

from admg.cli.main import main
from admg.training import heartbeat
from admg.training.step import Learner

HOW, RANK, STEP = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
take_step = Learner.step


def step(learner: Learner, number: int, drawn: object) -> object:
    if number == STEP and learner.processes.rank == RANK:
        if HOW == "error":
            raise OSError("cannot read cat.png")
        if HOW == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(3)
    return take_step(learner, number, drawn)


heartbeat.HEARTBEAT_SECONDS = 0.5  # the test need not wait as long
Learner.step = step
sys.exit(main(sys.argv[4:]))
