"""Frozen batch norm folded into its convolution: same outputs, gradients and names."""

import copy

import torch
from detectron2.config import get_cfg
from detectron2.layers import Conv2d, FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling.backbone.resnet import build_resnet_backbone

from rc2l.modeling.folded_norm import FoldedConv2d, fold_frozen_norms


def resnet(norm: str):
    cfg = get_cfg()
    options = cfg.MODEL.RESNETS
    options.DEPTH, options.NORM, options.OUT_FEATURES = 50, norm, ["res2", "res3"]
    options.STEM_OUT_CHANNELS = options.WIDTH_PER_GROUP = 8
    options.RES2_OUT_CHANNELS = 16
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    torch.manual_seed(0)
    network = build_resnet_backbone(cfg, ShapeSpec(channels=3)).double()
    for module in network.modules():
        if isinstance(module, FrozenBatchNorm2d):
            for buffer in (module.weight, module.bias, module.running_mean):
                buffer.normal_()
            module.running_var.uniform_(0.5, 2)
    return network


def test_outputs_gradients_and_state_are_those_of_the_norm_alone():
    plain = resnet("FrozenBN")
    folded = copy.deepcopy(plain)
    fold_frozen_norms(folded)
    assert sum(type(module) is FoldedConv2d for module in folded.modules()) == 24
    assert {name: value.shape for name, value in plain.state_dict().items()} == {
        name: value.shape for name, value in folded.state_dict().items()
    }
    images = torch.randn(2, 3, 32, 48, dtype=torch.float64)
    gradients = []
    for network in (plain, copy.deepcopy(folded)):  # a copy, as the teacher is one
        outputs = network(images)
        sum((output**2).mean() for output in outputs.values()).backward()
        gradients.append({name: value.grad for name, value in network.named_parameters()})
    expected = plain(images)
    torch.testing.assert_close(dict(folded(images)), dict(expected))
    torch.testing.assert_close(gradients[1], gradients[0])


def test_new_statistics_are_read_and_a_bias_counts():
    convolution = Conv2d(3, 4, 3, padding=1, norm=FrozenBatchNorm2d(4), activation=torch.relu)
    images = torch.randn(2, 3, 5, 6)
    fold_frozen_norms(convolution)
    for buffer in (convolution.norm.weight, convolution.norm.bias, convolution.norm.running_mean):
        buffer.normal_()
    raw = torch.nn.functional.conv2d(images, convolution.weight, convolution.bias, padding=1)
    torch.testing.assert_close(convolution(images), convolution.norm(raw).relu(), rtol=1e-5, atol=1e-5)


def test_other_norms_stay():
    network = resnet("BN")
    fold_frozen_norms(network)
    assert not any(type(module) is FoldedConv2d for module in network.modules())
