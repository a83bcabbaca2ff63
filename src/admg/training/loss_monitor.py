"""Detects failing training: steps without a finite gradient, or a loss far above its level."""

from __future__ import annotations

import math
from dataclasses import dataclass

MAX_SKIPPED_STEPS = 10
"""Number of consecutive steps without a finite gradient after which a run is rolled back."""
MAX_HIGH_STEPS = 25
"""Number of consecutive steps with a loss far above its level after which a run is rolled back."""
WARMUP_STEPS = 200
"""Number of steps after which the level is known."""
EMA_RATE = 0.02
"""Weight of a step in the level: it follows the loss of about the last 50 steps."""
OUTLIER_FACTOR = 10.0
"""A loss is far above its level if it exceeds it by this many mean deviations, and by this many times itself."""


@dataclass
class LossMonitor:
    """Follows the loss of a run. It does not depend on the units of the loss.

    level: moving average of the losses that are not far above it
    deviation: moving average of their distance from it
    """

    level: float = 0.0
    deviation: float = 0.0
    count: int = 0
    skipped: int = 0
    high: int = 0

    def add(self, loss: float, taken: bool) -> str | None:
        """Add the loss of a step. Return why the run should be rolled back, or None.

        taken: whether the step changed the weights, which it does if its loss and its gradient are finite
        """
        self.skipped = 0 if taken else self.skipped + 1
        if self.skipped >= MAX_SKIPPED_STEPS:
            return f"{MAX_SKIPPED_STEPS} steps in a row had no finite loss or gradient"
        if not taken:
            return None
        if self.count >= WARMUP_STEPS and loss > self.level + OUTLIER_FACTOR * max(self.deviation, abs(self.level)):
            self.high += 1
            if self.high < MAX_HIGH_STEPS:
                return None
            level = f"{OUTLIER_FACTOR:g} times its level of {self.level:.3g}"
            return f"the loss was above {level} for {MAX_HIGH_STEPS} steps in a row"
        self.high = 0
        self.count += 1
        rate = max(EMA_RATE, 1 / self.count)
        self.deviation += rate * (abs(loss - self.level) - self.deviation) if self.count > 1 else 0.0
        self.level += rate * (loss - self.level)
        return None

    @property
    def is_good(self) -> bool:
        """Whether the last step was taken and its loss was not far above the level."""
        return not self.skipped and not self.high

    def state_dict(self) -> dict[str, float]:
        """Return the state, for a checkpoint."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore the state that `state_dict` returned."""
        for name, value in state.items():
            kind = type(getattr(self, name))
            setattr(self, name, kind(value) if math.isfinite(value) else kind())
