"""Limits on the resources that visitors of the studio can use."""

from __future__ import annotations

from dataclasses import dataclass

from admg.config import check, setting


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits for visitors. Requests that exceed one are refused with a message that names it.

    max_images: images per job
    max_steps: sampling steps per job
    max_seconds: time limit of a job in seconds
    max_waiting: waiting jobs
    max_upload: size of an upload in MiB
    max_megapixels: size of an uploaded picture in millions of pixels
    """

    max_images: int = setting(64, min=1, max=1000)
    max_steps: int = setting(250, min=1, max=4000)
    max_seconds: float = setting(600.0, above=0)
    max_waiting: int = setting(8, min=0, max=30)
    max_upload: int = setting(10, min=1, max=1000)
    max_megapixels: int = setting(20, min=1, max=1000)

    def __post_init__(self) -> None:
        check(self)

    def check_images(self, num: int) -> None:
        """Raise ValueError if a job may not have this number of images."""
        if not 1 <= num <= self.max_images:
            raise ValueError(f"the number of images must be from 1 to {self.max_images}, got {num:,}")

    def check_steps(self, steps: int) -> None:
        """Raise ValueError if a job may not have this number of steps."""
        if not 1 <= steps <= self.max_steps:
            raise ValueError(f"the number of steps must be from 1 to {self.max_steps}, got {steps:,}")
