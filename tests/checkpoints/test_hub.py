"""Models on the Hugging Face Hub, of which a server on the loopback interface takes the place."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from helpers import PROCESS, TRUNK, randomised, refused, succeed
from hub_server import running

import admg
from admg.checkpoints.card import MARK
from admg.checkpoints.hub import HubName
from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Classifier, Model
from admg.checkpoints.weights import CheckpointError
from admg.models import ClassifierConfig, NoisyClassifier, SuperResConfig, SuperResUNet, UNet, UNetConfig

REPO = "me/tiny"
URL = "/{repo_id}/resolve/{revision}/{filename}"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The stand-in, as huggingface_hub sees it with HF_ENDPOINT and HF_HUB_CACHE, and a fresh cache."""
    from huggingface_hub import constants

    with running() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + URL)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield server


def tiny(seed: int = 0, labels: int = 2) -> Model:
    config = UNetConfig(**TRUNK, num_classes=labels)
    network = randomised(UNet(config), seed)
    training = {"data": "my-images", "steps": 5, "images": 40}
    return Model(network, PROCESS.build(), (1, 8, 8), Labels.of(["left", "right"][:labels]), PROCESS, training)


def tiny_classifier() -> Classifier:
    network = randomised(NoisyClassifier(ClassifierConfig(**TRUNK, num_classes=2)), 1)
    return Classifier(network, PROCESS.build(), Labels.of(["left", "right"]), PROCESS)


def same(a: Model | Classifier, b: Model | Classifier) -> bool:
    ours, theirs = a.network.state_dict(), b.network.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    "text, place",
    [
        ("user/name", HubName("user/name")),
        ("user/name@v1.0", HubName("user/name", "", "v1.0")),
        ("user/a.b-c_d/classifier/best@refs/pr/1", HubName("user/a.b-c_d", "classifier/best", "refs/pr/1")),
    ],
)
def test_names(text, place):
    assert HubName.parse(text) == place
    assert str(place) == f"hf:{text}"


@pytest.mark.parametrize("text", ["user", "user/", "/name", "user/name@", "user/../name", "../name", "a/b/..", "a b/c"])
def test_what_is_no_name_is_refused(text, capsys):
    assert "is not a model of the Hugging Face Hub: expected user/name" in refused(capsys, "info", f"hf:{text}")


@pytest.mark.thorough
def test_push_and_load_again(hub):
    model = tiny()
    url = model.push_to_hub(REPO, message="First version")
    sha = hub.refs[REPO]["main"]
    assert url == f"{hub.url}/{REPO}/commit/{sha}"
    assert sorted(hub.files(REPO)) == ["README.md", "config.json", "model.safetensors"]
    for loaded in (Model.from_pretrained(REPO), admg.load(f"hf:{REPO}"), Model.from_pretrained(REPO, revision=sha)):
        assert same(model, loaded) and loaded.labels.names == ("left", "right")
        assert loaded.training == {**model.training, "hub": f"{REPO}@{sha}"}


def test_the_card_says_how_to_load_it(hub):
    tiny().push_to_hub(REPO)
    card = hub.files(REPO)["README.md"].decode()
    assert card.startswith("---\nlibrary_name: admg\npipeline_tag: unconditional-image-generation\n")
    assert f'model = admg.load("hf:{REPO}")' in card and "`my-images`" in card
    assert "class-conditional diffusion model for grey images of 8 x 8 pixels with 2 labels" in card


@pytest.mark.thorough
def test_a_card_of_the_owner_stays_and_one_of_ours_is_renewed(hub):
    hub.commit(REPO, {"README.md": b"# Mine\n"})
    tiny().push_to_hub(REPO)
    assert hub.files(REPO)["README.md"] == b"# Mine\n" and "config.json" in hub.files(REPO)
    hub.commit("me/other", {"README.md": f"---\n---\n{MARK}\nold\n".encode()})
    tiny().push_to_hub("me/other")
    assert b"old" not in hub.files("me/other")["README.md"]


@pytest.mark.thorough
def test_revisions(hub):
    first, second = tiny(1), tiny(2)
    first.push_to_hub(REPO)
    hub.refs[REPO]["v1"] = hub.refs[REPO]["main"]
    second.push_to_hub(REPO)
    assert same(first, admg.load(f"hf:{REPO}@v1")) and same(first, Model.from_pretrained(f"{REPO}@v1"))
    assert same(second, admg.load(f"hf:{REPO}"))
    with pytest.raises(ValueError, match=rf"hf:{REPO}@v7: the repository has no such revision"):
        admg.load(f"hf:{REPO}@v7")


@pytest.mark.thorough
def test_a_folder_within_a_repository_and_other_kinds(hub, capsys):
    classifier, model = tiny_classifier(), tiny()
    model.push_to_hub(f"{REPO}/diffusion")
    classifier.push_to_hub(f"{REPO}/classifier")
    assert same(classifier, Classifier.from_pretrained(f"{REPO}/classifier"))
    assert same(classifier, admg.load_classifier(f"hf:{REPO}/classifier"))
    assert same(model, Model.from_pretrained(f"{REPO}/diffusion"))
    with pytest.raises(ValueError, match="is a noisy classifier, not a diffusion model"):
        Model.from_pretrained(f"{REPO}/classifier")
    with pytest.raises(ValueError, match="hf:me/tiny/other: the repository has no model in the folder 'other'"):
        admg.load(f"hf:{REPO}/other")
    assert "noisy classifier" in succeed(capsys, "info", f"hf:{REPO}/classifier")


@pytest.mark.thorough
def test_an_upsampler(hub):
    network = randomised(SuperResUNet(SuperResConfig(**TRUNK, small_size=4)), 3)
    Model(network, PROCESS.build(), (1, 8, 8), config=PROCESS).push_to_hub(REPO)
    assert b"pipeline_tag: image-to-image" in hub.files(REPO)["README.md"]
    loaded = admg.load_upsampler(f"hf:{REPO}")
    assert loaded.upsamples and torch.equal(network.out[2].weight, loaded.network.out[2].weight)
    assert Model.from_pretrained(REPO).upsamples


@pytest.mark.thorough
def test_the_cache_serves_without_the_hub(hub, monkeypatch):
    from huggingface_hub import constants

    model = tiny()
    model.push_to_hub(REPO)
    admg.load(f"hf:{REPO}")
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert same(model, admg.load(f"hf:{REPO}"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert same(model, admg.load(f"hf:{REPO}", offline=True)) and not hub.requests
    monkeypatch.setenv("ADMG_OFFLINE", "1")
    with pytest.raises(OSError, match=r"hf:me/new is not in the cache of the Hub, and downloads are off"):
        admg.load("hf:me/new")


@pytest.mark.thorough
def test_a_damaged_file_is_refused(hub):
    tiny().push_to_hub(REPO)
    files = hub.files(REPO)
    files["model.safetensors"] = files["model.safetensors"][:-1] + b"\x7f"
    with pytest.raises(
        CheckpointError, match=r"^hf:me/tiny: .*is damaged: its SHA-256 .*: remove it to download it again$"
    ):
        admg.load(f"hf:{REPO}")


@pytest.mark.thorough
def test_what_cannot_be_had_is_said_in_one_line(hub, monkeypatch, capsys):
    hub.commit("me/closed", {})
    hub.gated.add("me/closed")
    assert "hf:me/none: no such model, or it is private" in refused(capsys, "info", "hf:me/none")
    assert "hf:me/closed: the owner grants access on the page of the model" in refused(capsys, "info", "hf:me/closed")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OSError, match=r"^hf:me/tiny: the Hub cannot be reached \(.*refused\)$"):
        tiny().push_to_hub(REPO)


def test_a_repository_without_a_model(hub):
    hub.commit("me/text", {"notes.txt": b"", "config.json": b"{}"})
    with pytest.raises(CheckpointError, match=r"hf:me/text: .* does not belong to an admg checkpoint .* is missing\)$"):
        admg.load("hf:me/text")


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"need huggingface_hub: pip install 'admg\[hub\]'"):
        admg.load("hf:me/tiny")


@pytest.mark.thorough
def test_save_pretrained_writes_a_card_and_keeps_the_owners(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path / "m")
    assert MARK in (tmp_path / "m" / "README.md").read_text() and same(model, Model.from_pretrained(tmp_path / "m"))
    (tmp_path / "m" / "README.md").write_text("# Mine\n")
    model.save_pretrained(tmp_path / "m", torch.float16)
    assert (tmp_path / "m" / "README.md").read_text() == "# Mine\n"
    with pytest.raises(ValueError, match="is a folder, which has no revision 'v1'"):
        Model.from_pretrained(tmp_path / "m", revision="v1")


SCRIPT = """
import admg, sys
model = admg.load("hf:me/tiny")
print(model.training["hub"], model.network.out[2].weight.double().sum().item())
"""


@pytest.mark.slow
@pytest.mark.process
def test_the_variables_of_the_hub_are_obeyed(tmp_path):
    """HF_ENDPOINT names the server; with HF_HUB_OFFLINE, the cache is used although the server is gone."""
    model = tiny()
    model.save(tmp_path / "m")
    env = os.environ | {"HF_HOME": str(tmp_path / "home")}
    with running() as server:
        sha = server.commit(REPO, {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()})
        env["HF_ENDPOINT"] = server.url
        outputs = [_python(env)]
    outputs.append(_python(env | {"HF_HUB_OFFLINE": "1"}))
    total = model.network.out[2].weight.double().sum().item()
    assert outputs == [f"{REPO}@{sha} {total}\n"] * 2


def _python(env: dict[str, str]) -> str:
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
