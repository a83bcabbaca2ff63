"""Options of the commands that measure a model on real images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from admg.config import check, setting
from admg.data.config import as_range, check_value_range

RANGE_TEXT = "as in training, or from the type of the values"


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Images.

    split: part of the data to read, if there are both a train and a test part
    fit: fitting of images smaller than the model's: resize enlarges them, pad adds a border
    value_range: values of black and white in the images
    device: cpu or cuda
    """

    split: Literal["train", "test"] = "test"
    fit: Literal["resize", "pad"] | None = None
    value_range: tuple[float, ...] = setting((), metavar="LOW,HIGH", dashes=True, default_text=RANGE_TEXT)
    device: str = setting("auto", default_text="cuda if available")

    def __post_init__(self) -> None:
        check(self)
        check_value_range(self.value_range)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of `nll` and `diagnose_checkpoint`."""
        options = {"split": self.split, "fit": self.fit, "device": self.device}
        return options | {"value_range": as_range(self.value_range)}
