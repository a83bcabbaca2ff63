"""Small data, models and settings in place of those that the documentation names, so that its blocks run in seconds."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import torch
from doc_blocks import ROOT
from helpers import randomised
from PIL import Image

import admg
from admg.checkpoints import loading
from admg.checkpoints.labels import Labels
from admg.cli.main import COMMANDS, main
from admg.diffusion.config import DiffusionConfig
from admg.models import ClassifierConfig, NoisyClassifier, SuperResConfig, SuperResUNet, UNet, UNetConfig

SIZE = 16
BELOW = "8"
SMALL = {
    "channels": 32,
    "channel_mult": (1, 1),
    "num_res_blocks": 1,
    "attention_resolutions": (8,),
    "head_channels": 32,
}
NETWORK = {"--channels": "32", "--channel-mult": "1,1", "--num-res-blocks": "1", "--attention-resolutions": "8",
           "--head-channels": "32", "--dropout": "0"}  # fmt: skip
TRAINING = ("train", "train-classifier", "train-upsampler")
REPLACING = ("sample", "edit", "interpolate", "upsample")
SUBCOMMANDS = [command.split() for command in COMMANDS if " " in command]
DATA = ("--data", "--val-data", "--reference", "--images", "--image", "--base")
"""Options whose values are files or folders of images."""
MODELS = ("--model", "--classifier", "--upsampler", "--init")
FEATURES = "features.py:Pixels"
"""In place of Inception, which is downloaded."""


class StandIns:
    """The stand-ins of a page, in the current directory.

    root: folder of the models that stand for those of OpenAI
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        if not root.exists():
            save_models(root)
        Path("features.py").write_text(
            "import torch\n\n\nclass Pixels(torch.nn.Module):\n    def forward(self, x):\n"
            "        return torch.nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)\n"
        )

    # -- shell ---------------------------------------------------------------------------------------------------

    def fitted(self, words: list[str]) -> list[str]:
        """Return the words of a command with small settings, after making the files that they name."""
        command = " ".join(words[:2]) if words[:2] in SUBCOMMANDS else words[0]
        rest = words[len(command.split()) :]
        rest = [self.openai(word) for word in rest] if command not in ("info", "models", "recipes") else rest
        rest = without([self.existing(word) for word in rest], "--gpus")  # which starts processes
        for value in [value for value in values(rest, "--config") if not Path(value).exists()]:
            Path(value).write_text('data = "photos"\n')
            self.data("photos")
        for option in DATA:
            for value in values(rest, option):
                self.data(value)
        for option in MODELS:
            for value in values(rest, option):
                self.model(
                    value, "classifier" if option == "--classifier" or command == "train-classifier" else "model"
                )
        if command in TRAINING:
            return [command, *self.training(command, rest)]
        if command in ("evaluate", "neighbours", "data info", "data pack", "import-openai", "diagnose"):
            for value in positional(rest):
                self.data(value)
        if command in ("export", "info"):
            for value in positional(rest):
                self.model(value, "model")
        if command == "ema" and not Path(rest[0]).exists():
            self.data("photos")
            assert main(self.fitted(f"train --data photos --ema-snapshots 1 --out {rest[0]}".split())) == 0
        if command == "ema" and "--step" in rest:
            rest = limited(rest, "--step", "6")
        compares = command != "ema" or "--reference" in rest
        if command in ("evaluate", "neighbours", "sweep", "ema") and compares:
            rest = limited(rest, "--network", FEATURES) if "efficientnet-lite0" not in rest else rest
        if command in ("sample", "edit", "interpolate", "upsample", "sweep", "ema", "evaluate nll") and compares:
            rest = self.sampling(command, rest)
        if command == "tune-steps":
            for option, value in {"--steps": "5", "--fine": "6", "--num": "1", "--precision": "fp32"}.items():
                rest = limited(rest, option, value)
        if command == "diagnose":
            rest = limited(rest, "--num", "2")
        if "--flags" in rest:  # those of the stand-in
            rest[rest.index("--flags") + 1] = (self.root / "flags.txt").read_text()
        return [*command.split(), *rest]

    def training(self, command: str, rest: list[str]) -> list[str]:
        """Return the options of a training of two steps of a tiny network."""
        options = {"--steps": "2", "--batch-size": "2", "--precision": "fp32", "--preview-every": "2",
                   "--log-every": "1"}  # fmt: skip
        if "--ema-snapshots" in rest:
            options |= {"--steps": "12", "--ema-snapshots": "1", "--preview-every": "12"}
        if "--resume" not in rest:
            for option, value in options.items():
                rest = limited(rest, option, value)
        for option, value in {"--evaluate-every": "2", "--evaluate-num": "4", "--evaluate-network": FEATURES,
                              "--warmup": "1", "--log": "none", "--lr-anneal-steps": "2", "--workers": "0",
                              "--accumulate": "1",
                              "--checkpoint-every": "2", "--val-images": "4"}.items():  # fmt: skip
            rest = limited(rest, option, value) if option in rest else rest
        if "--init" in rest:
            size = "32" if "fashion-mnist" in rest else str(SIZE)
            rest = limited(rest, "--image-size", size)
            return without(rest, "--init-flags")
        below = any(name in rest for name in ("runs/base", "runs/classifier"))  # whose samples are enlarged
        rest = limited(rest, "--image-size", BELOW if below else str(SIZE))
        rest = limited(rest, "--small-size", BELOW) if command == "train-upsampler" else rest
        for option, value in NETWORK.items():
            rest = limited(rest, option, value)
        return [word for word in rest if word != "--shard"]

    def sampling(self, command: str, rest: list[str]) -> list[str]:
        """Return the options of sampling few images in few steps."""
        steps = values(rest, "--steps")
        rest = (
            limited(rest, "--steps", re.sub(r"\d{2,}", "5", steps[0]) if steps else "2")
            if command != "evaluate nll"
            else rest
        )
        if command not in ("interpolate",):
            rest = limited(rest, "--num", "8")
        rest = [*rest, "--overwrite"] if command in REPLACING and Path(*values(rest, "--out")).exists() else rest
        rest = limited(rest, "--frames", "3") if command == "interpolate" else rest
        rest = limited(rest, "--num-reference", "8") if command in ("sweep", "ema") else rest
        published = any(str(self.root) in value for value in values(rest, "--model"))
        if published and command == "sample" and not {"--classifier", "--cfg", "--upsampler"} & set(rest):
            rest = [*rest, "--classifier", str(self.root / "classifier")]
        return rest

    # -- Python --------------------------------------------------------------------------------------------------

    def fitted_python(self, code: str) -> str:
        """Return a block of Python with small settings, after making the files that it names and that are missing."""
        code = re.sub(r'"(openai/[\w-]+)"', lambda m: repr(self.openai(m[1])), code)
        code = re.sub(r"\bsteps=\d[\d_]+", "steps=3", code).replace('-images", 64)', '-images", 16)')
        code = code.replace("respace(25)", "respace(3)")
        code = re.sub(r"\brange\(500\)", "range(2)", code)
        code = re.sub(r"\bnum=\d+", "num=4", code)
        code = re.sub(r'flags="[^"]*"', f"flags={(self.root / 'flags.txt').read_text()!r}", code)
        code = code.replace('recipe("adm-64")', 'recipe("small-32")').replace('"runs/adm-64"', '"runs/small-32"')
        code = re.sub(r'"([\w/.-]+\.npz)"', lambda m: repr(self.existing(m[1])), code)
        folders = r"photos|my-images|imagenet/train|data/emoji/\w+|[\w-]*images"
        for name in re.findall(rf'"([\w/.-]+\.(?:npz|pt|png)|{folders})"', code):
            self.data(name)
        return code

    # -- files ---------------------------------------------------------------------------------------------------

    def openai(self, word: str) -> str:
        """Return the stand-in of a published model."""
        if not re.fullmatch(r"openai/[\w-]+", word):
            return word
        kind = "classifier" if word.endswith("classifier") else "upsampler" if re.search(r"-to-", word) else "model"
        return str(self.root / kind)

    def existing(self, word: str) -> str:
        """Return the one .npz of samples in the folder of a file whose name has other numbers."""
        path = Path(word)
        if re.match(r"samples_\d+x\d+x\d+x\d+\.npz$", path.name) and not path.exists():
            found = sorted(path.parent.glob("samples_*.npz"))
            return str(found[0]) if found else word
        file = word.partition(":")[0]
        if word.startswith(("tests/", "examples/", "tools/", "benchmarks/")) and (ROOT / file).exists():
            return f"{ROOT}/{word}"
        return word

    def data(self, name: str) -> None:
        """Make images under this name if there are none: a folder with two classes, an .npz, a zip or a picture."""
        path = Path(name)
        if path.exists() or name.startswith("hf:") or "{" in name or name.startswith("-"):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(0)
        grey = "digits" in name or "fashion" in name
        width = SIZE + 4 if name.startswith("my-") and not path.suffix else SIZE  # photographs are not square
        images = rng.integers(0, 256, (24, SIZE, width, 1 if grey else 3), dtype=np.uint8)
        if path.suffix == ".npz":
            np.savez(path, arr_0=images, arr_1=np.arange(24) % 2)
        elif path.suffix == ".pt":
            shutil.copy(self.root / "model.pt", path)
        elif path.suffix in (".png", ".jpg"):
            Image.fromarray(rng.integers(0, 256, (32, 32), dtype=np.uint8)).save(path)
        elif path.suffix == ".zip":
            for _ in admg.data.pack(admg.data.from_arrays(images, ["cat", "dog"] * 12), path):
                pass
        elif not path.suffix or "*" in name:
            for i, image in enumerate(images):
                folder = path / (("n01440764", "n01443537") if "imagenet" in name else ("cat", "dog"))[i % 2]
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image.squeeze()).save(folder / f"{i}.png")

    def model(self, name: str, kind: str) -> None:
        """Make a model under this name if it is a path that does not exist."""
        path = Path(name)
        if path.exists() or name in loading.names() or name.startswith(("openai/", "hf:")):
            return
        if path.suffix == ".pt":
            self.data(name)
        else:
            shutil.copytree(self.root / kind, path)


def save_models(root: Path) -> None:
    """Save tiny networks with random weights for ImageNet's labels: a model, a classifier and an upsampler."""
    process, labels = DiffusionConfig(), Labels.imagenet()
    fields = SMALL | {"image_size": SIZE, "image_channels": 3}
    torch.manual_seed(0)
    unet = randomised(UNet(UNetConfig(**fields, num_classes=1000)), 0)
    model = admg.Model(unet, process.build(), (3, SIZE, SIZE), labels, process, {"label_dropout": 0.1})
    model.save(root / "model")
    classifier = randomised(NoisyClassifier(ClassifierConfig(**fields, num_classes=1000)), 1)
    admg.Classifier(classifier, process.build(), labels, process).save(root / "classifier")
    larger = fields | {"image_size": 2 * SIZE, "attention_resolutions": (16,)}
    super_res = randomised(SuperResUNet(SuperResConfig(**larger, num_classes=1000, small_size=SIZE)), 2)
    admg.Model(super_res, process.build(), (3, 2 * SIZE, 2 * SIZE), labels, process).save(root / "upsampler")
    exported = admg.export.to_openai(dataclasses.replace(model), root / "model.pt")
    (root / "flags.txt").write_text(exported.flags or "")


# -- options of a command --------------------------------------------------------------------------------------------


def values(words: list[str], option: str) -> list[str]:
    """Return the values of an option that may be repeated."""
    return [words[i + 1] for i, word in enumerate(words[:-1]) if word == option]


def positional(words: list[str]) -> list[str]:
    """Return the words that are neither options nor their values; every option is taken to have one."""
    return [word for i, word in enumerate(words) if not word.startswith("--") and (not i or words[i - 1][:2] != "--")]


def limited(words: list[str], option: str, value: str) -> list[str]:
    """Return the words with this value of an option."""
    return [*without(words, option), option, value]


def without(words: list[str], option: str) -> list[str]:
    """Return the words without an option and its value."""
    return [word for i, word in enumerate(words) if word != option and not (i and words[i - 1] == option)]
