"""The ResNet: against transformers' one, what is frozen, and which weights files it takes."""

from __future__ import annotations

import os
import pickle
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bevdet_core.checkpoint import CheckpointError
from bevdet_core.config import BackboneConfig
from bevdet_core.models import build_backbone
from bevdet_core.models.resnet import FrozenBatchNorm2d, ResNet, conv_norm

SMALL = {"width": 8, "norm": "batch", "frozen_stages": 0}


def randomise(module: nn.Module) -> None:
    """Statistics and affine terms as a trained network has them."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif tensor.ndim == 1:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)


def transformers_weights(weights: dict[str, Tensor], blocks: tuple[int, ...], convs: int) -> dict[str, Tensor]:
    """Our state dict under the names of transformers' ResNet."""
    out = {}

    def norm_and_conv(theirs: str, conv: str, norm: str) -> None:
        out[f"{theirs}.convolution.weight"] = weights[f"{conv}.weight"]
        for part in ("weight", "bias", "running_mean", "running_var"):
            out[f"{theirs}.normalization.{part}"] = weights[f"{norm}.{part}"]
        out[f"{theirs}.normalization.num_batches_tracked"] = torch.tensor(0)

    norm_and_conv("embedder.embedder", "conv1", "bn1")
    for stage, count in enumerate(blocks):
        for block in range(count):
            ours, theirs = f"layer{stage + 1}.{block}", f"encoder.stages.{stage}.layers.{block}"
            for i in range(convs):
                norm_and_conv(f"{theirs}.layer.{i}", f"{ours}.conv{i + 1}", f"{ours}.bn{i + 1}")
            if f"{ours}.downsample.0.weight" in weights:
                norm_and_conv(f"{theirs}.shortcut", f"{ours}.downsample.0", f"{ours}.downsample.1")
    return out


@pytest.mark.parametrize("norm", ["frozen", "affine", "batch"])
@pytest.mark.parametrize(("depth", "style"), [(18, "pytorch"), (50, "pytorch"), (50, "caffe")])
def test_agrees_with_transformers(depth: int, style: str, norm: str):
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(0)
    blocks, convs, expansion = ((2, 2, 2, 2), 2, 1) if depth == 18 else ((3, 4, 6, 3), 3, 4)
    ours = ResNet(depth, 8, style=style, norm=norm, frozen_stages=0, out_stages=(1, 2, 3, 4)).eval()
    randomise(ours)
    theirs = ResNetModel(
        ResNetConfig(
            embedding_size=8,
            hidden_sizes=[8 * expansion * 2**i for i in range(4)],
            depths=list(blocks),
            layer_type="basic" if depth == 18 else "bottleneck",
            downsample_in_bottleneck=style == "caffe",
        )
    ).eval()
    theirs.load_state_dict(transformers_weights(ours.state_dict(), blocks, convs))
    images = torch.randn(2, 3, 64, 96)
    expected = theirs(images, output_hidden_states=True).hidden_states[1:]
    for mine, other, channels in zip(ours(images), expected, ours.out_channels, strict=True):
        assert mine.shape[1] == channels
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4 * other.abs().max().item())


@pytest.mark.parametrize(
    ("depth", "parameters"),
    [(18, 11_176_512), (34, 21_284_672), (50, 23_508_032), (101, 42_500_160), (152, 58_143_808)],
)
def test_parameter_counts_are_the_published_ones_without_classifier(depth: int, parameters: int):
    with torch.device("meta"):
        backbone = ResNet(depth, norm="batch", frozen_stages=0)
    assert sum(p.numel() for p in backbone.parameters()) == parameters


def test_norms_learn_what_they_are_told_to():
    for norm, statistics_move, affine_learns in (
        ("frozen", False, False),
        ("affine", False, True),
        ("batch", True, True),
    ):
        backbone = ResNet(18, 8, norm=norm, frozen_stages=0).train()
        before = backbone.layer2[0].bn1.running_mean.clone()
        sum(f.square().sum() for f in backbone(torch.randn(2, 3, 64, 64))).backward()
        assert (not torch.equal(backbone.layer2[0].bn1.running_mean, before)) == statistics_move
        assert ("layer2.0.bn1.weight" in dict(backbone.named_parameters())) == affine_learns
        assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())


def test_frozen_stages_neither_learn_nor_move():
    backbone = ResNet(18, 8, norm="batch", frozen_stages=2).train()
    before = {n: t.clone() for n, t in backbone.state_dict().items()}
    sum(f.sum() for f in backbone(torch.randn(2, 3, 64, 64))).backward()
    frozen = ("conv1.", "bn1.", "layer1.", "layer2.")
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is None) == name.startswith(frozen)
    for name, tensor in backbone.state_dict().items():
        if "running_mean" in name:
            assert torch.equal(tensor, before[name]) == name.startswith(frozen)


@pytest.mark.parametrize("norm", [FrozenBatchNorm2d(8), FrozenBatchNorm2d(8, affine=True), nn.BatchNorm2d(8).eval()])
def test_a_norm_whose_statistics_stand_still_folds_into_its_convolution(norm: nn.Module):
    conv = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
    randomise(norm)
    x = torch.randn(2, 3, 9, 9)
    plain = nn.functional.batch_norm(conv(x), norm.running_mean, norm.running_var, norm.weight, norm.bias)
    torch.testing.assert_close(conv_norm(conv, norm, x), plain)
    torch.testing.assert_close(norm(conv(x)), plain)


@pytest.mark.parametrize("out_stages", [(1, 2, 3, 4), (2, 4), (3,), (1,)])
def test_images_go_one_by_one_where_nothing_ties_them(out_stages):
    network = ResNet(18, **SMALL, out_stages=out_stages).double()
    randomise(network)
    images = torch.randn(3, 3, 40, 64, dtype=torch.float64)
    seen = []
    network.layer1[0].register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    together = network.eval()(images)
    assert seen == [3]
    with torch.no_grad():
        apart = network(images)
        assert seen == [3, 1, 1, 1]
        assert len(apart) == len(out_stages)
        for a, b in zip(apart, together, strict=True):
            torch.testing.assert_close(a, b)
        network.train()(images)  # its norms take the statistics of all images
        assert 3 in seen[4:]


def test_dilation_keeps_the_stride_of_the_last_stage():
    plain, dilated = ResNet(50, **SMALL), ResNet(50, **SMALL, dilation=True)
    dilated.load_state_dict(plain.state_dict())
    plain.eval(), dilated.eval()
    images = torch.randn(1, 3, 64, 96)
    fine, coarse = dilated(images), plain(images)
    assert fine[-1].shape[-2:] == (4, 6)
    assert coarse[-1].shape[-2:] == (2, 3)
    torch.testing.assert_close(fine[0], coarse[0])
    assert [m.dilation for m in (dilated.layer4[0].conv2, dilated.layer4[1].conv2)] == [(1, 1), (2, 2)]


def test_deformable_stages_start_as_plain_convolutions_at_half_strength():
    backbone = ResNet(50, **SMALL, deformable_stages=(3, 4))
    deformable = backbone.layer3[1].conv2
    x = torch.randn(1, deformable.weight.shape[1], 5, 7)
    torch.testing.assert_close(
        deformable(x), nn.functional.conv2d(x, deformable.weight, padding=1) / 2, rtol=1e-4, atol=1e-5
    )
    assert isinstance(backbone.layer2[0].conv2, nn.Conv2d)
    assert backbone.eval()(torch.randn(1, 3, 64, 64))[-1].isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 20}, "depth 18, 34, 50, 101, 152, got 20"),
        ({"out_stages": (3, 2)}, r"ascending stages from 1 to 4, got \(3, 2\)"),
        ({"out_stages": ()}, "ascending stages"),
        ({"frozen_stages": 5}, "frozen_stages must lie between 0 and 4, got 5"),
        ({"depth": 18, "deformable_stages": (4,)}, "bottlenecks of depth 50 or more, got depth 18"),
        ({"stages": [(1, 8), (1, 8), (1, 8)]}, r"a ResNet has four stages, got 3: \[\(1, 8\)"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**{"width": 8, **options})


class TestWeightsFiles:
    """What `BackboneConfig.weights` takes."""

    config = BackboneConfig(depth=18, width=8, norm="frozen")

    @pytest.fixture
    def weights(self) -> dict[str, Tensor]:
        """A classifier in torchvision's names."""
        torch.manual_seed(3)
        backbone = ResNet(18, **SMALL)
        randomise(backbone)
        return backbone.state_dict() | {"fc.weight": torch.zeros(1000, 64), "fc.bias": torch.zeros(1000)}

    def load(self, path: Path) -> ResNet:
        return build_backbone(BackboneConfig(depth=18, width=8, weights=str(path)))

    @pytest.mark.parametrize("name", ["r18.safetensors", "r18.pth", "wrapped.pth"])
    def test_formats(self, weights, tmp_path, name):
        path = tmp_path / name
        if name == "r18.safetensors":
            save_file(weights, path)
        else:
            wrapped = {"state_dict": weights, "epoch": 3, "args": Namespace(lr=1e-4)}
            torch.save(wrapped if name == "wrapped.pth" else weights, path)
        for key, tensor in self.load(path).state_dict().items():
            assert torch.equal(tensor, weights[key]), key

    def test_stages_that_are_not_built_are_left_out(self, weights, tmp_path):
        save_file(weights, tmp_path / "r18.safetensors")
        config = BackboneConfig(depth=18, width=8, out_stages=(2, 3), weights=str(tmp_path / "r18.safetensors"))
        assert torch.equal(build_backbone(config).layer3[1].bn2.bias, weights["layer3.1.bn2.bias"])

    @pytest.mark.parametrize("prefix", ["backbone.", "img_backbone."])
    def test_a_detector_gives_its_backbone(self, weights, tmp_path, prefix):
        detector = {prefix + name: t for name, t in weights.items() if not name.startswith("fc.")}
        torch.save({"state_dict": detector | {"bbox_head.scale": torch.ones(1)}}, tmp_path / "detector.pth")
        assert torch.equal(self.load(tmp_path / "detector.pth").conv1.weight, weights["conv1.weight"])

    def test_deformable_stages_start_from_plain_weights(self, tmp_path):
        plain = ResNet(50, **SMALL)
        save_file(plain.state_dict(), tmp_path / "r50.safetensors")
        config = BackboneConfig(50, width=8, deformable_stages=(4,), weights=str(tmp_path / "r50.safetensors"))
        deformable = build_backbone(config).layer4[2].conv2
        assert torch.equal(deformable.weight, plain.layer4[2].conv2.weight)
        assert not deformable.conv_offset.weight.any()

    def test_files_are_not_read_for_a_checkpoint(self):
        build_backbone(BackboneConfig(depth=18, width=8, weights="missing.pth"), pretrained=False)

    def test_misfits_are_named(self, weights, tmp_path):
        del weights["layer2.0.conv1.weight"]
        weights["head.weight"] = torch.zeros(1)
        weights["conv1.weight"] = torch.zeros(8, 3, 3, 3)
        save_file(weights, tmp_path / "other.safetensors")
        with pytest.raises(CheckpointError) as error:
            self.load(tmp_path / "other.safetensors")
        for part in (
            "other.safetensors",
            "layer2.0.conv1.weight: missing",
            "head.weight",
            "conv1.weight: shape (8, 3, 3",
        ):
            assert part in str(error.value)

    def test_pickles_are_never_executed(self, tmp_path):
        class Evil:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "executed"),)

        torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
        (tmp_path / "plain.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
        for name in ("evil.pth", "plain.pth"):
            with pytest.raises(CheckpointError, match=name):
                self.load(tmp_path / name)
        assert not (tmp_path / "executed").exists()

    @pytest.mark.parametrize("suffix", ["safetensors", "pth"])
    def test_damaged_files_are_named(self, weights, tmp_path, suffix):
        path = tmp_path / f"cut.{suffix}"
        save_file(weights, path) if suffix == "safetensors" else torch.save(weights, path)
        path.write_bytes(path.read_bytes()[:10_000])
        with pytest.raises(CheckpointError, match=r"cut\."):
            self.load(path)

    def test_what_is_wrong_with_a_file_is_told(self, weights, tmp_path):
        save_file(weights, tmp_path / "cut.safetensors")
        torch.save(weights, tmp_path / "cut.pth")
        for suffix, told in (("safetensors", "not a complete safetensors"), ("pth", "damaged, or no weights")):
            path = tmp_path / f"cut.{suffix}"
            path.write_bytes(path.read_bytes()[:10_000])
            with pytest.raises(CheckpointError, match=rf"cut\.{suffix}: {told}"):
                self.load(path)
        torch.save({"state_dict": weights, "model": nn.Linear(1, 1)}, tmp_path / "whole.pth")
        with pytest.raises(CheckpointError, match=r"whole\.pth: holds Python objects other than weights, such"):
            self.load(tmp_path / "whole.pth")

    def test_missing_and_empty_files_are_named(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"nowhere\.pth: no such weights file"):
            self.load(tmp_path / "nowhere.pth")
        torch.save({"epoch": 3}, tmp_path / "empty.pth")
        with pytest.raises(CheckpointError, match=r"empty\.pth: holds no state dict"):
            self.load(tmp_path / "empty.pth")
