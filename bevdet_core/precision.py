"""The number format that a network computes with."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from .config import Precision


def resolve(precision: Precision, setting: str) -> Literal["fp32", "bf16", "fp16"]:
    """The format that is meant on this machine.

    Args:
        precision: what was asked for.
        setting: where, for the message.

    Raises:
        ValueError: an unknown one, or fp16 without a GPU, where it has neither speed nor range to offer.
    """
    if precision == "auto":
        return native()
    if precision not in get_args(Precision):
        raise ValueError(f"{setting} must be one of {', '.join(get_args(Precision))}, got {precision!r}")
    if precision == "fp16" and not torch.cuda.is_available():
        raise ValueError(f"{setting} fp16 needs a GPU; on a CPU choose fp32, bf16 or auto")
    return precision


def native() -> Literal["fp32", "bf16"]:
    """bf16 where the device has units that multiply matrices of it, which is about twice as fast; float32 elsewhere.

    A CPU with instructions for bf16 alone (`avx512_bf16`) is slower with it: it gains less than conversions cost.
    """
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp32"
    features: dict = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch cannot tell
    return "bf16" if features.get("amx_bf16") or features.get("arm_bf16") else "fp32"


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """A context in which a network computes with a format."""
    resolved = resolve(precision, "precision")
    dtype = torch.float16 if resolved == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=resolved != "fp32")
