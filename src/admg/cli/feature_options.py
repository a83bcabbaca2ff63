"""Options of the commands that compare images by the features of a network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from admg.config import check, setting
from admg.data.config import GREY_LEVELS, Background, as_range, check_value_range
from admg.engine.device import Processes


@dataclass(frozen=True, kw_only=True)
class FeatureOptions:
    """Features.

    network: feature network: inception (of 2015, which defines FID; downloaded at first use), efficientnet-lite0 (no
        download), dinov2_vitl14 and its variants, or file.py:name of a torch.nn.Module
    weights: weight file of Inception, weights-inception-2015-12-05-6726825d.pth
    fit: fitting of images of another size to that of the samples: resize (scale and crop) or pad (a border)
    value_range: values of black and white in the images that samples are compared with
    background: colour behind transparent pixels and around padded images
    batch_size: number of images per batch
    device: cpu or cuda
    cache: folder in which features are cached
    no_cache: do not cache features
    """

    network: str = setting("inception", metavar="NAME")
    weights: str | None = setting(None, metavar="FILE")
    fit: Literal["resize", "pad"] | None = None
    value_range: tuple[float, ...] = setting(
        (), metavar="LOW,HIGH", dashes=True, default_text="from the type of the values, if unambiguous"
    )
    background: Background | None = setting(None, default_text="white behind; black around if none is transparent")
    batch_size: int = setting(50, min=1)
    device: str = setting("auto", default_text="cuda if available")
    cache: Path | None = setting(None, metavar="DIR", default_text="in admg's cache folder")
    no_cache: bool = False

    def __post_init__(self) -> None:
        check(self)
        check_value_range(self.value_range)
        if self.no_cache and self.cache is not None:
            raise ValueError("no_cache cannot be combined with --cache")
        if self.no_cache and Processes.from_environment().count > 1:
            raise ValueError("no_cache requires a single process: several share their features through the cache")

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of `admg.evaluate` and of other functions that compare images."""
        return self.of_sweep | {
            "background": None if self.background is None else GREY_LEVELS[self.background],
            "batch_size": self.batch_size,
            "device": self.device,
            "processes": Processes.from_environment(),
        }

    @property
    def of_sweep(self) -> dict[str, Any]:
        """Those of them that are fields of `evaluation.sweep.Metrics`, without the batch size."""
        return {
            "features": self.network,
            "weights": self.weights,
            "fit": self.fit,
            "value_range": as_range(self.value_range),
            "cache": False if self.no_cache else self.cache or True,
        }
