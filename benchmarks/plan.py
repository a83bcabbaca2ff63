"""Plan of a training run on many GPUs: memory, bytes moved and expected efficiency, each number by a formula.

    python benchmarks/plan.py --recipe adm-256 --gpus 8,64,512 --batch-size 256,256,2048 --accumulate 4,1,1

tests/test_benchmark_plan.py compares the formulas with what is measured on a small network.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

import torch
from torch import nn

from admg.checkpoints.networks import NETWORK_KINDS
from admg.cli.main import one_line
from admg.cli.options import Parser
from admg.training import recipe
from admg.training.recipes.cost import BYTES_PER_PARAMETER, Cost

FLOAT32, BFLOAT16 = 4, 2


@dataclass(frozen=True, kw_only=True)
class Machines:
    """What the GPUs and their connections can do.

    peak: operations per second of a GPU, as its data sheet says
    share: share of the peak that a training step reaches
    within, between: bytes per second that a GPU sends to others of its node, and of other nodes
    node: GPUs per node
    """

    peak: float = 989e12  # H100 SXM, bf16, dense
    share: float = 0.35
    within: float = 450e9 * 0.7  # NVLink 4: 450 GB/s in each direction; 70 % of it
    between: float = 400e9 * 0.7  # 8 cards of 400 Gb/s per node, each used by one of 8 rings
    node: int = 8

    def bandwidth(self, gpus: int) -> float:
        """Return the bytes per second at which a GPU takes part in a ring over all GPUs."""
        return self.within if gpus <= self.node else min(self.within, self.between)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A training run in bf16.

    cost: work and memory of the network
    largest: number of parameters of its largest block, which FSDP2 gathers at a time
    gpus, batch_size, accumulate: see TrainConfig
    """

    cost: Cost
    largest: int
    gpus: int
    batch_size: int
    accumulate: int = 1

    @property
    def images(self) -> int:
        """Images that a GPU computes at a time."""
        return -(-self.batch_size // (self.gpus * self.accumulate))

    @property
    def ddp_memory(self) -> float:
        """20 bytes per parameter, the weights in bf16 and the activations."""
        return self.cost.memory(self.images, "bf16")

    @property
    def fsdp_memory(self) -> float:
        """The state divided by N; of two blocks the gathered weights, of one the whole gradients; the rest as in DDP.

        With accumulation, the whole gradients are kept until the last part.
        """
        whole = 3 * FLOAT32 * self.largest + (FLOAT32 * self.cost.parameters if self.accumulate > 1 else 0)
        return self.cost.memory(self.images, "bf16", shards=self.gpus) + whole

    @property
    def ddp_bytes(self) -> float:
        """Bytes that a GPU sends in a step: a ring all-reduce of the gradients in float32, 2 (N - 1)/N · 4 P."""
        return 2 * self._ring * FLOAT32 * self.cost.parameters

    @property
    def fsdp_bytes(self) -> float:
        """Two all-gathers for each part, forward and backward, and one reduce-scatter, (N - 1)/N · 4 P each."""
        return (2 * self.accumulate + 1) * self._ring * FLOAT32 * self.cost.parameters

    @property
    def _ring(self) -> float:
        return (self.gpus - 1) / self.gpus

    def seconds(self, machines: Machines) -> float:
        """Return the time of the computation of a step: 3 forward passes per image at a share of the peak."""
        work = self.batch_size / self.gpus * self.cost.training_flops
        return work / (machines.peak * machines.share)

    def efficiency(self, machines: Machines, moved: float, forward: float) -> tuple[float, float]:
        """Return the share of the time that is computation: if nothing is hidden behind it, and if all that can be is.

        moved: bytes that a GPU sends in a step
        forward: share of these that can be sent during the forward pass, a third of the computation
        """
        compute, exchange = self.seconds(machines), moved / machines.bandwidth(self.gpus)
        during = forward * exchange, (1 - forward) * exchange
        exposed = max(0.0, during[0] - compute / 3) + max(0.0, during[1] - 2 * compute / 3)
        return compute / (compute + exchange), compute / (compute + exposed)


def largest_block(network: nn.Module) -> int:
    """Return the number of parameters of the largest block that `shard` gathers at a time."""
    blocks = [block for name in ("input_blocks", "output_blocks") for block in getattr(network, name, [])]
    return max(sum(p.numel() for p in block.parameters()) for block in [*blocks, network.middle_block])


def plan_of(name: str, gpus: int, batch_size: int, accumulate: int) -> Plan:
    """Return the plan of a recipe."""
    chosen = recipe(name)
    kind = next(kind for kind in NETWORK_KINDS.values() if type(chosen.architecture) is kind.config)
    with torch.device("meta"):
        largest = largest_block(kind.network(chosen.architecture))
    return Plan(cost=chosen.cost, largest=largest, gpus=gpus, batch_size=batch_size, accumulate=accumulate)


def report(plans: list[Plan], machines: Machines) -> str:
    """Return a table with a column for each number of GPUs."""
    gb = 1e9

    def efficiency(plan: Plan, moved: float, forward: float) -> str:
        low, high = plan.efficiency(machines, moved, forward)
        return f"{low:.0%} – {high:.0%}"

    rows = {
        "GPUs": [str(plan.gpus) for plan in plans],
        "batch, parts": [f"{plan.batch_size}, {plan.accumulate}" for plan in plans],
        "images per GPU at a time": [str(plan.images) for plan in plans],
        "DDP: memory (GB)": [f"{plan.ddp_memory / gb:.1f}" for plan in plans],
        "FSDP2: memory (GB)": [f"{plan.fsdp_memory / gb:.1f}" for plan in plans],
        "activations, included above (GB)": [
            f"{plan.images * plan.cost.activation_mb_bf16 / 1e3:.1f}" for plan in plans
        ],
        "DDP: sent per GPU and step (GB)": [f"{plan.ddp_bytes / gb:.2f}" for plan in plans],
        "FSDP2: sent per GPU and step (GB)": [f"{plan.fsdp_bytes / gb:.2f}" for plan in plans],
        "computation per step (s)": [f"{plan.seconds(machines):.3f}" for plan in plans],
        "DDP: efficiency": [efficiency(plan, plan.ddp_bytes, 0.0) for plan in plans],
        "FSDP2: efficiency": [
            efficiency(plan, plan.fsdp_bytes, plan.accumulate / (2 * plan.accumulate + 1)) for plan in plans
        ],
    }
    lines = [f"| {name} | {' | '.join(values)} |" for name, values in rows.items()]
    lines.insert(1, "|---|" + "---|" * len(plans))
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--recipe", default="adm-256", help="recipe to plan (default: adm-256)")
    add("--gpus", default="8,64,512", help="numbers of GPUs, separated by commas (default: 8,64,512)")
    add("--batch-size", default="256,256,2048", help="images per step for each (default: 256,256,2048)")
    add("--accumulate", default="4,1,1", help="parts of a batch for each (default: 4,1,1)")
    add("--share", type=float, default=0.35, help="share of the peak that a step reaches (default: 0.35)")
    add("--between", type=float, default=280.0, help="GB/s that a GPU sends to other nodes (default: 280)")
    args = parser.parse_args(argv)
    try:
        lists = [[int(value) for value in text.split(",")] for text in (args.gpus, args.batch_size, args.accumulate)]
        plans = [plan_of(args.recipe, *values) for values in zip(*lists, strict=True)]
    except ValueError as error:
        print(f"plan: error: {one_line(error)}", file=sys.stderr)
        return 2
    machines = Machines(share=args.share, between=args.between * 1e9)
    cost = plans[0].cost
    print(f"{args.recipe}: {cost.parameters:,} parameters, {BYTES_PER_PARAMETER} bytes of state each, largest block")
    print(f"{plans[0].largest:,}; {cost.training_flops / 1e12:.2f} TFLOP per image in training\n")
    print(report(plans, machines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
