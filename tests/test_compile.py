"""torch.compile takes every detector whole: no graph break in the forward pass, the same answers and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tiny
import torch
from torch import Tensor, nn

from bevdet_core.export import graph_of
from bevdet_core.models.bevformer import PastView
from bevdet_core.structures import CameraRig, ImageBatch, Predictions

SIZE = (32, 64)


def batch_of(name: str) -> tuple[ImageBatch, dict[str, Tensor]]:
    """Two samples, in a rig one camera of which failed; and all inputs of the exported graph."""
    examples = graph_of(tiny.detector(name), SIZE).examples(2)
    images = examples["images"]
    if "sizes" in examples:
        return ImageBatch(images[:, None], examples["sizes"][:, None]), examples
    sizes = torch.tensor(SIZE).expand(2, 2, 2)
    return ImageBatch(images, sizes, CameraRig(examples["lidar2img"], hidden=examples["hidden"])), examples


def step_of(model: nn.Module, name: str) -> Callable[[], Predictions]:
    """The forward pass; of BEVFormer what is left when the past has been looked up."""
    batch, examples = batch_of(name)
    if not name.startswith("bevformer"):
        return lambda: model(batch)
    signals = examples["signals"]
    if name == "bevformer_alone":
        return lambda: model.step(batch, signals)[0]
    columns = (examples[key].unbind(1) for key in ("previous", "shift", "turn", "known"))
    past = [PastView(*view) for view in zip(*columns, strict=True)]
    return lambda: model.step(batch, signals, past)[0]


def learn(model: nn.Module, forward: Callable[[], Predictions]) -> tuple[Predictions, dict[str, Tensor]]:
    """The predictions, and the gradient of each parameter for a loss that all of them take part in."""
    model.zero_grad()
    said = forward()
    (said.logits.square().mean() + said.boxes.square().mean()).backward()
    return said, {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()
    }


@pytest.mark.parametrize(
    ("name", "backend"), [*((name, "eager") for name in tiny.MODELS), ("two_stage", "aot_eager"), ("petr", "aot_eager")]
)
def test_a_detector_is_one_graph(name: str, backend: str):
    model = tiny.detector(name).model
    forward = step_of(model, name)
    said, gradients = learn(model, forward)
    torch._dynamo.reset()
    compiled, theirs = learn(model, torch.compile(forward, backend=backend, fullgraph=True))
    torch.testing.assert_close(compiled.logits, said.logits)
    torch.testing.assert_close(compiled.boxes, said.boxes)
    torch.testing.assert_close(theirs, gradients, rtol=1e-4, atol=1e-5)


def test_what_bevformer_looks_up_is_all_that_breaks_its_graph():
    from torch._dynamo.utils import counters

    model = tiny.detector("bevformer").model
    batch, _ = batch_of("bevformer")
    torch._dynamo.reset()
    counters.clear()
    with torch.no_grad():
        said = model(batch)
        compiled = torch.compile(model, backend="eager")(batch)
    torch.testing.assert_close(compiled.logits, said.logits)
    reasons = "\n".join(counters["graph_break"])
    assert "eigh" in reasons  # poses are numpy
    assert "bevdet_ops" not in reasons
