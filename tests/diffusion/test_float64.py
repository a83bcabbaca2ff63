"""Float64 images are computed in float64 throughout, for studies of convergence; all others in float32."""

from __future__ import annotations

import pytest
import torch
from exact import Mixture, Network, betas_of

from admg import guidance, samplers
from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Model
from admg.diffusion import Diffusion, NoiseSchedule, SeededNoise

X = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([1, 2, 0])
MIXTURE = Mixture.of((1, 2, 2), [1.0, 2.0, 1.0], [-0.5, 0.1, 0.6], [0.3, 0.2, 0.4], [0, 1, 2])


@pytest.mark.parametrize("predict", ["eps", "x0", "v"])
@pytest.mark.parametrize("variance", ["learned_range", "fixed_small", "fixed_large"])
def test_predictions_have_the_dtype_of_x(predict, variance):
    d = Diffusion(NoiseSchedule.cosine(100), predict, variance)
    output = torch.cat([0.3 * X, 0.5 * X], 1) if d.learns_variance else 0.3 * X
    coarse, fine = d.predict(output, X, 50), d.predict(output.double(), X.double(), 50)
    for name in ("x0", "eps", "mean", "variance", "log_variance"):
        assert getattr(coarse, name).dtype == torch.float32 and getattr(fine, name).dtype == torch.float64
        torch.testing.assert_close(getattr(coarse, name), getattr(fine, name).float(), atol=1e-5, rtol=1e-5)
    assert d.predict(output.bfloat16(), X.bfloat16(), 50).x0.dtype == torch.float32
    noised = d.q_sample(X.double(), 99, X.double())
    exact = d.schedule.alpha_bar[99].sqrt() * X.double() + (1 - d.schedule.alpha_bar[99]).sqrt() * X.double()
    assert (noised - exact).abs().max() < 1e-15


def test_the_classifiers_score_has_the_dtype_of_x():
    t, shape = torch.tensor([40]), MIXTURE.shape
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    fine, coarse = (guidance.log_prob_gradient(MIXTURE.classifier, a, t, Y) for a in (x, x.float()))
    assert fine.dtype == torch.float64 and coarse.dtype == torch.float32
    torch.testing.assert_close(coarse, fine.float(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("sampler", [samplers.ddpm, samplers.ddim, samplers.heun, samplers.dpmpp_2m, samplers.unipc])
def test_a_whole_run_in_float64(sampler):
    """No step of a float64 run is rounded to float32, and it is near the float32 run."""
    d = Diffusion(NoiseSchedule.from_betas(betas_of(MIXTURE.alpha_bars)).respace(10), variance="fixed_small")
    model = Model(Network(MIXTURE, conditional=True), d, MIXTURE.shape, Labels(3))
    guide = guidance.ClassifierGuidance(MIXTURE.classifier, 2.0) + guidance.ClassifierFreeGuidance(1.5)
    x_T = torch.randn(3, *MIXTURE.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def steps(x: torch.Tensor) -> list[samplers.Step]:
        return list(sampler(model, x, y=Y, guide=guide, noise_sampler=SeededNoise(1, range(3)), clip=False))

    for fine, coarse in zip(steps(x_T), steps(x_T.float()), strict=True):
        assert fine.x.dtype == fine.x0.dtype == torch.float64 and coarse.x.dtype == torch.float32
        assert (fine.x.float().double() != fine.x).all()
        torch.testing.assert_close(coarse.x, fine.x.float(), atol=1e-4, rtol=1e-4)
