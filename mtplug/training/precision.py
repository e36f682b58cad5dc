"""Devices and mixed precision."""

from __future__ import annotations

import contextlib

import torch

from mtplug.errors import MtplugError, UserError


def pick_device(name: str) -> torch.device:
    """The device of that name; auto: a GPU if there is one.

    Raises:
        UserError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        if "device string" in first:  # torch lists twenty others
            first = "expected auto, cpu, cuda or cuda:N"
        raise UserError(f"device '{name}' cannot be used here: {first}") from None
    return device


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bf16 products, which are emulated otherwise: on a CPU
    without them measured at a sixtieth of the speed of fp32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    instructions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in instructions)


def resolved(precision: str, device: torch.device) -> str:
    """`auto` as what it stands for on a device; any other as it is."""
    if precision != "auto":
        return precision
    return "bf16" if multiplies_bf16(device) else "fp32"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Mixed precision for forward passes, or nothing for fp32."""
    precision = resolved(precision, device)
    if precision == "fp32":
        return contextlib.nullcontext()
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype)


class LossScale:
    """The factor that keeps fp16 gradients from vanishing (Micikevicius et al. 2018, section 3.2).

    It halves when a gradient overflows, and doubles after so many updates without.
    """

    INTERVAL = 2000

    def __init__(self) -> None:
        self.value, self.good = 2.0**15, 0

    def adapt(self, overflowed: bool) -> None:
        """After each update.

        Raises:
            MtplugError: gradients overflow whatever the factor, so they are not finite at all.
        """
        if overflowed:
            self.value, self.good = self.value / 2, 0
            if self.value < 2.0**-14:
                raise MtplugError(
                    "fp16: gradients are not finite at any loss scale; try training.precision=bf16, "
                    "a lower optimizer.lr or a longer warm-up"
                )
            return
        self.good += 1
        if self.good == self.INTERVAL:
            self.value, self.good = min(self.value * 2, 2.0**24), 0

    def state(self) -> list[float]:
        return [self.value, self.good]

    def restore(self, state: list[float]) -> None:
        self.value, self.good = state[0], int(state[1])
