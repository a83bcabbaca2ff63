"""Samples stored on disk as they are generated, so that a benchmark can continue or be extended with a larger --num."""

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
class Stored:
    """Stored samples of one setting.

    images: uint8 (N, H, W, C)
    seconds: mean wall-clock time per image
    """

    images: np.ndarray
    seconds: float


class Store:
    """A folder with one .npz file of samples per setting.

    Raises ValueError if the folder was made with other models, seeds or precisions.
    """

    def __init__(self, folder: str | Path, settings: dict[str, Any]):
        self.folder = check_output_folder(folder)
        path = self.folder / "settings.json"
        if path.exists():
            stored = json.loads(path.read_text(encoding="utf-8"))
            differing = [f"{k} was {stored.get(k)}, is now {v}" for k, v in settings.items() if stored.get(k) != v]
            if differing:
                raise ValueError(
                    f"{folder} was made with other settings ({'; '.join(differing)}): choose another --out"
                )
        else:
            with atomic(path) as temporary:
                temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def get(self, key: str) -> Stored | None:
        """Return the stored samples of a setting, or None."""
        path = self.folder / f"{key}.npz"
        if not path.exists():
            return None
        with np.load(path) as content:
            return Stored(content["images"], float(content["seconds"]))

    def fill(self, key: str, num: int, batch: int, make: Callable[[range], Tensor]) -> Stored:
        """Return the first `num` images of a setting. Generate and store those that are missing.

        make: maps a range of image numbers to samples x (N, C, H, W) in [-1, 1]
        Raises FloatingPointError if a sample is not finite.
        """
        from admg.generation.images import to_uint8

        stored = self.get(key)
        while stored is None or len(stored.images) < num:
            count = 0 if stored is None else len(stored.images)
            numbers = range(count, min(num, (count // batch + 1) * batch))
            start = time.monotonic()
            x = make(numbers)
            seconds = time.monotonic() - start
            if not torch.isfinite(x).all():
                raise FloatingPointError(f"{key}: the samples are not finite")
            images = to_uint8(x)
            if stored is not None:
                images, seconds = np.concatenate([stored.images, images]), seconds + stored.seconds * count
            stored = Stored(images, seconds / len(images))
            path = self.folder / f"{key}.npz"
            with atomic(path) as temporary, open(temporary, "wb") as file:
                np.savez_compressed(file, images=stored.images, seconds=stored.seconds)
        return Stored(stored.images[:num], stored.seconds)


def fingerprint(network: torch.nn.Module) -> str:
    """Return a short hash of the weights, so that results of different networks are never mixed in one table."""
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
