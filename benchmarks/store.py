"""Samples of many settings, kept on disk as they are made: a stopped benchmark continues, a larger --num adds to it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from admg.files import atomic, check_output_folder


@dataclass(frozen=True)
class Made:
    """images (N, H, W, C) uint8, and the mean seconds that one took, alone on the machine or not."""

    images: np.ndarray
    seconds: float


class Store:
    """A folder of .npz, one for each setting. ValueError: it holds those of other models or seeds."""

    def __init__(self, folder: str | Path, settings: dict[str, Any]):
        self.folder = check_output_folder(folder)
        path = self.folder / "settings.json"
        if path.exists():
            there = json.loads(path.read_text(encoding="utf-8"))
            differing = [f"{k} {there.get(k)} there, {v} now" for k, v in settings.items() if there.get(k) != v]
            if differing:
                raise ValueError(f"{folder} is of other settings ({'; '.join(differing)}): choose another --out")
        else:
            with atomic(path) as temporary:
                temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def get(self, key: str) -> Made | None:
        path = self.folder / f"{key}.npz"
        if not path.exists():
            return None
        with np.load(path) as content:
            return Made(content["images"], float(content["seconds"]))

    def fill(self, key: str, num: int, batch: int, make: Callable[[range], Tensor]) -> Made:
        """The first `num` images of this setting; make(range of numbers) -> x (N, C, H, W) makes what is missing.

        FloatingPointError: it made an image that is not finite.
        """
        from admg.generation.images import to_uint8

        made = self.get(key)
        while made is None or len(made.images) < num:
            there = 0 if made is None else len(made.images)
            numbers = range(there, min(num, (there // batch + 1) * batch))
            start = time.monotonic()
            x = make(numbers)
            seconds = time.monotonic() - start
            if not torch.isfinite(x).all():
                raise FloatingPointError(f"{key}: samples that are not finite")
            images = to_uint8(x)
            if made is not None:
                images, seconds = np.concatenate([made.images, images]), seconds + made.seconds * there
            made = Made(images, seconds / len(images))
            path = self.folder / f"{key}.npz"
            with atomic(path) as temporary, open(temporary, "wb") as file:
                np.savez_compressed(file, images=made.images, seconds=made.seconds)
        return Made(made.images[:num], made.seconds)


def fingerprint(network: torch.nn.Module) -> str:
    """A short name of these weights, so that figures of two networks cannot get into one table."""
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
