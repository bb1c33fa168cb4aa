"""Multi-camera, multi-scale deformable attention and deformable convolution for PyTorch, on CPU and GPU."""

from bevdet_ops._status import backend_status
from bevdet_ops.deform_conv import deform_conv2d
from bevdet_ops.functional import multi_camera_deformable_attention, multi_scale_deformable_attention
from bevdet_ops.library import use_reference
from bevdet_ops.modules import ModulatedDeformConv2d, MSDeformAttn

__all__ = [
    "MSDeformAttn",
    "ModulatedDeformConv2d",
    "backend_status",
    "deform_conv2d",
    "multi_camera_deformable_attention",
    "multi_scale_deformable_attention",
    "use_reference",
]
