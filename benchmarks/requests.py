"""Throughput of independent requests that are sampled together, and one by one.

    python benchmarks/requests.py --requests 1,4,16 --rounds 3

Each request is one image, with its own label, guidance scale (0 to 8), number of steps (8 to 12) and seed; model and
classifier are the shipped ones, and the sampler is DDIM. Both sides run in one process, in turn, with the same
requests. Prints images per second, the ratio of the two (median, minimum and maximum of the rounds), and the largest
difference of a pixel in levels of 255.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch
from labelled import numbers

import admg
from admg import guidance
from admg.cli.options import Parser
from admg.engine import configure_process
from admg.generation import Batcher


def main() -> int:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--requests", type=numbers, default=[1.0, 4.0, 16.0], help="numbers of requests at a time")
    add("--rounds", type=int, default=3)
    add("--model", default="fashion-mnist")
    add("--classifier", default="fashion-mnist")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    configure_process(torch.device(args.device))
    model = admg.load(args.model).to(args.device)
    classifier = admg.load_classifier(args.classifier).to(args.device)

    def request(i: int) -> dict:
        scale = float(i % 5) * 2
        guide = guidance.ClassifierGuidance(classifier, scale) if scale else None
        return {"labels": i % model.labels.count, "steps": 8 + i % 5, "seed": i, "guide": guide}

    print("| requests | one by one, images/s | together, images/s | ratio | largest difference |")
    print("| --: | --: | --: | --: | --: |")
    for count in map(int, args.requests):
        given = [request(i) for i in range(count)]
        alone, together, ratios, difference = [], [], [], 0.0
        with Batcher(model, precision=args.precision) as batcher:
            for round in range(args.rounds + 1):  # the first prepares the networks
                start = time.perf_counter()
                expected = [admg.sample(model, precision=args.precision, progress=False, **r) for r in given]
                middle = time.perf_counter()
                found = [future.result() for future in [batcher.submit(**r) for r in given]]
                end = time.perf_counter()
                if round:
                    alone.append(count / (middle - start))
                    together.append(count / (end - middle))
                    ratios.append(together[-1] / alone[-1])
                pairs = ((a.images.astype(float), b.images) for a, b in zip(expected, found))
                difference = max([difference, *(float(np.abs(a - b).max()) for a, b in pairs)])
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        medians = f"{statistics.median(alone):.2f} | {statistics.median(together):.2f}"
        print(f"| {count} | {medians} | {spread} | {difference:.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
