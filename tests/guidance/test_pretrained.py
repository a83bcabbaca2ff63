"""Classifiers and texts of other libraries as guides: their preprocessing, their classes, and where they lead."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import refused, succeed
from PIL import Image
from torch import nn

from admg import guidance
from admg.data import imagenet
from admg.diffusion.gaussian import Diffusion
from admg.diffusion.schedule import NoiseSchedule
from admg.generation.guide_specs import guide_title, load_guides
from admg.generation.identity import identify
from admg.guidance import Preprocessing, State, pretrained
from admg.guidance.pretrained import check_preprocessing, class_number, differing_label, text_embedding


def photo(height: int, width: int, channels: int = 3) -> np.ndarray:
    """A smooth picture with edges, uint8 (H, W, C), that stays within what bicubic interpolation can overshoot."""
    y, x = np.mgrid[:height, :width] / 16
    planes = [120 + 60 * np.sin(x + c) * np.cos(y) + 30 * (x > y) for c in range(channels)]
    return np.stack(planes, -1).round().astype(np.uint8)


def signed(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1


class Model:
    """A diffusion model whose prediction of x0 is x_t scaled, so that gradients are known."""

    conditional, labels = False, SimpleNamespace(count=0)
    diffusion = Diffusion(NoiseSchedule.linear(), "x0", "fixed_small")

    def predict(self, x, t, y=None, clip=True):
        return self.diffusion.predict(0.5 * x, x, t, clip=clip)


def state(x, y=None, index=100) -> State:
    return State(x, index, y, None, Model(), clip=False)


# -- preprocessing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        {"size": {"shortest_edge": 24}, "crop_size": {"height": 20, "width": 20}},
        {"size": {"height": 30, "width": 18}, "do_center_crop": False},
        {"size": {"shortest_edge": 90}, "crop_size": {"height": 64, "width": 64}},
        {"size": {"height": 30, "width": 30}, "do_center_crop": False, "resample": 2, "do_normalize": False},
    ],
)
@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_images_are_prepared_as_transformers_prepares_them(config, size):
    """Pillow rounds rows, then columns, whose weights add up to at most 1.25, to whole values: 1.25 / 2 + 1 / 2."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor, image = CLIPImageProcessorPil(**config), photo(*size)
    ours = Preprocessing.of_transformers(processor.to_dict())
    theirs = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"]
    got = ours(signed(image))
    assert got.shape == theirs.shape
    difference = (got - theirs) * torch.tensor(ours.std).view(-1, 1, 1) * 255
    assert difference.abs().max() < 1.2
    assert difference.abs().mean() < 0.36


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("ConvNext", {"size": {"shortest_edge": 40}, "crop_pct": 0.8}),
        ("ConvNext", {"size": {"shortest_edge": 384}}),
        ("PoolFormer", {"size": {"shortest_edge": 40}, "crop_size": {"height": 36, "width": 36}, "crop_pct": 0.9}),
        ("Levit", {"size": {"shortest_edge": 42}, "crop_size": {"height": 42, "width": 42}}),
        ("MobileViT", {"size": {"shortest_edge": 40}, "crop_size": {"height": 36, "width": 36}, "resample": 2}),
        ("EfficientNet", {"size": {"height": 32, "width": 32}, "include_top": True, "resample": 0}),
        ("EfficientNet", {"size": {"height": 32, "width": 32}, "rescale_factor": 1 / 127.5, "rescale_offset": True}),
        ("ViT", {"size": {"height": 30, "width": 30}, "rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3}),
    ],
)
def test_image_processors_with_rules_of_their_own(name, config):
    """As above, but the ones that divide by 1/127.5 or by std twice give other numbers for the same pixel values."""
    module = import_module(f"transformers.models.{name.lower()}.image_processing_pil_{name.lower()}")
    processor, image = getattr(module, f"{name}ImageProcessorPil")(**config), photo(64, 64)
    ours = Preprocessing.of_transformers(processor.to_dict())
    theirs = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"]
    difference = (ours(signed(image)) - theirs) * torch.tensor(ours.std).view(-1, 1, 1) * 255
    assert difference.abs().max() < 1.2
    check_preprocessing(ours, processor)


def test_image_processors_without_a_counterpart_are_refused():
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    class Inverted(CLIPImageProcessorPil):
        def __call__(self, *arguments, **options):
            return {"pixel_values": -super().__call__(*arguments, **options)["pixel_values"]}

    for config, expected in [
        ({"image_processor_type": "PerceiverImageProcessor"}, "PerceiverImageProcessor is not supported"),
        ({"do_pad": True}, "do_pad=True is not supported"),
        ({"do_rescale": False}, "do_rescale=False is not supported"),
        (
            {**CLIPImageProcessorPil().to_dict(), "size": {"height": 8, "width": 8}, "crop_pct": 0.9},
            "crop_pct is supported for a size of shortest_edge only",
        ),
    ]:
        with pytest.raises(ValueError, match=expected):
            Preprocessing.of_transformers(config)
    with pytest.raises(ValueError, match="Inverted does more than resize, crop and normalise"):
        check_preprocessing(Preprocessing.of_transformers(Inverted().to_dict()), Inverted())


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("ViT", {"size": {"height": 32, "width": 32}}),
        ("ViT", {"size": 32, "do_normalize": True, "do_resize": True, "image_mean": [0.4] * 3, "image_std": [0.3] * 3}),
        ("ViT", {}),
        ("Levit", {"do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3, "size": 224}),
        ("CLIP", {"size": 30}),
    ],
)
@pytest.mark.parametrize("type_name", ["image_processor_type", "feature_extractor_type"])
def test_missing_entries_are_those_of_the_class(name, config, type_name):
    module = import_module(f"transformers.models.{name.lower()}.image_processing_pil_{name.lower()}")
    processor, image = getattr(module, f"{name}ImageProcessorPil")(**config), photo(48, 64)
    suffix = "ImageProcessor" if type_name == "image_processor_type" else "FeatureExtractor"
    entries = pretrained.entries({type_name: name + suffix, **config}, import_module("transformers"))
    ours = Preprocessing.of_transformers(entries)
    theirs = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"]
    got = ours(signed(image))
    assert got.shape == theirs.shape
    difference = (got - theirs) * torch.tensor(ours.std).view(-1, 1, 1) * 255
    assert difference.abs().mean() < 0.36  # see above


@pytest.mark.parametrize(
    ("config", "missing"),
    [
        ({}, "no do_resize and no do_normalize"),
        ({"do_resize": True, "do_normalize": False}, "no size and no resample"),
        ({"do_resize": False, "do_normalize": True, "image_mean": [0.5]}, "no image_std"),
        ({"do_resize": False, "do_normalize": False, "do_center_crop": True}, "no crop_size"),
    ],
)
def test_entries_without_a_class_must_be_complete(config, missing):
    with pytest.raises(ValueError, match=f"has {missing}, whose defaults depend on its class"):
        Preprocessing.of_transformers(config)


def test_texts_of_siglip_are_padded(clip):
    """Its text encoder has no mask, and was trained on texts of the longest length."""
    network, _, tokenizer = clip
    paddings = []

    def recorded(texts, *, padding, **options):
        paddings.append(padding)
        return tokenizer(texts)

    text_embedding(network, recorded, ["a"])
    network.config.model_type = "siglip2"
    text_embedding(network, recorded, ["a"])
    assert paddings == [True, "max_length"]


def test_grey_images_become_three_equal_channels_and_gradients_pass():
    x = signed(photo(20, 20, 1)).requires_grad_()
    prepared = Preprocessing(12, (10, 10), (0.5,) * 3, (0.25,) * 3)(x)
    assert prepared.shape == (1, 3, 10, 10) and torch.equal(prepared[:, 0], prepared[:, 2])
    (gradient,) = torch.autograd.grad(prepared.sum(), x)
    # a constant added to the image is added to each output, (c + 1)/2 of it, over 0.25
    assert gradient.sum().item() == pytest.approx(3 * 100 * 0.5 / 0.25 * 12**2 / 12**2, rel=0.15)
    flat = Preprocessing(12, (10, 10), (0.5,) * 3, (0.25,) * 3)(torch.full((1, 1, 20, 20), 0.2))
    assert (flat - (0.6 - 0.5) / 0.25).abs().max() < 1e-6
    with pytest.raises(ValueError, match="expects images of 3 channels, got 4"):
        Preprocessing()(torch.zeros(1, 4, 8, 8))


def test_the_resize_of_timm_is_that_of_its_evaluation_transform():
    config = {"input_size": (3, 224, 224), "crop_pct": 0.95, "interpolation": "bicubic", "mean": (0.4, 0.5, 0.6),
              "std": (0.2, 0.3, 0.4), "crop_mode": "center"}  # fmt: skip
    ours = Preprocessing.of_timm(config)
    assert ours == Preprocessing(235, (224, 224), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), round_crop=True)
    squashed = Preprocessing.of_timm({**config, "crop_mode": "squash", "interpolation": "bilinear", "crop_pct": 1.0})
    assert squashed.resize == (224, 224) and squashed.interpolation == "bilinear"
    with pytest.raises(ValueError, match="crop_mode of timm must be center or squash, got 'border'"):
        Preprocessing.of_timm({**config, "crop_mode": "border"})


@pytest.mark.parametrize(("cut", "rounded"), [(2, 1), (3, 2), (5, 2), (7, 4), (11, 6), (32, 16)])
def test_the_corner_of_a_crop_is_rounded_as_in_the_library(cut, rounded):
    """By torchvision int(round(cut / 2)), which rounds halves to even numbers, and by transformers cut // 2."""
    ramp = torch.arange(20 + cut, dtype=torch.float32).expand(1, 3, 20 + cut, 20 + cut)
    for round_crop, first in ((True, rounded), (False, cut // 2)):
        plain = Preprocessing(None, (20, 20), (0.0,) * 3, (1.0,) * 3, round_crop=round_crop)
        assert plain(2 * ramp - 1)[0, 0, 0].tolist() == list(range(first, first + 20))


# -- libraries ---------------------------------------------------------------------------------------------------------


class Linear(nn.Module):
    """Logits that are linear in the mean of each channel: class k has the weights of row k."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.pretrained_cfg = {"label_names": ["red", "green", "blue"]}

    def forward(self, x):
        return x.mean((2, 3)) @ self.weight.T


@pytest.fixture
def timm(monkeypatch):
    """A stand-in with the interface of timm that is used."""
    config = {"input_size": (3, 8, 8), "crop_pct": 1.0, "interpolation": "bicubic", "mean": (0.5,) * 3,
              "std": (0.5,) * 3, "crop_mode": "center"}  # fmt: skip
    module, data = ModuleType("timm"), ModuleType("timm.data")

    def create_model(name, pretrained=False):
        if name != "tiny.a1":
            raise RuntimeError(f"Unknown model ({name})")
        assert pretrained
        return Linear(2 * torch.eye(3))

    module.create_model, module.data = create_model, data
    data.resolve_model_data_config = lambda model: config
    monkeypatch.setitem(sys.modules, "timm", module)
    monkeypatch.setitem(sys.modules, "timm.data", data)


@pytest.fixture
def torchvision(monkeypatch):
    """A stand-in with the interface of torchvision.models that is used."""
    package, models = ModuleType("torchvision"), ModuleType("torchvision.models")

    @dataclass
    class Preset:
        crop_size, resize_size = (8,), (8,)
        mean, std, interpolation = (0.5,) * 3, (0.5,) * 3, SimpleNamespace(value="bilinear")

    entry = SimpleNamespace(transforms=Preset, meta={"categories": ["red", "green", "blue"]})
    models.get_model_weights = lambda name: {"DEFAULT": entry}
    models.get_model = lambda name, weights: Linear(2 * torch.eye(3))
    package.models = models
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)


def test_without_downloads_torchvision_takes_files_on_disk_alone(torchvision, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setenv("ADMG_OFFLINE", "1")
    entry = sys.modules["torchvision.models"].get_model_weights("tiny.a1")["DEFAULT"]
    entry.url = "https://host/models/tiny-0123.pth"
    file = tmp_path / "checkpoints" / "tiny-0123.pth"
    with pytest.raises(
        ValueError, match=re.escape(f"torchvision:tiny.a1: {file} is not on disk, and downloads are off")
    ):
        guidance.from_torchvision("tiny.a1", 1)
    file.parent.mkdir()
    file.touch()
    assert guide_title(guidance.from_torchvision("tiny.a1", 1)) == "torchvision:tiny.a1: 1"


@pytest.mark.parametrize("value", ["1", "0"])
def test_without_downloads_the_hub_is_not_asked(timm, monkeypatch, value):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("ADMG_OFFLINE", value)
    seen, make = [], sys.modules["timm"].create_model

    def create_model(name, pretrained=False):
        seen.append(constants.HF_HUB_OFFLINE)
        return make(name, pretrained)

    sys.modules["timm"].create_model = create_model
    guidance.from_timm("tiny.a1", 1)
    assert seen == [value == "1"] and constants.HF_HUB_OFFLINE is False


def test_without_downloads_models_of_timm_without_a_repository_come_from_disk(timm, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setenv("ADMG_OFFLINE", "1")
    for source, missing in (
        ({"url": "https://host/old-0123.pth?download=1"}, True),
        ({"url": "https://host/old-0123.pth", "hf_hub_id": "timm/"}, False),
        ({"url": ""}, False),
    ):
        sys.modules["timm"].get_pretrained_cfg = lambda name, source=source: SimpleNamespace(**source)
        if missing:
            with pytest.raises(ValueError, match=r"timm:tiny\.a1: .*old-0123\.pth is not on disk"):
                guidance.from_timm("tiny.a1", 1)
        else:
            guidance.from_timm("tiny.a1", 1)


def expected(x, label: int, scale: float) -> torch.Tensor:
    """s ∇ log softmax(2 · means of x0)_label with x0 = x_t/2, by hand."""
    means = (0.5 * x).mean((2, 3))
    residual = torch.eye(3)[label] - (2 * means).softmax(1)
    return (scale * residual * 2 * 0.5 / 64)[:, :, None, None].expand_as(x)


@pytest.mark.parametrize("library, make", [("timm", guidance.from_timm), ("torchvision", guidance.from_torchvision)])
@pytest.mark.parametrize("label", ["green", 1, "GREEN", "1"])
def test_a_classifier_guides_to_its_class(library, make, label, request):
    request.getfixturevalue(library)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    guide = make("tiny.a1", label, scale=6.0)
    assert (guide(state(x)) - expected(x, 1, 6.0)).abs().max() < 1e-5
    assert guide_title(guide) == f"{library}:tiny.a1: {label}"


def test_without_a_label_the_samplers_are_followed(timm):
    x, y = torch.randn(2, 3, 8, 8), torch.tensor([2, 0])
    guide = guidance.from_timm("tiny.a1", scale=1.0)
    wanted = torch.stack([expected(x, int(label), 1.0)[i] for i, label in enumerate(y)])
    assert (guide(state(x, y)) - wanted).abs().max() < 1e-6
    given = state(x, y)
    given.model.labels = SimpleNamespace(count=10)
    with pytest.raises(ValueError, match=r"tiny.a1: the model has 10 labels, but the classifier has 3: .*label=\.\.\."):
        guide(given)


def test_classes_by_name():
    names = imagenet.names()
    assert class_number("golden retriever", 1000, (), "x") == names.index("golden retriever")
    assert class_number("Tench, Tinca tinca", 1000, ("tench, Tinca tinca",), "x") == 0
    for name in ("gong", "harp", "tub", "crayfish", "partridge"):  # also synonyms of other classes
        assert class_number(name, 1000, (), "x") == names.index(name)
    theirs = ("chime, bell, gong", "gong, tam-tam", "crane", "drill", "Crane", "bell cote")
    assert class_number("gong", 6, theirs, "x") == 1 and class_number("bell", 6, theirs, "x") == 0
    assert class_number("drill", 6, theirs, "x") == 3
    with pytest.raises(ValueError, match="x: 'crane' is a name of the classes 2 and 4: pass the number"):
        class_number("crane", 6, theirs, "x")
    with pytest.raises(ValueError, match="x: 'panda' is a name of the classes 387 and 388: pass the number"):
        class_number("panda", 1000, (), "x")
    assert differing_label(tuple(names), (), 1000) is None
    with pytest.raises(ValueError, match="x: unknown class 'golden retreiver': did you mean 'golden retriever'"):
        class_number("golden retreiver", 1000, (), "x")
    with pytest.raises(ValueError, match="x: classes are 0 to 2, got 3"):
        class_number(3, 3, (), "x")


def test_what_cannot_be_loaded_is_said_in_one_line(timm, monkeypatch):
    with pytest.raises(ValueError, match=r"^timm cannot load 'none': RuntimeError: Unknown model \(none\)$"):
        guidance.from_timm("none")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"^this guide needs timm: pip install 'admg\[timm\]'$"):
        guidance.from_timm("none")


@pytest.fixture(scope="module")
def clip():
    """A tiny CLIP with random weights, a tokenizer of numbers, and its image processor."""
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**small, "vocab_size": 32, "max_position_embeddings": 8, "eos_token_id": 31},
        vision_config={**small, "image_size": 16, "patch_size": 8}, projection_dim=8,
    )  # fmt: skip
    processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})

    class Tokens(dict):
        def to(self, device):
            return self

    def tokenizer(texts, **options):
        ids = torch.tensor([[1, len(text) % 30, 31] for text in texts])
        return Tokens(input_ids=ids, attention_mask=torch.ones_like(ids))

    return CLIPModel(config).eval(), processor, tokenizer


def test_a_text_guides_to_images_whose_embedding_resembles_it(clip):
    network, processor, tokenizer = clip
    guide = guidance.from_transformers(network, "a red coat", processor=processor, tokenizer=tokenizer, scale=1.0)
    x = torch.randn(2, 3, 20, 20, generator=torch.Generator().manual_seed(1))

    def similarity(x0):
        """By transformers' own forward, on its own preprocessing of the same values."""
        resized = nn.functional.interpolate((x0 + 1) / 2, (16, 16), mode="bicubic", antialias=True)
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (processor.image_mean, processor.image_std))
        output = network(pixel_values=(resized - mean) / std, **tokenizer(["a red coat"]))
        return output.logits_per_image[:, 0] / network.logit_scale.exp()

    leaf = x.clone().requires_grad_()
    cosine = similarity(0.5 * leaf)
    (gradient,) = torch.autograd.grad((-torch.acos(cosine).square() / 2).sum(), leaf)
    assert (guide(state(x)) - gradient).abs().max() < 1e-4 * gradient.abs().max()
    assert guide.title == "clip: a red coat" and guide_title(guide) == "clip: a red coat"
    several = guidance.from_transformers(network, ["a", "bc"], processor=processor, tokenizer=tokenizer)
    assert several(state(x)).shape == x.shape


@pytest.mark.thorough
def test_a_classifier_of_transformers(tmp_path):
    """Saved with its processor and loaded by its folder, as it would be by its name."""
    from transformers import ViTConfig, ViTForImageClassification
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    torch.manual_seed(0)
    config = ViTConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16,
                       patch_size=8, id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1})  # fmt: skip
    network = ViTForImageClassification(config).eval()
    network.save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    x = torch.randn(1, 3, 20, 20)
    guide = guidance.from_transformers(str(tmp_path), label="dog", scale=2.0)
    leaf = x.clone().requires_grad_()
    resized = nn.functional.interpolate((0.5 * leaf + 1) / 2, (16, 16), mode="bilinear", antialias=True)
    log_p = network(pixel_values=(resized - 0.5) / 0.5).logits.log_softmax(-1)[:, 1]
    (gradient,) = torch.autograd.grad(2 * log_p.sum(), leaf)
    assert (guide(state(x)) - gradient).abs().max() < 1e-4 * gradient.abs().max()
    with pytest.raises(ValueError, match="a text needs a model of images and texts such as CLIP, with its tokenizer"):
        guidance.from_transformers(network, "a dog", processor=ViTImageProcessorPil())
    with pytest.raises(ValueError, match=r"^transformers cannot load '.*none'"):
        guidance.from_transformers(str(tmp_path / "none"), label="dog")


@pytest.mark.thorough
def test_a_real_classifier_of_imagenet_leads_to_its_class():
    """EfficientNet-Lite0 from the package of the extra `metrics`: the gradient raises the probability of the class."""
    from admg.evaluation.features import efficientnet

    network = efficientnet.EfficientNetLite0()
    network.load_state_dict(torch.load(efficientnet.weights_path(), map_location="cpu", weights_only=True))
    preprocessing = Preprocessing((224, 224), None, (127 / 255,) * 3, (128 / 255,) * 3)
    classifier = guidance.PretrainedNetwork(network, preprocessing, lambda net, x: net._fc(net(x)))
    guide = guidance.by_classifier(classifier, "banana", 1.0, "EfficientNet-Lite0")
    x, banana = signed(photo(64, 64)), class_number("banana", 1000, (), "x")
    assert banana == 954
    before = classifier(0.5 * x).log_softmax(-1)[0, banana].item()
    for _ in range(5):
        g = guide(state(x))
        x = x + 2.0 * g / g.norm()
    assert classifier(0.5 * x).log_softmax(-1)[0, banana].item() > before + 3


# -- on the command line -----------------------------------------------------------------------------------------------


def test_texts_of_the_command_line(timm, clip, monkeypatch):
    guides = load_guides(Model(), specs=["timm:tiny.a1,label=green,scale=3"], default_scale=4.0)
    assert guides.scale == 0 and guides.others[0].guide.scale == 3.0 and guides.others[0].title == "timm:tiny.a1: green"
    made = []
    monkeypatch.setitem(
        sys.modules["admg.generation.pretrained_specs"].PRETRAINED, "clip",
        (lambda text, **options: made.append((text, options)), frozenset({"model", "scale"})),
    )  # fmt: skip
    load_guides(Model(), specs=["clip:a coat, red, by night.py,scale=70,model=me/clip"])
    assert made == [("a coat, red, by night.py", {"scale": 70.0, "model": "me/clip"})]


def test_equal_guides_have_equal_descriptions(timm):
    one, same, other = (guidance.from_timm("tiny.a1", label) for label in ("green", "green", "red"))
    assert identify(one) == identify(same) != identify(other)


@pytest.mark.parametrize(
    "spec, reason",
    [
        ("timm:", "specify a model, timm:MODEL"),
        ("clip: ", "specify a text, clip:a red coat"),
        ("timm:tiny.a1,scale=big", "scale must be a number, not 'big'"),
        ("clip:coat,label=3", "'label=3' is not an option of clip: expected model, scale, each with ="),
        ("timm:tiny.a1,label=grene", "unknown class 'grene': did you mean 'green'"),
        ("clipp:coat", "unknown guidance 'clipp': "),
    ],
)
def test_bad_texts_are_refused(spec, reason, timm, capsys):
    assert reason in refused(capsys, "sample", "--guide", spec, "--num", 1)


@pytest.mark.thorough
def test_the_command(timm, tiny_folders, tmp_path, capsys):
    """A grey model, and a classifier of colour images with other classes."""
    folder = tmp_path / "out"
    arguments = ["--model", tiny_folders["model"], "--label", 1, "--num", 2, "--steps", 3, "--out", folder]
    succeed(capsys, "sample", *arguments, "--guide", "timm:tiny.a1,label=green")
    assert "holds the finished run" in succeed(capsys, "sample", *arguments, "--guide", "timm:tiny.a1,label=green")
    assert "timm:tiny.a1" in refused(capsys, "sample", *arguments, "--overwrite", "--guide", "timm:tiny.a1")
