"""Save a model as one of another diffusion process, for training to start from.

    python tools/models/with_process.py fashion-mnist --predict v --out runs/fashion-mnist-as-v
    python tools/models/with_process.py fashion-mnist --classifier --predict v --out runs/classifier-as-v

`--init` refuses a model of another process than that of the run, because its outputs mean something else there. Its
features are still worth having: a training from it is ahead of one from nothing after some hundred steps.
"""

from __future__ import annotations

import argparse
import dataclasses

import admg
from admg.diffusion.config import DiffusionConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="name or folder")
    parser.add_argument("--classifier", action="store_true", help="the noisy classifier of this name")
    parser.add_argument("--noise-schedule", default="cosine", help="linear or cosine (default: cosine)")
    parser.add_argument("--predict", default="v", help="eps, x0 or v (default: v)")
    parser.add_argument("--out", required=True, metavar="DIR")
    args = parser.parse_args()
    part = (admg.load_classifier if args.classifier else admg.load)(args.model)
    config = DiffusionConfig(predict=args.predict, noise_schedule=args.noise_schedule)
    dataclasses.replace(part, diffusion=config.build(), config=config).save(args.out)


if __name__ == "__main__":
    main()
