# %% [markdown]
# # Training on your own images, and evaluation
#
# A folder with a sub-folder per class is all that training needs. So that this notebook needs no download, it draws
# 600 small images of three shapes. Training takes some minutes on one CPU core.

# %%
import csv
import random
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from PIL import Image, ImageDraw

import admg
from admg import guidance
from admg.generation.contact_sheet import sheet

STEPS, CLASSIFIER_STEPS, PER_CLASS, NUM = 500, 200, 200, 30
OUT = Path("own-images")


# %%
def draw(shape: str, seed: int) -> Image.Image:
    """Draw a shape of a random colour and size, at a random place."""
    chance = random.Random(f"{shape} {seed}")
    r = chance.uniform(14, 24)
    x, y = (chance.uniform(r + 2, 62 - r) for _ in "xy")
    colour = tuple(chance.randrange(110, 256) for _ in "rgb")
    picture = Image.new("RGB", (64, 64), "black")
    pen = ImageDraw.Draw(picture)
    if shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), colour)
    elif shape == "square":
        pen.rectangle((x - r, y - r, x + r, y + r), colour)
    else:
        pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], colour)
    return picture.resize((16, 16), Image.Resampling.LANCZOS)


for split, first, count in (("train", 0, PER_CLASS), ("test", 10_000, PER_CLASS // 2)):
    for shape in ("circle", "square", "triangle"):
        folder = OUT / split / shape
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            draw(shape, first + i).save(folder / f"{i:04d}.png")

data = admg.data.open(OUT / "train", 16)
test = admg.data.open(OUT / "test", 16)
print(f"{len(data)} images for training, {len(test)} for the evaluation; classes: {', '.join(data.label_names)}")

# %% [markdown]
# ## Train a diffusion model and a noisy classifier
#
# `admg.train_diffusion` iterates over steps and writes curves, previews and checkpoints into a run directory. The
# same call continues an interrupted run.

# %%
network = {"channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (8,)}
config = admg.TrainConfig(steps=STEPS, batch_size=32, lr=1e-3, warmup=50, ema=(0.99,), preview_every=10**6)
run = admg.train_diffusion(data, OUT / "model", config, network=network)
for step in run:
    if step["step"] % 100 == 0:
        print(f"step {step['step']}: loss {step['loss']:.3f}")
model = run.model

# %%
config = admg.TrainConfig(steps=CLASSIFIER_STEPS, batch_size=64, lr=1e-3, warmup=50, ema=(0.99,), preview_every=10**6)
run = admg.train_classifier(data, OUT / "classifier", config, network=network)
for step in run:
    if step["step"] % 100 == 0:
        print(f"step {step['step']}: loss {step['loss']:.3f}")
classifier = run.model

# %%
with (OUT / "model" / "log.csv").open(newline="") as file:
    log = [(int(row["images"]), float(row["loss"])) for row in csv.DictReader(file)]
figure, axis = plt.subplots(figsize=(6, 3))
axis.plot(*zip(*log))
axis.set(xlabel="images seen", ylabel="training loss", yscale="log")
plt.show()

# %% [markdown]
# ## Guide
#
# A row per shape, first without a guide and without labels, then steered by the classifier.

# %%
NAMES = list(data.label_names)
guide = guidance.ClassifierGuidance(classifier, scale=2.0)
unguided = admg.sample(model, num=3 * NUM, steps=25, unconditional=True, progress=False)
guided = admg.sample(model, NAMES, num=3 * NUM, guide=guide, steps=25, unconditional=True, progress=False)
rows = [unguided.images[:8], *(guided.images[guided.labels == i][:8] for i in range(3))]
sheet(rows, row_titles=["unguided", *NAMES], cell=64)

# %% [markdown]
# ## Evaluate
#
# Samples are compared with images that were never trained on. With so few images, a small feature network suits best;
# here it is the pixels themselves, averaged over blocks of 2x2. `features="efficientnet-lite0"` and others are real
# ones. A Fréchet distance needs a scale to be read by: that between the training images and the test images is the
# best to reach.


# %%
class Pixels(torch.nn.Module):
    """Average colours of blocks of 2x2 pixels, in place of a feature network."""

    def forward(self, x):
        return torch.nn.functional.avg_pool2d(x, x.shape[-1] // 8).flatten(1)


for name, images in (("training images", OUT / "train"), ("unguided", unguided), ("guided", guided)):
    report = admg.evaluate(images, OUT / "test", ["fid", "precision", "recall"], Pixels(), progress=False)
    print(f"{name:16}", {metric: round(report[metric], 3) for metric in ("fid", "precision", "recall")})
