"""What it costs to evaluate the guide at one of several steps only: distance from guidance at each step, and accuracy.

    python benchmarks/guidance_reuse.py --num 200 --out runs/guidance-reuse

The shipped diffusion model is guided by the shipped classifier alone (the network gets no labels), with DDIM. Each row
has the same noise. Evaluations: of the denoiser and of the classifier's gradient. Difference: mean absolute difference,
in levels of 255, from the images that are guided at each step. Accuracy and KID x 1000 are those of the label
classifier of the tests, which did not guide.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from labelled import Bench, add_common, check_common, load_both, numbers, real_images
from tqdm import tqdm

import admg
from admg import guidance
from admg.cli.options import Parser
from admg.guidance import Guide, State


class Held(guidance.Guidance):
    """A guide that is evaluated at every second step and held between, as in Dinh et al. 2024."""

    def __init__(self, guide: Guide) -> None:
        self.guide, self.count, self.last = guide, 0, torch.zeros(())

    def begin(self) -> Held:
        return Held(self.guide)

    def __call__(self, state: State) -> torch.Tensor | None:
        if self.count % 2 == 0 and (gradient := self.guide(state)) is not None:
            self.last = gradient
        self.count += 1
        return self.last


def recorded(guide: guidance.Guidance, levels: list[float]) -> guidance.Guidance:
    """Return a guide that notes the noise level of each evaluation."""
    return guide + (lambda state: levels.append(state.sigma))


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--num", type=int, default=200, help="number of samples per row")
    parser.add_argument("--steps", type=int, default=24, help="number of steps of DDIM")
    parser.add_argument("--scales", type=numbers, default=[2.0, 8.0], help="guidance scales")
    parser.add_argument("--out", type=Path, default=Path("runs/guidance-reuse"))
    add_common(parser)
    args = parser.parse_args()
    check_common(args)
    model, classifier = load_both(args)
    bench = Bench(real_images(args.data, model.shape[-1], args.reference, 1000))
    y, n = torch.arange(args.num) % 10, args.steps
    rows = [
        "| scale | gradient | evaluations | difference | accuracy (95 % interval) | KID x 1000 |",
        "| --: | --- | --- | --: | --: | --: |",
    ]
    bar = tqdm(total=5 * len(args.scales), unit="row")
    for scale in args.scales:
        levels: list[float] = []  # at which the guide is evaluated
        guide = recorded(guidance.ClassifierGuidance(classifier, scale), levels)
        exact: np.ndarray | None = None
        for name, chosen, steps in (
            ("at each step", guide, n),
            ("every 2nd, extrapolated", guidance.Reused(guide, 2), n),
            ("every 2nd, held", Held(guide), n),
            ("every 3rd, extrapolated", guidance.Reused(guide, 3), n),
            ("half as many steps", guide, n // 2),
        ):
            levels.clear()
            options = {"steps": steps, "seed": args.seed, "precision": args.precision, "batch_size": args.batch_size}
            found = admg.sample(model, y, guide=chosen, sampler="ddim", unconditional=True, progress=False, **options)
            found = found.images
            exact = found if exact is None else exact
            difference = np.abs(found.astype(float) - exact).mean()
            m = bench(found)
            rows.append(
                f"| {scale:g} | {name} | {steps} + {len(set(levels))} | {difference:.2f} | {m.accuracy:.1%} "
                f"({m.low:.1%} to {m.high:.1%}) | {m.distance:.1f} ± {m.error:.1f} |"
            )
            bar.update()
            bar.write(rows[-1])
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "table.md").write_text("\n".join(rows) + "\n", encoding="utf-8")
    print("\n".join(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
