"""The official Swin backbone: its keys, the numbers of an independent implementation, the names of its files."""

import re

import pytest
import torch
from detectron2.modeling import build_model
from torch.nn import functional as F
from torchvision.models.swin_transformer import SwinTransformer

from rc2l.config import get_rc2l_cfg
from rc2l.engine.config_file import load_config
from rc2l.modeling.weights import load_weights
from tests.test_maskformer import official_yaml, tiny_model

pytest.importorskip("timm")

TINY_SWIN = {
    "MODEL__BACKBONE__NAME": "D2SwinTransformer",
    "MODEL__SWIN__EMBED_DIM": 16,
    "MODEL__SWIN__DEPTHS": [2, 2, 2, 2],
    "MODEL__SWIN__NUM_HEADS": [1, 2, 2, 4],
    "MODEL__SWIN__WINDOW_SIZE": 3,
}


def official_names(net: SwinTransformer) -> dict[str, torch.Tensor]:
    """torchvision's parameters under the official names."""
    names = {}
    for name, value in net.state_dict().items():
        if name.startswith(("head.", "norm.")) or name.endswith("relative_position_index"):
            continue
        part, rest = re.fullmatch(r"features\.(\d)\.(.*)", name).groups()
        part = int(part)
        if part == 0:
            name = f"patch_embed.{ {'0': 'proj', '2': 'norm'}[rest[0]] }{rest[1:]}"
        elif part % 2:
            name = f"layers.{part // 2}.blocks.{rest}".replace("mlp.0", "mlp.fc1").replace("mlp.3", "mlp.fc2")
        else:
            name = f"layers.{part // 2 - 1}.downsample.{rest}"
        names[name] = value
    return names


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_official_file_gives_the_features_of_an_independent_swin(prefix, tmp_path):
    torch.manual_seed(0)
    net = SwinTransformer([4, 4], 16, [2, 2, 2, 2], [1, 2, 2, 4], [3, 3]).eval()
    state = official_names(net)
    for stage in range(4):
        state |= {f"norm{stage}.{kind}": torch.rand(16 * 2**stage) + 0.5 for kind in ("weight", "bias")}
    torch.save({"model": {prefix + name: value for name, value in state.items()}}, tmp_path / "swin.pth")
    model = tiny_model(**TINY_SWIN)
    report = load_weights(model, str(tmp_path / "swin.pth"))
    assert not [name for name in report.missing if name.startswith("backbone.")] and not report.skipped

    images = torch.randn(2, 3, 160, 224)  # 40x56 to 5x7 pixels, to be padded to whole windows in every stage
    with torch.no_grad():
        features, x = model.backbone(images), images
        for index, part in enumerate(net.features):
            x = part(x)
            if index % 2:
                stage = index // 2
                norm = [state[f"norm{stage}.{kind}"] for kind in ("weight", "bias")]
                expected = F.layer_norm(x, x.shape[-1:], *norm).permute(0, 3, 1, 2)
                torch.testing.assert_close(features[f"res{stage + 2}"], expected, rtol=1e-4, atol=1e-4)


def test_gradient_reaches_every_parameter_at_an_odd_size():
    model = tiny_model(**TINY_SWIN).train()
    output = model(torch.randint(0, 256, (2, 3, 50, 70)))
    assert output.pred_masks.shape[-2:] == (13, 18)
    sum(logits.square().mean() + masks.square().mean() for logits, masks in output.layers()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


SIZES = {
    "tiny": {"EMBED_DIM": 96, "DEPTHS": [2, 2, 6, 2], "NUM_HEADS": [3, 6, 12, 24], "WINDOW_SIZE": 7},
    "base": {"EMBED_DIM": 128, "DEPTHS": [2, 2, 18, 2], "NUM_HEADS": [4, 8, 16, 32], "WINDOW_SIZE": 12},
}


@pytest.mark.parametrize("size", SIZES)
def test_official_yaml_builds(size, tmp_path):
    flat = {f"MODEL.SWIN.{key}": value for key, value in SIZES[size].items()}
    flat |= {"MODEL.SWIN.APE": False, "MODEL.SWIN.DROP_PATH_RATE": 0.3, "MODEL.SWIN.PATCH_NORM": True, "VERSION": 2}
    flat |= {"MODEL.SWIN.PRETRAIN_IMG_SIZE": 384 if size == "base" else 224, "MODEL.META_ARCHITECTURE": "MaskFormer"}
    flat |= {"MODEL.BACKBONE.NAME": "D2SwinTransformer", "MODEL.SEM_SEG_HEAD.NAME": "MaskFormerHead"}
    flat |= {"MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res3", "res4", "res5"], "MODEL.SEM_SEG_HEAD.CONVS_DIM": 256}
    path = tmp_path / "swin.yaml"
    path.write_text(official_yaml(flat))
    cfg = get_rc2l_cfg()
    cfg.merge_from_file(str(path))
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        shapes = build_model(cfg).backbone.output_shape()
    width = SIZES[size]["EMBED_DIM"]
    assert {name: (shape.channels, shape.stride) for name, shape in shapes.items()} == {
        f"res{stage + 2}": (width * 2**stage, 4 * 2**stage) for stage in range(4)
    }


@pytest.mark.parametrize(("key", "value"), [("APE", True), ("QKV_BIAS", False)])
def test_variants_that_no_file_uses_are_refused(key, value):
    with pytest.raises(ValueError, match=f"MODEL.SWIN.{key} is {value}; it must be"):
        tiny_model(**TINY_SWIN, **{f"MODEL__SWIN__{key}": value})


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("MODEL.SEM_SEG_HEAD.NAME", "PerPixelBaselineHead", "PerPixelSegmentor"),
        ("MODEL.SEM_SEG_HEAD.NAME", "PerPixelBaselinePlusHead", "PerPixelSegmentor"),
        ("MODEL.MASK_FORMER.TEST.INSTANCE_ON", "True", "must be False"),
        ("MODEL.MASK_FORMER.TEST.PANOPTIC_ON", "True", "must be False"),
        ("MODEL.SWIN.DEPTHS", "[2, 2]", "list of 4"),
        ("MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO", "1.5", "at most 1|in .0, 1."),
        ("MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME", "Masked", "StandardTransformerDecoder or"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line_before_anything_else(key, value, words):
    with pytest.raises(ValueError, match=f"^{key} is .*({words})") as error:
        load_config("", [key, value])
    assert "\n" not in str(error.value)
