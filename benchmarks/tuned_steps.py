"""Quality of the steps that `admg tune-steps` has found for a model, next to that of known spacings.

    python benchmarks/tuned_steps.py --num 1000 --seed 78 --precision fp32

Each row is a sampler with its steps, SAMPLER:STEPS. The conditional model is guided by the classifier; images are
judged by the label classifier of the tests, which did not guide: accuracy, KID x 1000 to the test images, precision and
recall in its features. Prints a table, row by row, which begins with as many other test images.
"""

from __future__ import annotations

import argparse
import sys

from labelled import (
    CLASSES,
    Bench,
    Metrics,
    add_common,
    check_common,
    check_samplers,
    command,
    load_both,
    real_images,
    samplers,
)

import admg
from admg import guidance
from admg.cli.options import Parser

ROWS = (
    "unipc:tuned5,dpmpp_2m:tuned5,unipc:logsnr5,dpmpp_2m:logsnr5,dpmpp_2m:trailing5,"
    "unipc:karras10,dpmpp_2m:karras10,ddim:10,ddim:25"
)


def line(name: str, steps: str, found: Metrics) -> str:
    interval = f"{100 * found.accuracy:.1f} % ({100 * found.low:.1f}–{100 * found.high:.1f})"
    distance = f"{found.distance:.2f} ± {found.error:.2f}"
    return f"| {name} | {steps} | {interval} | {distance} | {found.precision:.2f} | {found.recall:.2f} |"


def run(args: argparse.Namespace) -> None:
    check_common(args)
    model, classifier = load_both(args)
    check_samplers(args.rows, model.respace)
    bench = Bench(real_images(args.data, model.shape[1], args.reference, args.num))
    print("| sampler | steps | accuracy (95 % interval) | KID x 1000 | precision | recall |")
    print("| --- | --- | --- | --- | ---: | ---: |")
    print(line("test images", "", bench.real), flush=True)
    guide = guidance.ClassifierGuidance(classifier, args.scale)
    for sampler, steps in args.rows:
        options = {"seed": args.seed, "precision": args.precision, "batch_size": args.batch_size, "progress": False}
        labels = [i % CLASSES for i in range(args.num)]
        samples = admg.sample(model, labels, guide=guide, sampler=sampler, steps=steps, **options)
        print(line(sampler, steps, bench(samples.images)), flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="tuned_steps", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=samplers, default=ROWS, metavar="SAMPLER:STEPS,...", help=f"(default: {ROWS})")
    parser.add_argument("--num", type=int, default=500, metavar="N", help="samples of each row")
    parser.add_argument("--scale", type=float, default=2.0, metavar="S", help="guidance scale (default: 2)")
    add_common(parser)
    return command(run, parser.parse_args(argv), "tuned_steps")


if __name__ == "__main__":
    sys.exit(main())
