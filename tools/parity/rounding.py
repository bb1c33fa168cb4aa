"""Image networks that round as those of the releases do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from torch import Tensor, nn

from bevdet_core.models import resnet


@contextmanager
def released_rounding() -> Iterator[None]:
    """Run a ResNet's convolutions and norms one after the other, on maps with the channels first.

    Ours folds norms into convolutions and has the channels last, which rounds otherwise: in single precision as close
    to the exact result, but a ReLU whose input is within rounding of zero may be open in one and closed in the other.
    Its derivative then jumps, and with it gradients of the image network, by more than the tolerance of a record.
    """
    forward = resnet.ResNet.forward

    def channels_first(backbone: resnet.ResNet, x: Tensor) -> list[Tensor]:
        return forward(backbone, x.contiguous())

    def one_by_one(conv: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
        return norm(conv(x))

    with patch.object(resnet.ResNet, "forward", channels_first), patch.object(resnet, "conv_norm", one_by_one):
        yield
