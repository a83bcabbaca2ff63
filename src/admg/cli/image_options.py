"""Options of the commands that measure a model on real images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from admg.config import check, setting


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Images.

    split: part of data that have both
    fit: how images smaller than the model's are fitted: resize enlarges them, pad adds a black border
    device: cpu or cuda
    """

    split: Literal["train", "test"] = "test"
    fit: Literal["resize", "pad"] | None = None
    device: str = setting("auto", default_text="cuda if available")

    def __post_init__(self) -> None:
        check(self)
