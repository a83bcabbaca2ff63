"""TensorFlow's Inception network of 2015-12-05, which defines FID, sFID and the Inception Score, in PyTorch.

Layers have the names of torch-fidelity's weight file; comments give the names in `classify_image_graph_def.pb`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from admg.checkpoints import download, pickles
from admg.checkpoints.weights import CheckpointError, check_stored, check_values

from .base import FeatureNetwork, Head, fingerprint, fold, ready

SIZE = 299
SPATIAL_CHANNELS = 7  # channels of mixed_6/conv that sFID uses: 7 x 17 x 17 = 2023 values
CLASSES = 1008  # 1,000 of them are classes of ImageNet

FILE = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
EXPECTED = download.Expected(
    at_least=95_628_359, sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
)


class Conv(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, same: bool = True):
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (sides[0] // 2, sides[1] // 2) if same else 0
        self.conv = nn.Conv2d(inputs, outputs, sides, stride, padding, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)

    def fold(self) -> None:
        if isinstance(self.bn, nn.BatchNorm2d):
            self.conv, self.bn = fold(self.conv, self.bn), nn.Identity()


class Chain:
    """Mixin: applies layers of a block in order, by their names."""

    def chain(self, x: Tensor, prefix: str, *ends: str | int) -> Tensor:
        for end in ends:
            x = getattr(self, f"{prefix}_{end}")(x)
        return x


class MixedA(nn.Module, Chain):
    """35 x 35: mixed, mixed_1, mixed_2."""

    def __init__(self, inputs: int, pooled: int):
        super().__init__()
        self.branch1x1 = Conv(inputs, 64, 1)
        self.branch5x5_1 = Conv(inputs, 48, 1)
        self.branch5x5_2 = Conv(48, 64, 5)
        self.branch3x3dbl_1 = Conv(inputs, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3)
        self.branch3x3dbl_3 = Conv(96, 96, 3)
        self.branch_pool = Conv(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide, double = self.chain(x, "branch5x5", 1, 2), self.chain(x, "branch3x3dbl", 1, 2, 3)
        return torch.cat([self.branch1x1(x), wide, double, self.branch_pool(mean_pool(x))], 1)


class MixedB(nn.Module, Chain):
    """35 x 35 -> 17 x 17: mixed_3."""

    def __init__(self, inputs: int):
        super().__init__()
        self.branch3x3 = Conv(inputs, 384, 3, stride=2, same=False)
        self.branch3x3dbl_1 = Conv(inputs, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3)
        self.branch3x3dbl_3 = Conv(96, 96, 3, stride=2, same=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch3x3(x), self.chain(x, "branch3x3dbl", 1, 2, 3), F.max_pool2d(x, 3, 2)], 1)


class MixedC(nn.Module, Chain):
    """17 x 17: mixed_4 to mixed_7."""

    def __init__(self, inputs: int, inner: int):
        super().__init__()
        row, column = (1, 7), (7, 1)
        self.branch1x1 = Conv(inputs, 192, 1)
        self.branch7x7_1 = Conv(inputs, inner, 1)
        self.branch7x7_2 = Conv(inner, inner, row)
        self.branch7x7_3 = Conv(inner, 192, column)
        self.branch7x7dbl_1 = Conv(inputs, inner, 1)
        self.branch7x7dbl_2 = Conv(inner, inner, column)
        self.branch7x7dbl_3 = Conv(inner, inner, row)
        self.branch7x7dbl_4 = Conv(inner, inner, column)
        self.branch7x7dbl_5 = Conv(inner, 192, row)
        self.branch_pool = Conv(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.branches(x)[0]

    def branches(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output of the block, and that of its first branch."""
        first = self.branch1x1(x)
        seven, double = self.chain(x, "branch7x7", 1, 2, 3), self.chain(x, "branch7x7dbl", 1, 2, 3, 4, 5)
        return torch.cat([first, seven, double, self.branch_pool(mean_pool(x))], 1), first


class MixedD(nn.Module, Chain):
    """17 x 17 -> 8 x 8: mixed_8."""

    def __init__(self, inputs: int):
        super().__init__()
        self.branch3x3_1 = Conv(inputs, 192, 1)
        self.branch3x3_2 = Conv(192, 320, 3, stride=2, same=False)
        self.branch7x7x3_1 = Conv(inputs, 192, 1)
        self.branch7x7x3_2 = Conv(192, 192, (1, 7))
        self.branch7x7x3_3 = Conv(192, 192, (7, 1))
        self.branch7x7x3_4 = Conv(192, 192, 3, stride=2, same=False)

    def forward(self, x: Tensor) -> Tensor:
        three, seven = self.chain(x, "branch3x3", 1, 2), self.chain(x, "branch7x7x3", 1, 2, 3, 4)
        return torch.cat([three, seven, F.max_pool2d(x, 3, 2)], 1)


class MixedE(nn.Module, Chain):
    """8 x 8: mixed_9, with average pooling, and mixed_10, with max pooling: an error of the graph that FID includes."""

    def __init__(self, inputs: int, max_pooled: bool = False):
        super().__init__()
        row, column = (1, 3), (3, 1)
        self.max_pooled = max_pooled
        self.branch1x1 = Conv(inputs, 320, 1)
        self.branch3x3_1 = Conv(inputs, 384, 1)
        self.branch3x3_2a = Conv(384, 384, row)
        self.branch3x3_2b = Conv(384, 384, column)
        self.branch3x3dbl_1 = Conv(inputs, 448, 1)
        self.branch3x3dbl_2 = Conv(448, 384, 3)
        self.branch3x3dbl_3a = Conv(384, 384, row)
        self.branch3x3dbl_3b = Conv(384, 384, column)
        self.branch_pool = Conv(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        three, double = self.branch3x3_1(x), self.chain(x, "branch3x3dbl", 1, 2)
        forks = [self.branch3x3_2a(three), self.branch3x3_2b(three)]
        forks += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        pooled = F.max_pool2d(x, 3, 1, 1) if self.max_pooled else mean_pool(x)
        return torch.cat([self.branch1x1(x), *forks, self.branch_pool(pooled)], 1)


class Inception(nn.Module):
    """Maps images (N, 3, 299, 299) in [-1, 1] to pool_3 (N, 2048) and 7 channels of mixed_6/conv (N, 7, 17, 17)."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2, same=False)  # conv
        self.Conv2d_2a_3x3 = Conv(32, 32, 3, same=False)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3, same=False)  # conv_4
        self.Mixed_5b = MixedA(192, 32)  # mixed
        self.Mixed_5c = MixedA(256, 64)
        self.Mixed_5d = MixedA(288, 64)
        self.Mixed_6a = MixedB(288)  # mixed_3
        self.Mixed_6b = MixedC(768, 128)
        self.Mixed_6c = MixedC(768, 160)
        self.Mixed_6d = MixedC(768, 160)  # mixed_6
        self.Mixed_6e = MixedC(768, 192)
        self.Mixed_7a = MixedD(768)  # mixed_8
        self.Mixed_7b = MixedE(1280)
        self.Mixed_7c = MixedE(2048, max_pooled=True)  # mixed_10
        self.fc = nn.Linear(2048, CLASSES)  # softmax

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, 2))))
        x, first = self.Mixed_6d.branches(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(x))))
        return x.mean((2, 3)), first[:, :SPATIAL_CHANNELS]

    def fold(self) -> Inception:
        """Fold the batch normalisations into the convolutions, once weights are loaded; the function stays the same."""
        for module in self.modules():
            if isinstance(module, Conv):
                module.fold()
        return self


def mean_pool(x: Tensor) -> Tensor:
    """Average over 3 x 3, without the padding, as TensorFlow does with SAME."""
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def resize(x: Float[Tensor, "n c h w"], size: int = SIZE) -> Float[Tensor, "n c size size"]:
    """Resize as the graph's ResizeBilinear (TensorFlow 1) does: pixel i of `size` is at i·(in/size).

    Neither corners nor centres are aligned: enlarged images end in a flat edge, and when images are made smaller,
    pixels are skipped rather than averaged.
    """
    for axis in (3, 2):
        count = x.shape[axis]
        at = torch.arange(size, dtype=torch.float32) * torch.tensor(count / size, dtype=torch.float32)
        low = at.long().clamp_max(count - 1)
        high = (low + 1).clamp_max(count - 1)
        fraction = (at - low).to(x).view((-1, 1) if axis == 2 else (-1,))
        left, right = x.index_select(axis, low.to(x.device)), x.index_select(axis, high.to(x.device))
        x = left + (right - left) * fraction
    return x


def prepare(images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 299 299"]:
    """Return (x - 128) / 128 of the resized image: values 0..255 become [-1, 0.99]."""
    return (resize(images.float()) - 128) / 128


def load(path: Path | str | None = None, offline: bool = False) -> FeatureNetwork:
    """Return Inception with the published weights.

    path: weight file; by default the one in the cache folder, which is downloaded at first use
    offline: whether downloads are forbidden
    Raises DownloadError (an OSError) if the file cannot be downloaded or its checksum is wrong, and ValueError if it
    does not have these layers.
    """
    if path is None:
        path = download.fetch(URL, weights_path(), EXPECTED, forbid=offline)
    return from_state_dict(_read(Path(path).expanduser()))


def weights_path() -> Path:
    """Return the path of the weight file in the cache folder, whether it exists or not."""
    return download.cache_folder() / "metrics" / FILE


def from_state_dict(state: dict[str, Tensor]) -> FeatureNetwork:
    """Return Inception with these weights. Raises ValueError if names or shapes differ."""
    network = Inception()
    counters = {name: value for name, value in network.state_dict().items() if name.endswith("num_batches_tracked")}
    try:
        network.load_state_dict(counters | state)
    except (RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"these are not the weights of the 2015 Inception, {FILE}: {reason}") from None
    identity = fingerprint(network, "ResizeBilinear 299, (x - 128) / 128")
    # as in the published evaluator, the Inception Score uses logits without the bias: softmax(pool_3 W)
    return FeatureNetwork("Inception", ready(network.fold()), prepare, identity, Head(network.fc.weight))


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; the weights of Inception are at {URL}")
    try:
        state: dict[str, Tensor] = pickles.load(path)
        pairs = state.items() if isinstance(state, dict) else [(None, None)]
        if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in pairs):
            raise CheckpointError("it does not hold a state dict")
        weights = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
        for name, value in weights.items():
            check_stored(name, value, path.stat().st_size)
        check_values(path, weights)
    except (CheckpointError, RuntimeError) as error:  # torch raises RuntimeError for tensors of unusual kinds
        raise ValueError(f"{path} cannot be read as weights: {str(error).removeprefix(f'{path} ')}") from None
    return state
