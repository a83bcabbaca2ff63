# %% [markdown]
# # A tour of guidance
#
# A diffusion model turns noise into images, step by step. A guide is a gradient that is added to every step. This
# notebook needs neither a GPU nor a network: the models are part of the package.

# %%
import matplotlib.pyplot as plt
import torch

import admg
from admg import guidance, samplers
from admg.generation.contact_sheet import sheet
from admg.generation.images import to_uint8

STEPS, NUM = 25, 8

model = admg.load("fashion-mnist")
classifier = admg.load_classifier("fashion-mnist")

# %% [markdown]
# ## Unguided samples
#
# Without a label and without a guide, the model draws whatever there is in its training data.

# %%
unguided = admg.sample(model, num=NUM, steps=STEPS, seed=0, unconditional=True, progress=False)
unguided

# %% [markdown]
# ## A classifier steers
#
# The classifier knows $p(y \mid x_t, t)$ for noised images. The gradient of its logarithm, times the guidance scale,
# is added to the score. The noise is the same in every column; only the scale differs.

# %%
SCALES = (0, 1, 4, 16)
columns = [
    admg.sample(model, ["sneaker", "coat", "bag", "dress"], guide=guidance.ClassifierGuidance(classifier, scale),
                steps=STEPS, seed=0, unconditional=True, progress=False)
    for scale in SCALES
]  # fmt: skip
rows = [[column.images[i] for column in columns] for i in range(4)]
sheet(rows, row_titles=columns[0].label_names, column_titles=[f"scale {s}" for s in SCALES], cell=96)

# %% [markdown]
# ## What the classifier sees
#
# A sampler is a generator: it yields $x_t$ and the predicted image $\hat x_0$ after every step. Here is the
# probability that the classifier gives to the target label at each noise level, with and without guidance, averaged
# over the images.


# %%
def probability(scale):
    """Return the timesteps, the mean probability of the label at each, and the predicted image of the first sample."""
    y = torch.full((NUM,), model.labels.parse("coat"))
    x_T = torch.randn(NUM, *model.shape, generator=torch.Generator().manual_seed(3))
    guide = guidance.ClassifierGuidance(classifier, scale)
    ts, ps, pictures = [], [], []
    for step in samplers.ddim(model.respace(STEPS), x_T, y=y, guide=guide, unconditional=True):
        if step.index > 0:
            t = torch.full((NUM,), step.t)
            with torch.no_grad():
                logits = classifier(step.x, t)
            ps.append(logits.softmax(1)[range(NUM), y].mean().item())
            ts.append(step.t)
        pictures.append(step.x0[0])
    return ts, ps, pictures


figure, axis = plt.subplots(figsize=(6, 3))
for scale in (0, 1, 4):
    ts, ps, pictures = probability(scale)
    axis.plot(ts, ps, label=f"scale {scale}")
axis.invert_xaxis()
axis.set(xlabel="timestep t (noise on the left)", ylabel="p(coat | x_t, t)", ylim=(0, 1))
axis.legend()
plt.show()

# %% [markdown]
# The predicted image of the last run, from the first step to the last:

# %%
sheet([to_uint8(torch.stack(pictures[:: max(1, STEPS // 8)]))], cell=96)

# %% [markdown]
# ## A guide of your own
#
# A guide is a function of the sampler's state. It returns the gradient of the log-density to follow. This one prefers
# images that are symmetric: $\log p = -40 \cdot \lVert x - \text{mirrored } x \rVert^2 / \text{number of pixels}$.
# Guides add up.


# %%
def symmetric(state):
    x = state.x
    return -160 * (x - x.flip(-1)) / x[0].numel()


guide = guidance.ClassifierGuidance(classifier, 4.0)
plain = admg.sample(model, ["coat"], num=NUM, guide=guide, steps=STEPS, seed=5, progress=False)
mirrored = admg.sample(model, ["coat"], num=NUM, guide=guide + symmetric, steps=STEPS, seed=5, progress=False)
sheet([plain.images, mirrored.images], row_titles=["classifier", "+ symmetric"], cell=96)

# %%
asymmetry = [(s.x - s.x.flip(-1)).square().mean().item() for s in (plain, mirrored)]
print(
    f"mean squared difference from the mirror image: {asymmetry[0]:.3f} without the guide, {asymmetry[1]:.3f} with it"
)
