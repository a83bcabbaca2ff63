"""Loading models by name, the table of published models, and the commands `models` and `info`."""

from __future__ import annotations

import copy
import dataclasses
import functools
import gzip
import hashlib
import http.server
import json
import math
import shutil
import threading
from pathlib import Path

import helpers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import admg
from admg.checkpoints import loading, native, openai
from admg.checkpoints.describe import describe, describe_model, list_models
from admg.checkpoints.download import DownloadError
from admg.checkpoints.initial import load_initial
from admg.checkpoints.networks import NETWORK_KINDS
from admg.checkpoints.openai import PUBLISHED_FLAGS, PublishedFlags
from admg.checkpoints.published import PUBLISHED, PublishedModel, SamplingSettings
from admg.checkpoints.weights import CheckpointError, DamagedError
from admg.checksums import with_checksum

HERE = Path(__file__).parent
TINY = "--image_size 16 --num_channels 32 --num_res_blocks 1 --channel_mult 1,1 --attention_resolutions 8 "
FLAGS = {
    "diffusion": TINY + "--class_cond True --learn_sigma True --noise_schedule cosine",
    "upsampler": TINY.replace("image_size 16", "large_size 16 --small_size 8") + "--class_cond True --learn_sigma True",
    "classifier": "--image_size 16 --classifier_width 64 --classifier_depth 1 --classifier_channel_mult 1,1 "
    "--classifier_attention_resolutions 8",
}


def state_of(kind: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return NETWORK_KINDS[kind].network(openai.parse(FLAGS[kind], kind).network).state_dict()


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """An empty cache folder, with downloads turned off."""
    monkeypatch.setenv("ADMG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ADMG_OFFLINE", "1")
    (tmp_path / "home" / "openai").mkdir(parents=True)
    return tmp_path / "home"


@pytest.fixture
def tiny(home, monkeypatch) -> Path:
    """Add three tiny models to the published ones: openai/tiny, openai/tiny-classifier and openai/tiny-upsampler."""
    for kind, name in (("diffusion", "tiny"), ("classifier", "tiny-classifier"), ("upsampler", "tiny-upsampler")):
        state, full = state_of(kind), f"openai/{name}"
        torch.save(state, home / "openai" / f"{name}.pt")
        monkeypatch.setitem(PUBLISHED_FLAGS, full, PublishedFlags(kind, FLAGS[kind]))
        count, classifier = sum(v.numel() for v in state.values()), "openai/tiny-classifier"
        own = classifier if kind == "diffusion" else None
        monkeypatch.setitem(PUBLISHED, full, PublishedModel(full, f"{name}.pt", 16, count, classifier=own))
    return home / "openai"


def run(capsys, *arguments) -> str:
    """Run a command in this process and return its output."""
    code, out, err = helpers.run(capsys, *arguments)
    assert code == 0, err
    return out


# --- The table ---


def test_all_fifteen_models_have_the_right_parameters():
    shapes = json.loads(gzip.decompress((HERE.parent / "openai" / "published.json.gz").read_bytes()))
    assert list(PUBLISHED) == list(shapes) and len(PUBLISHED) == 15
    for name, model in PUBLISHED.items():
        parameters = shapes[name]["parameters"]
        assert model.parameters == sum(map(math.prod, parameters.values())), name
        assert model.kind == shapes[name]["kind"]
        of_labels = ("label_emb.weight", 0) if model.kind != "classifier" else ("out.2.c_proj.weight", 0)
        assert model.classes == (parameters[of_labels[0]][of_labels[1]] if of_labels[0] in parameters else 0)


def test_image_sizes_are_those_of_the_flags():
    for model in PUBLISHED.values():
        network = openai.parse(model.flags, model.kind).network
        assert model.image_size == network.image_size
        assert model.small_size == getattr(network, "small_size", 0)


def test_files_and_urls():
    base = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/"
    assert PUBLISHED["openai/imagenet-256-uncond"].url == base + "256x256_diffusion_uncond.pt"
    assert PUBLISHED["openai/imagenet-128-to-512"].url == base + "128_512_upsampler.pt"
    assert PUBLISHED["openai/lsun-horse-nodropout"].url == base + "lsun_horse_nodropout.pt"
    assert PUBLISHED["openai/imagenet-64-classifier"].url == base + "64x64_classifier.pt"
    assert len({model.file for model in PUBLISHED.values()}) == 15
    # the length of this file
    assert 0 < 2_211_383_297 - PUBLISHED["openai/imagenet-256-uncond"].size < 1e6


@pytest.mark.parametrize(
    "name, classifier, scale, fid",
    [
        ("imagenet-64", "imagenet-64-classifier", 1.0, None),
        ("imagenet-128", "imagenet-128-classifier", 0.5, 2.97),
        ("imagenet-256", "imagenet-256-classifier", 1.0, 4.59),
        ("imagenet-256-uncond", "imagenet-256-classifier", 10.0, 12.00),
        ("imagenet-512", "imagenet-512-classifier", 4.0, 7.72),
    ],
)
def test_guided_models(name, classifier, scale, fid):
    name = f"openai/{name}"
    assert loading.default_classifier(name) == f"openai/{classifier}"
    settings = loading.recommended(name)
    assert (settings.scale, settings.sampler, settings.steps) == (scale, "ddpm", "250")
    if fid:
        assert dataclasses.replace(settings, fid=fid) == PUBLISHED[name].best


def test_other_models():
    assert PUBLISHED["openai/imagenet-64"].best.scale == 0 and PUBLISHED["openai/imagenet-64"].best.fid == 2.07
    assert PUBLISHED["openai/imagenet-128"].fast == SamplingSettings(1.0, "ddim", "ddim25")
    assert loading.recommended("openai/lsun-cat") == SamplingSettings(0.0, "ddpm", "1000", 5.57)
    assert loading.default_classifier("openai/lsun-cat") is None
    assert [PUBLISHED[f"openai/imagenet-{n}"].base for n in ("64-to-256", "128-to-512")] == [
        "openai/imagenet-64",
        "openai/imagenet-128",
    ]
    assert loading.default_classifier("fashion-mnist") == "fashion-mnist"
    assert loading.recommended("fashion-mnist") == SamplingSettings(4.0, "ddim", "25")
    assert loading.default_classifier("/some/folder") is None


# --- Loading ---


def test_published_models_load_from_the_cache(tiny):
    model = loading.load("openai/tiny")
    expected = state_of("diffusion")
    assert all(torch.equal(v, expected[k]) for k, v in model.network.state_dict().items())
    assert model.config.noise_schedule == "cosine"  # known only from the flags
    assert model.labels.number("golden retriever") == 207 and model.shape == (3, 16, 16)
    assert model.training["name"] == "openai/tiny" and model.training["url"].endswith("jul-2021/tiny.pt")
    assert json.loads((tiny / "tiny.pt.json").read_text())["size"] == (tiny / "tiny.pt").stat().st_size


def test_the_name_of_a_model_loads_its_own_classifier(tiny):
    classifier = loading.load_classifier("openai/tiny")
    assert classifier.training["name"] == "openai/tiny-classifier" and classifier.labels.name(0) == "tench"
    assert loading.load_upsampler("openai/tiny-upsampler").upsamples


@pytest.mark.thorough
def test_a_published_model_comes_from_the_mirror_at_first_use(tiny, tmp_path, monkeypatch):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tiny))
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *args: None)
    monkeypatch.setenv("ADMG_HOME", str(tmp_path / "empty"))
    monkeypatch.delenv("ADMG_OFFLINE")
    monkeypatch.delenv("http_proxy", raising=False)
    assert not PUBLISHED["openai/tiny"].on_disk
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setenv("ADMG_MIRROR", f"http://127.0.0.1:{server.server_port}")
        assert loading.load("openai/tiny").shape == (3, 16, 16)
        server.shutdown()
    assert PUBLISHED["openai/tiny"].on_disk
    assert loading.load("openai/tiny", offline=True).labels.count == 1000


@pytest.mark.parametrize(
    "load, name, message",
    [
        (
            loading.load,
            "openai/imagenet-64-classifier",
            "expected a model of kind 'diffusion', but openai/imagenet-64-classifier is a published noisy classifier",
        ),
        (
            loading.load,
            "openai/imagenet-64-to-256",
            "is a published upsampler: use it with admg upsample",
        ),
        (
            loading.load_classifier,
            "openai/lsun-cat",
            "expected a model of kind 'classifier', but openai/lsun-cat is a published diffusion model",
        ),
        (
            loading.load_upsampler,
            "openai/imagenet-64",
            "expected a model of kind 'upsampler', but openai/imagenet-64 is a published diffusion model",
        ),
        (loading.load, "imagenet-64", "did you mean 'openai/imagenet-64'"),
        (loading.load, "openai/imagnet-256-uncond", "did you mean 'openai/imagenet-256-uncond'"),
        (loading.load_classifier, "fashion-mnits", "did you mean 'fashion-mnist'"),
        (loading.load, "qqqq", "unknown model 'qqqq': shipped models are fashion-mnist"),
    ],
)
def test_wrong_names_are_refused_with_a_hint(home, load, name, message):
    with pytest.raises(ValueError) as error:
        load(name)
    assert message in str(error.value)


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_offline_says_which_file_to_save_where(home, monkeypatch, by):
    if by == "argument":
        monkeypatch.delenv("ADMG_OFFLINE")
    model = PUBLISHED["openai/imagenet-64"]
    with pytest.raises(DownloadError) as error:
        loading.load("openai/imagenet-64", offline=by == "argument")
    assert f"download {model.url} and save it as {home / 'openai' / '64x64_diffusion.pt'}" in str(error.value)


def test_a_file_that_is_too_small_is_refused(home):
    (home / "openai" / "64x64_classifier.pt").write_bytes(b"PK" + bytes(1000))
    with pytest.raises(DownloadError, match="1,002 bytes but must have at least 261,754,272"):
        loading.load_classifier("openai/imagenet-64-classifier")


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")  # of assumptions about the flags
def test_files_load_without_flags(tiny, tmp_path):
    assert loading.load(tiny / "tiny.pt").shape == (3, 16, 16)
    assert loading.load_upsampler(str(tiny / "tiny-upsampler.pt")).upsamples
    assert loading.load_classifier(tiny / "tiny-classifier.pt").labels.count == 1000
    with pytest.raises(ValueError, match="is a classifier, not a diffusion model"):
        loading.load(tiny / "tiny-classifier.pt")


@pytest.mark.thorough
def test_a_run_starts_from_a_published_model(tiny):
    """With the flags that are known of it, its labels and where it comes from."""
    found = load_initial("openai/tiny", "diffusion")
    assert found.architecture == openai.parse(FLAGS["diffusion"]).network and found.diffusion.noise_schedule == "cosine"
    assert found.is_known and found.labels.count == 1000 and found.training["url"].endswith("tiny.pt")
    expected = state_of("diffusion")
    assert found.state.keys() == expected.keys()
    assert all(torch.equal(v, expected[k]) for k, v in found.state.items())
    assert load_initial("openai/tiny-upsampler", "upsampler").architecture.small_size == 8
    with pytest.raises(ValueError, match=r"kind 'diffusion', but .* is a published noisy classifier"):
        load_initial("openai/tiny-classifier", "diffusion")
    with pytest.raises(ValueError, match="init_flags applies only to files in OpenAI's format"):
        load_initial("openai/tiny", "diffusion", "--image_size 16")


def test_folders_load(tiny_folders):
    assert loading.load(tiny_folders["model"]).shape == (1, 8, 8)
    with pytest.raises(ValueError, match="generates images from noise"):
        loading.load_upsampler(tiny_folders["model"])


# --- The commands ---


def test_models_are_listed(capsys, home):
    with (home / "openai" / "lsun_cat.pt").open("wb") as file:
        file.truncate(4 * 552_814_086)  # sparse: occupies no disk space
    (home / "openai" / "lsun_horse.pt").touch()
    lines = [" ".join(line.split()) for line in run(capsys, "models").splitlines()]
    assert "name kind pixels parameters size classes on disk" in lines
    assert "fashion-mnist diffusion 32 6.1 M 12.2 MB 10 yes" in lines
    assert "openai/imagenet-64-to-256 upsampler 64 -> 256 311.8 M 1.25 GB 1000 no" in lines
    assert "openai/lsun-cat diffusion 256 552.8 M 2.21 GB - yes" in lines
    assert "openai/lsun-horse diffusion 256 552.8 M 2.21 GB - no" in lines  # incomplete
    assert str(home / "openai") in lines[-2]
    listed = run(capsys, "models", "--on-disk")
    assert "openai/lsun-cat" in listed and "fashion-mnist" in listed and "imagenet" not in listed


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_info_without_download(capsys, home, name):
    out, model = run(capsys, "info", name), PUBLISHED[name]
    assert model.url in out and "MIT" in out and "Research" in out and "not on disk" in out
    assert f"{model.parameters:,} parameters" in out
    if model.best:
        assert f"--sampler ddpm --steps {model.best.steps} --scale {model.best.scale:g}" in out
    assert list((home / "openai").iterdir()) == []


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
def test_info_of_a_file(capsys, tiny):
    out = run(capsys, "info", tiny / "tiny-upsampler.pt")
    assert "upsampler, SuperResUNet" in out and "tench" in out


# --- The same from Python ---


def test_the_example_of_load_runs():
    helpers.run_example(loading.load, load=loading.load)


SHIPPED = ["fashion-mnist", "fashion-mnist", "fashion-mnist-small", "emoji", "emoji", "emoji-x2"]
"""The shipped networks, those of admg-models last: two diffusion models have a classifier each."""


def test_listed_models_are_the_shipped_and_the_published_ones(home):
    listed = list_models()
    assert [model.name for model in listed] == [*SHIPPED, *PUBLISHED]
    shipped = listed[0]
    assert (shipped.kind, shipped.image_size, shipped.classes, shipped.on_disk) == ("diffusion", 32, 10, True)
    assert shipped.parameters == sum(p.numel() for p in loading.load("fashion-mnist").network.parameters())
    assert [model.name for model in list_models(only_on_disk=True)] == SHIPPED
    upsampler = next(model for model in listed if model.name == "openai/imagenet-64-to-256")
    assert (upsampler.small_size, upsampler.image_size, upsampler.on_disk) == (64, 256, False)


@pytest.mark.thorough
def test_a_shipped_name_describes_the_model_and_its_classifier():
    model, classifier = describe("fashion-mnist")
    assert (model.kind, classifier.kind) == ("diffusion model", "noisy classifier")
    assert model.architecture == loading.load("fashion-mnist").network.config and model.published is None
    assert model.summary == "diffusion model, grey images of 32x32, 10 labels, 6,088,322 parameters"


def test_a_published_model_is_described_without_its_file(home):
    (found,) = describe("openai/imagenet-256")
    assert found.published is PUBLISHED["openai/imagenet-256"] and found.parameters == 553_838_086
    assert found.architecture == openai.parse(found.published.flags).network and found.labels.name(0) == "tench"


def test_a_network_inside_a_wrapper_is_described(tiny_model):
    wrapped = dataclasses.replace(tiny_model, network=torch.nn.DataParallel(tiny_model.network))
    assert describe_model(wrapped).network == "UNet"
    with pytest.raises(ValueError, match="expected a network of admg, got Identity"):
        describe_model(dataclasses.replace(tiny_model, network=torch.nn.Identity(), takes_labels=False))


@pytest.mark.thorough
def test_load_any_loads_whichever_kind(tiny, tiny_folders):
    assert loading.load_any("openai/tiny-upsampler").kind_name == "upsampler"
    assert loading.load_any("openai/tiny", "classifier").training["name"] == "openai/tiny-classifier"
    assert loading.load_any(tiny_folders["classifier"]).kind_name == "noisy classifier"
    with pytest.raises(ValueError, match="is a noisy classifier, not a diffusion model"):
        loading.load_any(tiny_folders["classifier"], "diffusion")


@pytest.mark.thorough
def test_convert_writes_a_native_checkpoint_and_returns_the_model(tmp_path):
    state = state_of("diffusion")
    model = openai.convert(state, tmp_path / "native", FLAGS["diffusion"])
    loaded = loading.load(tmp_path / "native")
    assert loaded.network.config == model.network.config and loaded.config == model.config
    assert all(torch.equal(value, state[name]) for name, value in loaded.network.state_dict().items())


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_every_flipped_bit_of_the_weights_is_noticed(tiny_model, tmp_path, dtype):
    tiny_model.save(tmp_path / "model", dtype)
    path = tmp_path / "model" / "model.safetensors"
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for position in (8, *rng.integers(0, len(whole), 20).tolist(), len(whole) - 1):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(damaged))
        with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged: its SHA-256"):
            admg.load(tmp_path / "model")
    path.write_bytes(whole)
    admg.load(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    del config["checksum"]
    assert config.pop("sha256") == hashlib.sha256(whole).hexdigest()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))  # as before there were checksums
    admg.load(tmp_path / "model")


@pytest.mark.parametrize("kind", ["diffusion", "classifier"])
def test_the_shipped_weights_have_their_checksum(kind):
    folder = Path(admg.__file__).parent / "weights" / "fashion-mnist" / kind
    recorded = json.loads((folder / "config.json").read_text())["sha256"]
    assert recorded == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.thorough
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_neither_saved_nor_exported_nor_loaded(tiny_model, tmp_path, value):
    tiny_model = copy.deepcopy(tiny_model)
    tiny_model.save(tmp_path / "model")
    whole = (tmp_path / "model" / "model.safetensors").read_bytes()
    weights = dict(copy.deepcopy(tiny_model).network.state_dict())
    torch.save(weights | {"out.2.bias": weights["out.2.bias"] + value}, tmp_path / "a.pt")
    with torch.no_grad():
        tiny_model.network.out[2].bias[0] = value
    with pytest.raises(CheckpointError, match=r"NaN or infinite numbers in out\.2\.bias"):
        tiny_model.save(tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == whole
    for library in ("openai", "diffusers"):
        with pytest.raises(CheckpointError, match=r"NaN or infinite numbers in out\.2\.bias"):
            admg.export.export(tiny_model, library, tmp_path / library)
        assert not (tmp_path / library).exists()
    with pytest.raises(CheckpointError, match=r"a\.pt has NaN or infinite numbers in out\.2\.bias"):
        admg.load(tmp_path / "a.pt")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.complex64])
def test_weights_that_are_no_floats_are_refused(tiny_model, tmp_path, dtype):
    tiny_model.save(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    save_file({name: value.to(dtype) for name, value in load_file(path).items()}, path)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config = with_checksum(config | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="weights must be floating-point"):
        admg.load(tmp_path / "model")


def test_the_small_model_fits_the_shipped_one_as_the_bad_model_of_autoguidance():
    good, small = loading.load("fashion-mnist"), loading.load("fashion-mnist-small")
    assert (small.config, small.label_names, small.shape) == (good.config, good.label_names, good.shape)
    count = [sum(p.numel() for p in model.network.parameters()) for model in (small, good)]
    assert 3 * count[0] < count[1]
    assert small.training["images"] < good.training["images"]
    assert loading.recommended("fashion-mnist-small").scale == 0  # it has no classifier of its own
    assert loading.recommended("fashion-mnist").scale > 0


def test_the_models_of_admg_models_fit_each_other():
    model, classifier, upsampler = admg.load("emoji"), admg.load_classifier("emoji"), admg.load_upsampler("emoji-x2")
    assert model.label_names == classifier.label_names == upsampler.label_names and len(model.label_names) == 12
    assert model.shape == (3, 32, 32) and upsampler.shape == (3, 64, 64) and upsampler.upsamples
    assert loading.default_classifier("emoji") == "emoji" and loading.default_classifier("emoji-x2") is None


def test_without_admg_models_its_names_are_refused_with_the_package_to_install(monkeypatch, capsys):
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    assert loading.names() == ["fashion-mnist", "fashion-mnist-small"]
    for load, name in ((admg.load, "emoji"), (admg.load_classifier, "emoji"), (admg.load_upsampler, "emoji-x2")):
        with pytest.raises(
            ValueError,
            match=f"{name} is in the package admg-models, which is not .*pip install ./models",
        ):
            load(name)
    assert "The package admg-models adds emoji, emoji-x2 (in a clone" in run(capsys, "models")


def test_a_name_that_is_also_a_folder_with_a_model_is_refused(capsys, tiny_folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fashion-mnist").mkdir()
    assert admg.load("fashion-mnist").shape == (1, 32, 32)  # a folder of something else
    shutil.copytree(tiny_folders["model"], tmp_path / "fashion-mnist" / "model")  # as in a run directory
    with pytest.raises(ValueError, match=r"shipped model, but the folder ./fashion-mnist also holds a model"):
        admg.load("fashion-mnist")
    assert admg.load("./fashion-mnist").shape == (1, 8, 8)


def test_a_classifier_that_a_shipped_model_does_not_have():
    with pytest.raises(ValueError, match="fashion-mnist-small has no classifier of its own"):
        admg.load_classifier("fashion-mnist-small")


def test_weights_that_are_replaced_while_they_are_read_are_those_that_were_opened(tmp_path):
    """Their checksum is computed meanwhile, and of the same file."""
    model = loading.load("fashion-mnist-small")
    model.save(tmp_path / "model")
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    checksum = native.read_about(tmp_path / "model").sha256
    with native.verified_state(tmp_path / "model", checksum) as state:
        with torch.no_grad():
            for parameter in model.network.parameters():
                parameter.zero_()
        model.save(tmp_path / "model")
        assert all(torch.equal(value, before[name]) for name, value in state.items())
    with pytest.raises(DamagedError, match="is damaged"), native.verified_state(tmp_path / "model", checksum):
        pass
