"""`admg neighbours`: the nearest training images of samples, to see whether a model has memorised."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from admg.evaluation.neighbours import nearest, picture
from admg.files import check_output_folder
from admg.generation.images import save_png

from .judging import Processes, add_network_arguments, extract, load_network, one_size, open_images

EPILOG = """example:
  admg neighbours out/samples_1000x32x32x1.npz data/fashion-mnist --fit pad --network efficientnet-lite0 --num 12

Each row of the picture has a sample and its nearest training images, in the network's features; the number beside it is
the distance of the first. A sample that a model has memorised is in its row twice."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    add = parser.add_argument
    add("samples", metavar="SAMPLES", help="an .npz (arr_0) or a folder of images")
    add("training", metavar="TRAINING", help="the training images: a folder, IDX files, or an .npz")
    add("--num", type=int, default=10, metavar="N", help="samples, spread evenly over all there are (default: 10)")
    add("--num-training", type=int, metavar="N", help="training images to search (default: all)")
    add("--k", type=int, default=5, metavar="K", help="training images for each sample (default: 5)")
    add("--closest", action="store_true", help="of all samples, show the NUM that are closest to a training image")
    add("--out", default="neighbours.png", metavar="PNG", help="the picture (default: neighbours.png)")
    add_network_arguments(parser, split="train")


def run(args: argparse.Namespace) -> None:
    if args.num < 1 or args.k < 1:
        raise ValueError(f"--num and --k must be at least 1, got {args.num} and {args.k}")
    out = Path(args.out)
    if out.suffix != ".png":
        raise ValueError(f"--out {args.out}: a picture's name must end in .png")
    processes = Processes.of_environment()
    samples = one_size(open_images(args.samples, None, args.split))
    if not args.closest:
        samples = samples.spread(max(2, args.num))
    training = open_images(args.training, args.num_training, args.split)
    for source in (samples, training):
        if source.images is None:
            raise ValueError(f"{source.name} holds statistics and no images")
    if args.k > len(training):
        raise ValueError(f"--k {args.k}: there are {len(training)} training images")
    assert samples.size is not None
    training = training.fitted(samples.size, args.fit)
    check_output_folder(out.parent)
    network = load_network(args, processes)
    theirs = extract(training, network, args, processes, "the training images")
    ours = extract(samples, network, args, processes, "the samples")
    if theirs is None or ours is None:
        return
    found = nearest(ours.features, theirs.features, args.k)
    order = found.distances[:, 0].argsort(kind="stable").tolist() if args.closest else list(range(len(samples)))
    shown = order[: args.num]
    found = replace(found, numbers=found.numbers[shown], distances=found.distances[shown])
    samples = replace(samples, numbers=[samples.numbers[i] for i in shown], labels=None)
    save_png(picture(samples, training, found, f"nearest of {len(training):,} in {network.name}"), out)
    print(f"nearest of {len(training):,} training images, distance in the features of {network.name}:")
    for number, row, distances in zip(samples.numbers, found.numbers, found.distances):
        print(f"  sample {number}: " + "  ".join(f"{training.numbers[n]} ({d:.3f})" for n, d in zip(row, distances)))
    print(out)
