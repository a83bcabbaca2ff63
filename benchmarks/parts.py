"""How much a batch that is divided among the cores gains over threads that share each operation, beside busy processes.

    python benchmarks/parts.py --busy 0,1,2,4

The demo model's forward pass and its classifier's gradient, 16 images in float32. Both ways take turns in each round;
the table shows the median ratio of their times, with the minimum and the maximum.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable

from admg import threads

threads.calm_barriers()  # before torch is imported, as the commands do

import torch  # noqa: E402
from cases import Setting, build  # noqa: E402
from contention import busy  # noqa: E402
from speed import spread  # noqa: E402

from admg.engine import accelerate  # noqa: E402
from admg.guidance.classifier import log_prob_gradient  # noqa: E402

CALLS = 3


def seconds(run: Callable[[], object]) -> float:
    run()
    start = time.perf_counter()
    for _ in range(CALLS):
        run()
    return (time.perf_counter() - start) / CALLS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", default="0,1,2,4", metavar="A,B,...", help="numbers of busy processes")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    case, t = build(Setting("fashion-mnist", batch=16)), torch.tensor([500])
    unet = accelerate(case.model.network, precision="fp32")
    classifier = dataclasses.replace(case.classifier, network=accelerate(case.classifier.network, precision="fp32"))
    parts = {
        "forward": (unet, torch.no_grad()(lambda: unet(case.x, t, case.y))),
        "gradient": (classifier.network, lambda: log_prob_gradient(classifier, case.x, t, case.y)),
    }
    print("| busy processes | forward | gradient |\n| --- | ---: | ---: |")
    for count in map(int, args.busy.split(",")):
        ratios: dict[str, list[float]] = {name: [] for name in parts}
        with busy(count):
            for _ in range(args.rounds):
                for name, (network, run) in parts.items():
                    ratios[name].append(ratio(network, run))
        cells = (spread(values, "{:.2f}") for values in ratios.values())
        print(f"| {count} | {' | '.join(cells)} |", flush=True)


def ratio(network: torch.nn.Module, run: Callable[[], object]) -> float:
    """Return the time of a call with shared operations, divided by that with a divided batch."""
    divided = seconds(run)
    build = vars(network)["_build"]
    call, build.call = build.call, build.network
    try:
        return seconds(run) / divided
    finally:
        build.call = call


if __name__ == "__main__":
    main()
