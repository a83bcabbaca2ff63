"""Compare the speed of admg's feature extraction with that of a plain loop over the same network.

    python benchmarks/feature_speed.py --network inception --size 32 --num 100 --rounds 7
    python benchmarks/feature_speed.py --network inception --size 256 --files --num 2000 --device cuda

The plain loop reads a batch and then calls the unmodified network. admg reads ahead, fuses batch normalisation into the
convolutions and uses channels_last. If the weights of Inception are not on disk, they are random, which does not affect
the speed. The two loops are measured in turn, so that changes in the load of the machine affect both.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from admg.cli.main import one_line
from admg.cli.options import Parser
from admg.engine.device import choose_device
from admg.evaluation.features import FeatureNetwork, efficientnet, inception
from admg.evaluation.features.extraction import Extraction
from admg.evaluation.opening import source_from_array
from admg.evaluation.sources import Source, open_source


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--network",
        choices=("inception", "efficientnet-lite0"),
        default="inception",
        help="feature network (default: inception)",
    )
    add("--size", type=int, default=32, help="height and width of the images in pixels (default: 32)")
    add("--files", action="store_true", help="read the images from PNG files instead of memory")
    add("--num", type=int, default=100, help="number of images (default: 100)")
    add("--rounds", type=int, default=5, help="measurements of each loop (default: 5)")
    add("--batch-size", type=int, default=50, help="images per batch (default: 50)")
    add("--device", default="auto", help="device, cpu or cuda (default: cuda if available)")
    args = parser.parse_args(argv)
    try:
        with tempfile.TemporaryDirectory() as folder:
            run(args, Path(folder))
    except (ValueError, OSError) as error:
        print(f"feature_speed: error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def run(args: argparse.Namespace, folder: Path) -> None:
    """Measure both loops and print their speed."""
    if min(args.size, args.num - 1, args.rounds, args.batch_size) < 1:
        raise ValueError("--size, --rounds and --batch-size must be at least 1, --num at least 2")
    device = choose_device(args.device)
    network, plain = build(args.network)
    network, plain = network.to(device), plain.eval().requires_grad_(False).to(device)
    source = random_images(args, folder)
    loops: dict[str, Callable[[], np.ndarray]] = {
        "plain loop": lambda: plain_loop(source, plain, network, args.batch_size),
        "admg": lambda: ours(source, network, args.batch_size),
    }
    first = [loop() for loop in loops.values()]  # warms up; the features are compared below
    error = np.abs(first[0] - first[1]).max() / np.abs(first[0]).max()
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(args.rounds):
        for name in list(loops)[:: 1 if turn % 2 else -1]:
            start = time.perf_counter()
            loops[name]()
            seconds[name].append(time.perf_counter() - start)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{network.name}, {args.num} images of {args.size}x{args.size} {'in files' if args.files else 'in memory'}")
    print(f"{where}, batches of {args.batch_size}, {args.rounds} rounds; features agree to {error:.1e}")
    for name, values in seconds.items():
        print(f"  {name:<12} {args.num / statistics.median(values):8.1f} images/s (median)")
    ratios = sorted(a / b for a, b in zip(seconds["plain loop"], seconds["admg"]))
    print(f"  ratio        {statistics.median(ratios):8.2f} (median; {ratios[0]:.2f} to {ratios[-1]:.2f})")


def build(name: str) -> tuple[FeatureNetwork, nn.Module]:
    """Return the network of admg, and the same network without admg's optimisations."""
    if name == "efficientnet-lite0":
        plain: nn.Module = efficientnet.EfficientNetLite0()
        plain.load_state_dict(torch.load(efficientnet.weights_path(), map_location="cpu", weights_only=True))
        return efficientnet.load(), plain
    torch.manual_seed(0)
    plain = inception.Inception()
    if inception.weights_path().is_file():
        plain.load_state_dict(torch.load(inception.weights_path(), map_location="cpu", weights_only=True))
    return inception.from_state_dict(copy.deepcopy(plain.state_dict())), plain


def random_images(args: argparse.Namespace, folder: Path) -> Source:
    """Return a source of random images, in memory or in files."""
    images = np.random.default_rng(0).integers(0, 256, (args.num, args.size, args.size, 3), dtype=np.uint8)
    if not args.files:
        return source_from_array(images)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:06d}.png")
    return open_source(folder)


@torch.inference_mode()
def plain_loop(source: Source, module: nn.Module, network: FeatureNetwork, batch_size: int) -> np.ndarray:
    """Return the features of the source computed with `module`, whose inputs `network` prepares."""
    features = []
    for start in range(0, len(source), batch_size):
        images = source[start : start + batch_size].transpose(0, 3, 1, 2)
        output = module(network.prepare(torch.from_numpy(np.ascontiguousarray(images)).to(network.device)))
        features.append((output[0] if isinstance(output, tuple) else output).cpu().numpy())
    return np.concatenate(features)


def ours(source: Source, network: FeatureNetwork, batch_size: int) -> np.ndarray:
    """Return the features of the source computed with admg."""
    job = Extraction(source, network, None, batch_size)
    for _ in job.compute():
        pass
    return job.gather().features


if __name__ == "__main__":
    sys.exit(main())
