"""Colours of a greyscale photograph, an inverse problem y = A(x) + noise: a small model that was trained on the left
third of the photograph colours the rest. From left: the measurement, colours from three seeds, their mean, and the
true colours.

    python examples/colourisation.py --out out        (the first run trains the model for about 4 minutes)

The photograph is danielbuechele's "china.jpg" of scikit-learn (CC BY 2.0, flickr.com/photos/danielbuechele).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from common import options
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from sklearn.datasets import load_sample_image
from tqdm.auto import tqdm

import admg
from admg.data import Dataset
from admg.generation.contact_sheet import sheet
from admg.generation.images import save_png, to_uint8
from admg.guidance import Grey, LinearInverse
from admg.training import ObjectiveConfig

SIZE, CUT = (96, 64), 32  # size of the photograph, and the width of the part for training, which ends at the pagoda
PATCH = 32
NOISE = 0.02  # standard deviation of the measurement's noise; pixels are in [-1, 1]


def main(argv: Sequence[str] | None = None) -> None:
    args = options(__doc__, argv, steps="25", num=3, help="number of seeds",
                   model=(Path("runs/colourisation"), "run directory of the model"),
                   train_steps=(1000, "number of training steps"))  # fmt: skip
    photograph = Image.fromarray(load_sample_image("china.jpg")).resize(SIZE, Image.Resampling.BOX)
    left, right = np.split(np.asarray(photograph), [CUT], axis=1)
    model = trained(left, args.model, args.train_steps)

    truth = torch.tensor(right).permute(2, 0, 1)[None] / 127.5 - 1
    grey = Grey()(truth)
    grey += NOISE * torch.randn(grey.shape, generator=torch.Generator().manual_seed(0))
    guide = LinearInverse(Grey(), grey, NOISE, prior_std=0.5)
    x_T = torch.randn((args.num, *truth.shape[1:]), generator=torch.Generator().manual_seed(0))
    coloured = admg.sample(model, [None] * args.num, guide=guide, sampler="dpmpp_2m", steps=args.steps, x_T=x_T).x

    row = torch.cat([grey.expand_as(truth), coloured, coloured.mean(0, keepdim=True), truth])
    titles = ["grey", "coloured", *["again"] * (args.num - 1), "their mean", "true colours"]
    picture = sheet([to_uint8(row)], column_titles=titles, title="Photograph: danielbuechele, CC BY 2.0", cell=192)
    save_png(picture, args.out / "colourisation.png")


def trained(image: np.ndarray, folder: Path, steps: int) -> admg.Model:
    """Return a model trained on random patches of the image (H, W, 3), half of them mirrored."""
    patches = sliding_window_view(image, (PATCH, PATCH), (0, 1)).reshape(-1, 3, PATCH, PATCH)
    dataset = Dataset(patches.transpose(0, 2, 3, 1), PATCH, channels=3, crop="random", flip=True)

    process = admg.DiffusionConfig(noise_schedule="cosine", predict="v", variance="fixed_small")
    network = {"channels": 32, "channel_mult": (1, 2, 2), "num_res_blocks": 1, "attention_resolutions": (),
               "head_channels": 32, "resblock_updown": False}  # fmt: skip
    config = admg.TrainConfig(steps=steps, batch_size=8, lr=1.5e-3, warmup=30, ema=0.995, checkpoint_every=200)
    objective = ObjectiveConfig(objective="simple")
    run = admg.train_diffusion(dataset, folder, config, network=network, diffusion=process, objective=objective)
    for _ in tqdm(run, desc="training", initial=run.first_step, total=steps):
        pass
    return run.model


if __name__ == "__main__":
    main()
