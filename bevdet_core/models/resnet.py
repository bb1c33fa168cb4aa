"""ResNet (He et al., 2016), with torchvision's parameter names so that its weights load."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bevdet_ops import ModulatedDeformConv2d

from ..checkpoint import load_weights

Norm = Literal["frozen", "affine", "batch"]
Style = Literal["pytorch", "caffe"]
NormFactory = Callable[[int], nn.Module]

EARLY_STAGES = 3  # with larger maps than weights; in the last it is the other way round
STAGE_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class FrozenBatchNorm2d(nn.Module):
    """Batch norm that keeps the statistics it was given.

    Args:
        channels: of the feature map.
        affine: whether scale and shift learn; otherwise they are fixed as well.
    """

    eps = 1e-5
    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, affine: bool = False) -> None:
        super().__init__()
        if affine:
            self.weight = nn.Parameter(torch.ones(channels))
            self.bias = nn.Parameter(torch.zeros(channels))
        else:
            self.register_buffer("weight", torch.ones(channels))
            self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = scale_and_shift(self)
        return x * scale[:, None, None] + shift[:, None, None]


def scale_and_shift(norm: FrozenBatchNorm2d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """A norm with the statistics that it holds, as y = scale * x + shift, each [C]."""
    assert norm.running_mean is not None  # neither kind of norm is built without statistics
    assert norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


def conv_norm(conv: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """norm(conv(x)); a norm whose statistics stand still is folded into the convolution.

    Folded, it costs no pass over the feature map and keeps no copy of it for the backward pass.
    """
    moving = isinstance(norm, nn.BatchNorm2d) and norm.training
    if moving or not isinstance(conv, nn.Conv2d) or not isinstance(norm, (FrozenBatchNorm2d, nn.BatchNorm2d)):
        return norm(conv(x))
    scale, shift = scale_and_shift(norm)
    return F.conv2d(x, conv.weight * scale[:, None, None, None], shift, conv.stride, conv.padding, conv.dilation)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, of ResNet-18 and 34."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, dilation: int, norm: NormFactory) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, width, 3, stride, dilation)
        self.bn1 = norm(width)
        self.conv2 = _conv(width, width, 3, 1, dilation)
        self.bn2 = norm(width)
        self.downsample = _shortcut(inputs, width, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        y = conv_norm(self.conv1, self.bn1, x).relu_()
        y = conv_norm(self.conv2, self.bn2, y)
        return y.add_(x if self.downsample is None else conv_norm(self.downsample[0], self.downsample[1], x)).relu_()


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, of ResNet-50 and deeper; the 3x3 may be a modulated deformable one."""

    expansion = 4

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int,
        dilation: int,
        norm: NormFactory,
        style: Style = "pytorch",
        deformable: bool = False,
    ) -> None:
        super().__init__()
        outputs = width * self.expansion
        first, second = (1, stride) if style == "pytorch" else (stride, 1)
        self.conv1 = _conv(inputs, width, 1, first)
        self.bn1 = norm(width)
        self.conv2: nn.Module
        if deformable:
            self.conv2 = ModulatedDeformConv2d(width, width, 3, second, dilation, dilation, bias=False)
        else:
            self.conv2 = _conv(width, width, 3, second, dilation)
        self.bn2 = norm(width)
        self.conv3 = _conv(width, outputs, 1)
        self.bn3 = norm(outputs)
        self.downsample = _shortcut(inputs, outputs, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        y = conv_norm(self.conv1, self.bn1, x).relu_()
        y = conv_norm(self.conv2, self.bn2, y).relu_()
        y = conv_norm(self.conv3, self.bn3, y)
        return y.add_(x if self.downsample is None else conv_norm(self.downsample[0], self.downsample[1], x)).relu_()


class ResNet(nn.Module):
    """The image network, without its classifier.

    Args:
        depth: 18, 34, 50, 101 or 152 layers.
        width: channels of the stem; 64 is the published network.
        style: where the stride of a bottleneck sits: "pytorch" in its 3x3, "caffe" in its first 1x1 convolution.
        norm: "batch" learns statistics, scale and shift; "affine" keeps the statistics it is given and learns scale
            and shift; "frozen" keeps both.
        frozen_stages: the stem and this many stages get no gradient and keep their statistics; 0 trains everything.
        out_stages: the stages, from 1 to 4 (strides 4 to 32), whose feature maps are returned. Later ones are not
            built.
        dilation: dilate the last stage instead of striding it (DC5; its stride is then 16).
        deformable_stages: stages whose 3x3 convolutions are modulated deformable ones (DCNv2); bottlenecks only.
        stages: (blocks, width) of each of the four stages, where they are not those of `depth` and `width`. A stage of
            bottlenecks has four times its width in channels.
    """

    def __init__(
        self,
        depth: int = 50,
        width: int = 64,
        style: Style = "pytorch",
        norm: Norm = "frozen",
        frozen_stages: int = 1,
        out_stages: Sequence[int] = (2, 3, 4),
        dilation: bool = False,
        deformable_stages: Sequence[int] = (),
        stages: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        super().__init__()
        if depth not in STAGE_BLOCKS:
            raise ValueError(f"a ResNet has depth {', '.join(map(str, STAGE_BLOCKS))}, got {depth}")
        if not out_stages or list(out_stages) != [stage for stage in (1, 2, 3, 4) if stage in out_stages]:
            raise ValueError(f"out_stages must be ascending stages from 1 to 4, got {tuple(out_stages)}")
        if not 0 <= frozen_stages <= 4:
            raise ValueError(f"frozen_stages must lie between 0 and 4, got {frozen_stages}")
        make_norm: NormFactory = nn.BatchNorm2d
        if norm != "batch":
            make_norm = partial(FrozenBatchNorm2d, affine=norm == "affine")
        if depth < 50 and deformable_stages:
            raise ValueError(f"deformable_stages need the bottlenecks of depth 50 or more, got depth {depth}")
        if stages is None:
            stages = [(blocks, width * 2**i) for i, blocks in enumerate(STAGE_BLOCKS[depth])]
        if len(stages) != 4:
            raise ValueError(f"a ResNet has four stages, got {len(stages)}: {stages}")
        expansion = BasicBlock.expansion if depth < 50 else Bottleneck.expansion

        def block(stage: int, inputs: int, planes: int, stride: int, dilation: int) -> nn.Module:
            if depth < 50:
                return BasicBlock(inputs, planes, stride, dilation, make_norm)
            return Bottleneck(inputs, planes, stride, dilation, make_norm, style, stage in deformable_stages)

        self.out_stages = tuple(out_stages)
        self.out_channels = tuple(stages[stage - 1][1] * expansion for stage in out_stages)
        self.conv1 = _conv(3, width, 7, 2)
        self.bn1 = make_norm(width)
        self.stages = out_stages[-1]
        inputs = width
        for stage, (count, planes) in enumerate(stages[: self.stages], 1):
            dilated = dilation and stage == 4
            blocks = [block(stage, inputs, planes, 1 if stage == 1 or dilated else 2, 1)]
            inputs = planes * expansion
            for _ in range(1, count):
                blocks.append(block(stage, inputs, planes, 1, 2 if dilated else 1))
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self._frozen: list[nn.Module] = []
        if frozen_stages:
            built = range(1, min(frozen_stages, self.stages) + 1)
            self._frozen = [self.conv1, self.bn1, *(self.stage(stage) for stage in built)]
        for module in self._frozen:
            module.requires_grad_(False)

    def stage(self, number: int) -> nn.Module:
        """Stage 1 to 4."""
        return self.get_submodule(f"layer{number}")

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images [B, 3, H, W] -> feature maps [B, C, H / stride, W / stride] of `out_stages`."""
        early = min(EARLY_STAGES, self.stages)
        if self._apart(x):
            maps = _joined([self._maps(self._stem(image), 1, early) for image in x.split(1)])
        else:
            maps = self._maps(self._stem(x), 1, early)
        maps |= self._maps(maps[early], early + 1, self.stages)
        return [maps[number] for number in self.out_stages]

    def _stem(self, x: Tensor) -> Tensor:
        return F.max_pool2d(conv_norm(self.conv1, self.bn1, x).relu_(), 3, stride=2, padding=1)

    def _maps(self, x: Tensor, first: int, last: int) -> dict[int, Tensor]:
        """What comes out of the last of some stages, and of those that are asked for, by number."""
        maps = {}
        for number in range(first, last + 1):
            x = self.stage(number)(x)
            if number in self.out_stages or number == last:
                maps[number] = x
        return maps

    def _apart(self, x: Tensor) -> bool:
        """Whether images go through the early stages one by one: on a CPU that is faster, and needs less memory.

        Their maps then stay in the caches. Nothing may tie the images together: no norm that learns statistics.
        """
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or self.training:
            return False
        return x.device.type == "cpu" and len(x) > 1

    def train(self, mode: bool = True) -> ResNet:
        """Switch the mode; frozen stages keep their statistics in training as well."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self


def _joined(each: Sequence[Mapping[int, Tensor]]) -> dict[int, Tensor]:
    """The maps of single images as those of a batch."""
    return {number: torch.cat([maps[number] for maps in each]) for number in each[0]}


def load_backbone_weights(backbone: ResNet, weights: Mapping[str, Tensor], origin: str) -> None:
    """Load torchvision-named weights, of a classifier or of a detector whose backbone is one of these.

    The classifier, the rest of a detector, and stages that were not built are left out. Offset convolutions of
    deformable stages may be missing, as in ImageNet weights; they start at zero.

    Raises:
        CheckpointError: names or shapes that do not fit, each by name.
    """
    for prefix in ("backbone.", "img_backbone."):
        if any(name.startswith(prefix) for name in weights):
            weights = {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)}
    # Files from before mmcv 1.0 have the offsets of deformable convolutions beside the convolution, not within.
    weights = {name.replace(".conv2_offset.", ".conv2.conv_offset."): tensor for name, tensor in weights.items()}
    own = backbone.state_dict()
    # A frozen norm has no counter of batches; files may or may not hold one.
    optional = {n: t for n, t in own.items() if n.endswith("num_batches_tracked") or ".conv_offset." in n}
    unbuilt = ("fc.", *(f"layer{stage}." for stage in range(backbone.stages + 1, 5)))
    fitting = {
        name: tensor
        for name, tensor in weights.items()
        if not name.startswith(unbuilt) and (name in own or not name.endswith("num_batches_tracked"))
    }
    load_weights(backbone, optional | fitting, origin)


def _conv(inputs: int, outputs: int, size: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    padding = (size - 1) // 2 * dilation
    conv = nn.Conv2d(inputs, outputs, size, stride, padding, dilation, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _shortcut(inputs: int, outputs: int, stride: int, norm: NormFactory) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(_conv(inputs, outputs, 1, stride), norm(outputs))
