"""A linear layer for long sequences of tokens, at the speed that a CPU can give."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MANY_TOKENS = 256  # below, a convolution's own overhead costs more than it gains


class TokenLinear(nn.Linear):
    """``nn.Linear`` for tokens [B, S, D]: the same parameters and, up to rounding, the same numbers.

    On a CPU long sequences go through a 1x1 convolution. PyTorch hands convolutions to oneDNN but linear layers to the
    BLAS it was built with, which on AMD processors runs at half the speed or less, forward and backward.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, in_features] -> [B, S, out_features]."""
        if x.device.type != "cpu" or x.ndim != 3 or x.shape[1] < MANY_TOKENS or torch.compiler.is_compiling():
            return super().forward(x)
        if torch.get_num_threads() == 1:  # there PyTorch keeps 1x1 convolutions away from oneDNN
            return super().forward(x)
        # A row of S pixels in channels-last order: neither the input nor the output is copied.
        row = x.contiguous().unsqueeze(1).permute(0, 3, 1, 2)  # [B, in_features, 1, S]
        return F.conv2d(row, self.weight[:, :, None, None], self.bias).permute(0, 2, 3, 1).squeeze(1)
