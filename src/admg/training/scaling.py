"""The scale of the loss in fp16, so that small gradients do not underflow: torch's GradScaler."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LOWEST = 2.0**-14
"""Scale at which even gradients of 1e9 do not overflow in fp16."""


class LossScaler:
    """Scales the loss, skips steps whose gradient is not finite, and halves the scale after them.

    After 2000 steps without an overflow, the scale is doubled. All processes have the same gradient, and therefore
    skip the same steps.

    enabled: whether to scale; otherwise the loss is unchanged, and every step is taken
    """

    def __init__(self, device: torch.device, enabled: bool) -> None:
        self.enabled = enabled
        self.scaler = torch.amp.GradScaler(device.type, enabled=enabled)

    def scale(self, loss: Tensor) -> Tensor:
        """Return the scaled loss, whose gradient is computed."""
        return self.scaler.scale(loss)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by the scale."""
        self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer, number: int) -> bool:
        """Take a step of the optimiser, unless the gradient is not finite, and return whether it was taken.

        number: index of the step, for the message

        Raises FloatingPointError if gradients overflow at every scale.
        """
        before = self.scaler.get_scale()
        self.scaler.step(optimizer)
        self.scaler.update()
        after = self.scaler.get_scale()
        if after < LOWEST:
            raise FloatingPointError(f"the gradient of step {number} overflows in fp16 at any scale; try fp32 or bf16")
        return after >= before

    def measurements(self, like: Tensor) -> dict[str, Tensor]:
        """Return the scale after the step, for the log; nothing if the loss is not scaled.

        like: tensor on the device for the measurement
        """
        return {"loss_scale": like.new_tensor(self.scaler.get_scale())} if self.enabled else {}

    def state_dict(self) -> dict[str, Any]:
        """Return the scale, and the number of steps since it changed."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.scaler.load_state_dict(state)
