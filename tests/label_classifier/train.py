"""Train the label classifier of the tests and benchmarks.

python tests/label_classifier/train.py --data data/fashion-mnist --out label_classifier.safetensors
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from label_classifier import LabelClassifier, Network, prepare
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from admg.data import FASHION_MNIST_LABELS
from admg.data import open as open_dataset
from admg.engine.precision import autocast, resolve


def shifted(x: Tensor, by: int = 2) -> Tensor:
    """Shift each image of x (N, 1, H, W) by a random offset of up to `by` pixels, vertically and horizontally.

    There are no random flips, because all shoes point to the left.
    """
    windows = nn.functional.pad(x, (by,) * 4).unfold(2, x.shape[2], 1).unfold(3, x.shape[3], 1)
    dy, dx = torch.randint(2 * by + 1, (2, len(x)))
    return windows[torch.arange(len(x)), :, dy, dx]


def train(x: Tensor, y: Tensor, epochs: int, batch_size: int, lr: float) -> Network:
    """Return a network trained on images x (N, 1, 32, 32) in [0, 1] with labels y (N,)."""
    network = Network().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr, weight_decay=0.02)
    steps = epochs * (len(x) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.25)
    with tqdm(total=steps, unit="step", mininterval=1) as bar:
        for _ in range(epochs):
            for batch in torch.randperm(len(x))[: len(x) // batch_size * batch_size].view(-1, batch_size):
                images = shifted(x[batch]).contiguous(memory_format=torch.channels_last)
                with autocast("auto", images.device):
                    logits = network(images)
                loss = nn.functional.cross_entropy(logits.float(), y[batch], label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
                bar.update()
    return network.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the label classifier and report its accuracy.")
    parser.add_argument("--data", default="data/fashion-mnist", help="folder of the IDX files (default: %(default)s)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("label_classifier.safetensors"),
        help="file of the weights (default: %(default)s)",
    )
    parser.add_argument("--epochs", type=int, default=12, help="number of epochs (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=128, help="images per step (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=4e-3, help="peak learning rate (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers (default: %(default)s)")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    start = time.monotonic()
    data = open_dataset(args.data, 32, fit="pad", split="train")
    x, y = data.batch(range(len(data)))
    print(f"{len(data)} images; precision {resolve('auto', x.device)}, {torch.get_num_threads()} thread(s)")
    network = train(prepare(x), y, args.epochs, args.batch_size, args.lr)
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half() if value.is_floating_point() else value for name, value in weights.items()}, args.out)
    print(f"trained in {time.monotonic() - start:.0f} s; {args.out}: {args.out.stat().st_size / 1000:.0f} kB")

    test = open_dataset(args.data, 32, fit="pad", split="test")
    x, y = test.batch(range(len(test)))
    correct = torch.from_numpy(LabelClassifier(args.out).predict(x)) == y
    print(f"test accuracy {100 * correct.float().mean():.2f} %")
    for label, name in enumerate(FASHION_MNIST_LABELS):
        print(f"  {name:12} {100 * correct[y == label].float().mean():.1f} %")


if __name__ == "__main__":
    main()
