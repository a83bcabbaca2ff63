"""Write what the network of each recipe costs into its TOML file: run it after an architecture has changed.

python tools/recipe_costs.py
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import admg.training.recipes as recipes
from admg.config import build
from admg.training.recipes.measure import measure

FOLDER = Path(recipes.__file__).parent


def main() -> None:
    for path in sorted(FOLDER.glob("*.toml")):
        text = re.sub(r"\n\[cost\].*", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        tables = tomllib.loads(text)
        kind, classes = recipes.NETWORKS[tables["recipe"]["command"]], tables["recipe"]["classes"]
        cost = measure(build(kind, tables["images"] | tables["network"], num_classes=classes))
        lines = [
            f"parameters = {cost.parameters}  # counted",
            f"gflops = {cost.gflops:.2f}  # a forward pass of one image, by torch's FlopCounterMode",
            f"activation_mb_fp32 = {cost.activation_mb_fp32:.1f}  # kept for the backward pass by plain PyTorch",
            f"activation_mb_bf16 = {cost.activation_mb_bf16:.1f}  # the same under autocast to bfloat16",
        ]
        path.write_text(text.rstrip() + "\n\n[cost]\n" + "\n".join(lines) + "\n", encoding="utf-8")
        print(path.stem, cost)


if __name__ == "__main__":
    main()
