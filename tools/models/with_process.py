"""Save a model as one of another diffusion process, for training to start from.

    python tools/models/with_process.py fashion-mnist --schedule cosine --predict v --out runs/fashion-mnist-as-v
    python tools/models/with_process.py fashion-mnist --classifier --schedule cosine --out runs/classifier-as-cosine

`--init` refuses a model of another process than that of the run, because its outputs mean something else there. Its
features are still worth having: a training from it is ahead of one from nothing after some hundred steps.
"""

from __future__ import annotations

import argparse
import dataclasses

import admg
from admg.checkpoints import tuned


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="name or folder")
    parser.add_argument("--classifier", action="store_true", help="the noisy classifier of this name")
    parser.add_argument("--schedule", choices=("linear", "cosine"), help="noise schedule (default: that of the model)")
    parser.add_argument("--predict", choices=("eps", "x0", "v"), help="prediction (default: that of the model)")
    parser.add_argument("--out", required=True, metavar="DIR")
    args = parser.parse_args()
    part = (admg.load_classifier if args.classifier else admg.load)(args.model)
    given = {"noise_schedule": args.schedule, "predict": args.predict}
    config = dataclasses.replace(part.config, **{name: value for name, value in given.items() if value})
    training = {name: value for name, value in part.training.items() if name != tuned.KEY}  # of the other process
    dataclasses.replace(part, diffusion=config.build(), config=config, training=training).save(args.out)


if __name__ == "__main__":
    main()
