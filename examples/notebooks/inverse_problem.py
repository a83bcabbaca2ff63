# %% [markdown]
# # An inverse problem with a gradient of your own
#
# An image was measured: $y = A x_0 + \text{noise}$. Here $A$ takes 300 random sums of the 1,024 pixels, as a
# single-pixel camera does. Many images explain the measurement; the diffusion model knows which of them look like
# clothes.

# %%
import torch

import admg
from admg import guidance
from admg.generation.contact_sheet import sheet
from admg.generation.images import to_uint8

STEPS, SUMS, NOISE = 50, 300, 0.05

model = admg.load("fashion-mnist")
random = torch.Generator().manual_seed(0)
A = torch.randn(SUMS, 32 * 32, generator=random) / 32  # each sum has about the variance of a pixel

# %% [markdown]
# The images to find again are samples of another seed. Replace them by images of yours, (N, 1, 32, 32) in [-1, 1].

# %%
truth = admg.sample(model, ["pullover", "sneaker", "bag", "dress"], seed=100, steps=STEPS // 2, progress=False).x
y = truth.flatten(1) @ A.T + NOISE * torch.randn(len(truth), SUMS, generator=random)

# %% [markdown]
# ## The gradient
#
# At a noise level $t$ the network predicts $\hat x_0(x_t)$. The likelihood of the measurement is taken there. The
# prediction is uncertain by about $r_t^2 = \sigma^2 / (1 + \sigma^2)$ per pixel, which adds $r_t^2 A A^\top$ to the
# covariance of the noise (Song et al. 2023, "Pseudoinverse-guided diffusion models"):
#
# $$\log p(y \mid x_t) \approx -\tfrac12 (y - A \hat x_0)^\top C^{-1} (y - A \hat x_0),
# \qquad C = r_t^2 A A^\top + \text{noise}^2 I$$
#
# Its gradient in $\hat x_0$ is $A^\top C^{-1} (y - A \hat x_0)$. `state.differentiable()` evaluates the network
# with autograd, which takes the gradient on to $x_t$.

# %%
AAt, identity = A @ A.T, torch.eye(SUMS)


def measured(state):
    """Return the gradient of log p(y | x_t) at x_t."""
    r2 = state.sigma**2 / (1 + state.sigma**2)
    with torch.enable_grad():  # samplers run without autograd
        x, prediction = state.differentiable()
        sums = prediction.x0.flatten(1) @ A.T
    weights = torch.linalg.solve(r2 * AAt + NOISE**2 * identity, (y - sums.detach()).T).T
    return torch.autograd.grad(sums, x, weights)[0]


# %% [markdown]
# ## Samples that agree with the measurement
#
# The model is not conditioned on labels. Two seeds give two explanations of the same sums. Beside them is the image
# of the least norm that explains the sums, which is what one gets without a model.

# %%
found = [
    admg.sample(model, num=len(y), guide=guidance.guide(measured), steps=STEPS, seed=seed, unconditional=True,
                progress=False)
    for seed in (0, 1)
]  # fmt: skip
least = (torch.linalg.solve(AAt, y.T).T @ A).view_as(truth)
columns = {"image": truth, "least norm": least, "seed 0": found[0].x, "seed 1": found[1].x}
sheet(list(zip(*map(to_uint8, columns.values()))), column_titles=list(columns), cell=96)

# %% [markdown]
# The samples are about four times as close to the image as the least norm. Their residuals are larger than the noise,
# since the likelihood at $\hat x_0$ is an approximation:

# %%
for name, x in columns.items():
    residual = (x.flatten(1) @ A.T - y).square().mean().sqrt()
    print(f"{name:11} residual {residual:.3f}   distance from the image {(x - truth).square().mean().sqrt():.3f}")
