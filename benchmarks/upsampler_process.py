"""Upsamplers that predict v on a cosine schedule, and eps on a linear one, after the same training.

    OMP_NUM_THREADS=1 python benchmarks/upsampler_process.py --out runs/upsampler-process

Both are trained on 16,000 images of Fashion-MNIST, from 16 to 32 pixels, about six minutes each on one core. They
enlarge test images in 25 steps of DDIM. Prints the mean squared error of each and of bicubic interpolation, and writes
a picture (images.png): the test images, interpolated ones, and those of both upsamplers.
"""

from __future__ import annotations

import argparse

import torch
from PIL import Image
from reproduction import SIZE, Bench, Sizes
from torch import Tensor, nn

import admg
from admg.files import check_output_folder

PROCESSES = {
    "v, cosine": {"predict": "v", "noise_schedule": "cosine"},
    "eps, linear": {"predict": "eps", "noise_schedule": "linear"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/fashion-mnist", metavar="DIR", help="folder of the IDX files")
    parser.add_argument("--images", type=int, default=16_000, help="number of images to train on")
    parser.add_argument("--num", type=int, default=8, help="number of test images to enlarge")
    parser.add_argument("--out", required=True, metavar="DIR")
    args = parser.parse_args()
    torch.set_num_threads(1)
    out = check_output_folder(args.out)
    bench = Bench(args.data, out, range(1), Sizes(images=args.images))
    real, labels = bench.dataset(2 * SIZE, split="test").batch(range(args.num))
    small = nn.functional.interpolate(real, SIZE, mode="area")
    found: dict[str, Tensor] = {"bicubic interpolation": nn.functional.interpolate(small, 2 * SIZE, mode="bicubic")}
    for name, process in PROCESSES.items():
        model = bench.upsampler(0, f"upsampler, {name}", process)
        options = {"low_res": small, "sampler": "ddim", "steps": 25, "seed": 0, "progress": False}
        found[name] = admg.sample(model, [int(y) for y in labels], **options).x
    for name, images in found.items():
        print(f"{name}: {(images - real).square().mean():.3g}")
    rows = torch.cat([torch.cat(list(images[:, 0]), 1) for images in (real, *found.values())])
    picture = Image.fromarray(((rows.clamp(-1, 1) + 1) * 127.5).round().byte().numpy())
    picture.resize((3 * picture.width, 3 * picture.height), Image.Resampling.NEAREST).save(out / "images.png")


if __name__ == "__main__":
    main()
