"""MaskFormer: parity with the official numbers and names, options, odd inputs, gradients."""

import json

import numpy as np
import pytest
import torch
import yaml

import rc2l  # noqa: F401  makes detectron2 importable

# isort: split
from detectron2.modeling import build_model
from torch import nn
from torch.nn import functional as F

from rc2l.config import get_rc2l_cfg
from rc2l.losses.mask_former import set_criterion
from rc2l.modeling import MaskFormer, SegmentationOutput
from rc2l.modeling.matcher import HungarianMatcher
from rc2l.modeling.position_encoding import sine_position_encoding
from rc2l.modeling.transformer import TransformerDecoderLayer, TransformerEncoderLayer
from rc2l.structures.regions import Regions
from tests.shared_data import shared_file

TOLERANCE = 5e-4  # reference/README.md, section 1
DECODERS = ("TransformerEncoderPixelDecoder", "BasePixelDecoder")


def tiny_cfg(**overrides):
    """A MaskFormer of few channels; ``overrides`` are full key names with ``__`` for the dots."""
    cfg = get_rc2l_cfg()
    values = {
        "MODEL.META_ARCHITECTURE": "MaskFormer",
        "MODEL.DEVICE": "cpu",
        "MODEL.PIXEL_MEAN": [120.0, 115.0, 105.0],
        "MODEL.PIXEL_STD": [58.0, 57.0, 56.0],
        "MODEL.BACKBONE.NAME": "build_basic_resnet_backbone",
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.RESNETS.DEPTH": 18,
        "MODEL.RESNETS.NORM": "BN",
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 8,
        "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.SEM_SEG_HEAD.NAME": "MaskFormerHead",
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 4,
        "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
        "MODEL.SEM_SEG_HEAD.MASK_DIM": 16,
        "MODEL.SEM_SEG_HEAD.NORM": "GN",
        "MODEL.MASK_FORMER.HIDDEN_DIM": 24,
        "MODEL.MASK_FORMER.NHEADS": 4,
        "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 32,
        "MODEL.MASK_FORMER.DEC_LAYERS": 3,
        "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 6,
    }
    values.update({key.replace("__", "."): value for key, value in overrides.items()})
    cfg.merge_from_list([item for pair in values.items() for item in pair])
    return cfg


def tiny_model(**overrides) -> MaskFormer:
    torch.manual_seed(0)
    return build_model(tiny_cfg(**overrides)).eval()


def images(batch: int = 2, height: int = 64, width: int = 96) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 3, height, width), generator=torch.Generator().manual_seed(0)).byte()


# --- parity -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["maskformer_forward.npz", "maskformer_forward_r50enc.npz"])
def reference(request):
    """(arrays, config, model) of one reference file."""
    arrays = np.load(shared_file(f"reference/{request.param}"))
    config = json.loads(str(arrays["config_json"]))
    cfg = get_rc2l_cfg()
    for key, value in config.items():
        if key.startswith("MODEL.") and not key.startswith("MODEL.SWIN."):
            cfg.merge_from_list([key, value])
    cfg.MODEL.DEVICE = "cpu"
    if cfg.MODEL.RESNETS.DEPTH in (18, 34):
        cfg.MODEL.BACKBONE.NAME = "build_basic_resnet_backbone"
    return arrays, cfg, build_model(cfg)


@pytest.fixture
def parity(reference):
    """The same with the weights fresh, in eval mode: a train-mode test changes the statistics."""
    arrays, _, model = reference
    state = {name[3:]: torch.from_numpy(arrays[name]) for name in arrays.files if name.startswith("sd/")}
    model.load_state_dict(state)
    return arrays, model.eval()


def assert_close(actual: torch.Tensor, expected: np.ndarray, name: str) -> None:
    assert tuple(actual.shape) == expected.shape, name
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=0, atol=TOLERANCE, err_msg=name)


@torch.no_grad()
def test_parity_of_features(parity):
    arrays, model = parity
    features = model.backbone(model.normalize(torch.from_numpy(arrays["image"])))
    for name, feature in features.items():
        assert_close(feature, arrays[f"feat/{name}"], name)
    pixel_features, encoded = model.sem_seg_head.pixel_decoder(features)
    assert_close(pixel_features, arrays["feat/mask_features"], "mask_features")
    assert (encoded is not None) == ("feat/transformer_encoder" in arrays.files)
    if encoded is not None:
        assert_close(encoded, arrays["feat/transformer_encoder"], "transformer_encoder")
    expected = arrays["feat/pos_embed"]
    pos = sine_position_encoding(expected.shape[2], expected.shape[3], expected.shape[1])
    assert_close(pos.expand(len(expected), -1, -1, -1), expected, "pos_embed")


@torch.no_grad()
def test_parity_of_predictions(parity):
    arrays, model = parity
    output = model(torch.from_numpy(arrays["image"]))
    assert isinstance(output, SegmentationOutput)
    assert_close(output.pred_logits, arrays["pred_logits"], "pred_logits")
    assert_close(output.pred_masks, arrays["pred_masks"], "pred_masks")
    assert f"aux{len(output.aux_outputs)}_pred_logits" not in arrays.files
    for index, (logits, masks) in enumerate(output.aux_outputs):
        assert_close(logits, arrays[f"aux{index}_pred_logits"], f"aux{index} logits")
        assert_close(masks, arrays[f"aux{index}_pred_masks"], f"aux{index} masks")


@torch.no_grad()
def test_parity_of_inference(parity):
    arrays, model = parity
    results = model([{"image": image} for image in torch.from_numpy(arrays["image"])])
    assert_close(torch.stack([item["sem_seg"] for item in results]), arrays["sem_seg"], "sem_seg")
    sizes = arrays["unaligned/out_hw"].tolist()
    batch = [
        {"image": torch.from_numpy(arrays[f"unaligned/image{i}"]), "height": h, "width": w}
        for i, (h, w) in enumerate(sizes)
    ]
    for index, item in enumerate(model(batch)):
        assert_close(item["sem_seg"], arrays[f"unaligned/sem_seg{index}"], f"unaligned {index}")


def targets_of(arrays) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Labels and masks of each image of a reference file's training step."""
    B = len(arrays["image"])
    return tuple([torch.from_numpy(arrays[f"train/{kind}{b}"]) for b in range(B)] for kind in ("labels", "masks"))


def test_parity_of_a_training_step(parity, reference):
    arrays, model = parity
    options = reference[1].MODEL.MASK_FORMER
    model.train()
    output = model(torch.from_numpy(arrays["image"]))
    names = [name for name in arrays.files if name.startswith("train/after/")]
    assert names
    for name in names:
        assert_close(model.get_buffer(name.removeprefix("train/after/")), arrays[name], name)

    regions = Regions.from_masks(*targets_of(arrays))
    matcher = HungarianMatcher(1.0, options.MASK_WEIGHT, options.DICE_WEIGHT)
    (matches,) = matcher([(output.layers(), regions)])
    image, *pairs = matches.pairs[0]
    for b in range(len(arrays["image"])):
        for indices, name in zip(pairs, ("src", "tgt"), strict=True):
            assert indices[image == b].tolist() == arrays[f"train/match_{name}{b}"].tolist()
    weights = {"ce": 1.0, "mask": options.MASK_WEIGHT, "dice": options.DICE_WEIGHT}
    losses = set_criterion(output.layers(), regions, matches.pairs, matches.num_regions, options.NO_OBJECT_WEIGHT)
    losses = {name: weights[name.split("_")[1]] * value for name, value in losses.items()}
    assert {f"train/{name}" for name in losses} == {name for name in arrays.files if name.startswith("train/loss_")}
    for name, value in losses.items():
        np.testing.assert_allclose(value.item(), arrays[f"train/{name}"], rtol=1e-4, err_msg=name)
    sum(losses.values()).backward()
    norms = {name: parameter.grad.norm().item() for name, parameter in model.named_parameters()}
    prefix = "train/gradnorm/"
    assert {prefix + name for name in norms} == {name for name in arrays.files if name.startswith(prefix)}
    for name, value in norms.items():
        np.testing.assert_allclose(value, arrays[prefix + name], rtol=1e-3, atol=1e-5, err_msg=name)


def official_yaml(flat: dict) -> str:
    """Official config values, given with dotted names, as the text of a nested YAML file."""
    tree: dict = {}
    for key, value in flat.items():
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return yaml.safe_dump(tree)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("depth", [50, 101])
def test_official_yaml_gives_official_names_and_shapes(depth, decoder, tmp_path):
    expected = json.loads(shared_file(f"reference/maskformer_keys_r{depth}.json").read_text())[decoder]
    path = tmp_path / "official.yaml"
    path.write_text(official_yaml(expected["config"] | {"VERSION": 2}))
    cfg = get_rc2l_cfg()
    cfg.merge_from_file(str(path))
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == expected["state_dict"]
    assert {name for name, value in model.named_parameters() if value.requires_grad} == set(expected["trainable"])
    assert sum(value.numel() for value in model.parameters()) == expected["num_parameters"]
    persistent = model.state_dict()
    assert {n for n, _ in model.named_buffers() if n not in persistent} == set(expected["non_persistent_buffers"])


# The keys of the official semantic and panoptic base files, with values of a usual kind.
OFFICIAL_BASE_FILE = """
MODEL:
  BACKBONE: {FREEZE_AT: 0, NAME: build_resnet_backbone}
  WEIGHTS: detectron2://ImageNetPretrained/torchvision/R-50.pkl
  PIXEL_MEAN: [123.675, 116.280, 103.530]
  PIXEL_STD: [58.395, 57.120, 57.375]
  RESNETS:
    DEPTH: 50
    STEM_TYPE: basic
    STEM_OUT_CHANNELS: 64
    STRIDE_IN_1X1: False
    OUT_FEATURES: [res2, res3, res4, res5]
    NORM: SyncBN
    RES5_MULTI_GRID: [1, 1, 1]
  META_ARCHITECTURE: MaskFormer
  SEM_SEG_HEAD:
    NAME: MaskFormerHead
    IN_FEATURES: [res2, res3, res4, res5]
    IGNORE_VALUE: 255
    NUM_CLASSES: 150
    COMMON_STRIDE: 4
    LOSS_WEIGHT: 1.0
    CONVS_DIM: 256
    MASK_DIM: 256
    NORM: GN
    PIXEL_DECODER_NAME: TransformerEncoderPixelDecoder
    TRANSFORMER_ENC_LAYERS: 6
  MASK_FORMER:
    TRANSFORMER_IN_FEATURE: transformer_encoder
    DEEP_SUPERVISION: True
    NO_OBJECT_WEIGHT: 0.1
    DICE_WEIGHT: 1.0
    MASK_WEIGHT: 20.0
    HIDDEN_DIM: 256
    NUM_OBJECT_QUERIES: 100
    NHEADS: 8
    DROPOUT: 0.1
    DIM_FEEDFORWARD: 2048
    ENC_LAYERS: 0
    DEC_LAYERS: 6
    PRE_NORM: False
    ENFORCE_INPUT_PROJ: False
    SIZE_DIVISIBILITY: 32
    TEST: {PANOPTIC_ON: True, OVERLAP_THRESHOLD: 0.8, OBJECT_MASK_THRESHOLD: 0.8}
DATASETS: {TRAIN: [ade20k_sem_seg_train], TEST: [ade20k_sem_seg_val]}
SOLVER:
  IMS_PER_BATCH: 16
  BASE_LR: 0.0001
  MAX_ITER: 160000
  STEPS: [1, 2]
  WARMUP_FACTOR: 1.0
  WARMUP_ITERS: 0
  WEIGHT_DECAY: 0.0001
  WEIGHT_DECAY_NORM: 0.0
  WEIGHT_DECAY_EMBED: 0.0
  OPTIMIZER: ADAMW
  LR_SCHEDULER_NAME: WarmupPolyLR
  POLY_LR_POWER: 0.9
  POLY_LR_CONSTANT_ENDING: 0.0
  BACKBONE_MULTIPLIER: 0.1
  CLIP_GRADIENTS: {ENABLED: True, CLIP_TYPE: full_model, CLIP_VALUE: 0.01, NORM_TYPE: 2.0}
  AMP: {ENABLED: True}
INPUT:
  MIN_SIZE_TRAIN: [256, 512]
  MIN_SIZE_TRAIN_SAMPLING: choice
  MIN_SIZE_TEST: 512
  MAX_SIZE_TRAIN: 2048
  MAX_SIZE_TEST: 2048
  CROP: {ENABLED: True, TYPE: absolute, SIZE: [512, 512], SINGLE_CATEGORY_MAX_AREA: 1.0}
  COLOR_AUG_SSD: True
  SIZE_DIVISIBILITY: 512
  FORMAT: RGB
  DATASET_MAPPER_NAME: mask_former_semantic
TEST:
  EVAL_PERIOD: 5000
  AUG: {ENABLED: False, MIN_SIZES: [256, 512], MAX_SIZE: 3584, FLIP: True}
DATALOADER: {FILTER_EMPTY_ANNOTATIONS: True, NUM_WORKERS: 4}
VERSION: 2
"""


def test_official_base_file_merges_and_panoptic_is_refused(tmp_path):
    path = tmp_path / "base.yaml"
    path.write_text(OFFICIAL_BASE_FILE)
    cfg = get_rc2l_cfg()
    cfg.merge_from_file(str(path))
    cfg.MODEL.DEVICE = "meta"
    with pytest.raises(ValueError, match=r"PANOPTIC_ON is True.*set it to False"):
        build_model(cfg)
    cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = False
    with torch.device("meta"):
        assert isinstance(build_model(cfg), MaskFormer)


# --- options ----------------------------------------------------------------------------------------------------------

OPTIONS = {
    "res5": {},
    "res3": {"MODEL__MASK_FORMER__TRANSFORMER_IN_FEATURE": "res3"},
    "pixel_embedding": {"MODEL__MASK_FORMER__TRANSFORMER_IN_FEATURE": "pixel_embedding"},
    "encoder": {
        "MODEL__MASK_FORMER__TRANSFORMER_IN_FEATURE": "transformer_encoder",
        "MODEL__SEM_SEG_HEAD__PIXEL_DECODER_NAME": "TransformerEncoderPixelDecoder",
        "MODEL__SEM_SEG_HEAD__TRANSFORMER_ENC_LAYERS": 2,
    },
    "pre_norm": {
        "MODEL__MASK_FORMER__PRE_NORM": True,
        "MODEL__MASK_FORMER__ENC_LAYERS": 2,
        "MODEL__SEM_SEG_HEAD__PIXEL_DECODER_NAME": "TransformerEncoderPixelDecoder",
        "MODEL__SEM_SEG_HEAD__TRANSFORMER_ENC_LAYERS": 1,
    },
    "predictor_encoder": {"MODEL__MASK_FORMER__ENC_LAYERS": 2},
    "no_deep_supervision": {"MODEL__MASK_FORMER__DEEP_SUPERVISION": False},
    "two_features": {"MODEL__SEM_SEG_HEAD__IN_FEATURES": ["res3", "res2"]},
    "convolution_without_norm": {"MODEL__SEM_SEG_HEAD__NORM": ""},
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("last_layer_only", [True, False])
def test_gradient_reaches_every_parameter(option, last_layer_only):
    model = tiny_model(**OPTIONS[option]).train()
    output = model(images())
    layers = output.layers()[:1] if last_layer_only else output.layers()
    sum(logits.square().mean() + masks.square().mean() for logits, masks in layers).backward()
    unreached = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert unreached == set()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert len(output.aux_outputs) == (0 if option == "no_deep_supervision" else 2)


@torch.no_grad()
@pytest.mark.parametrize("pre_norm", [True, False])
def test_layers_are_torchs_where_positions_are_zero(pre_norm):
    options = {"dropout": 0.3, "batch_first": True, "norm_first": pre_norm}
    queries, memory, zero = torch.randn(2, 5, 16), torch.randn(2, 7, 16), torch.zeros(1)
    expected = nn.TransformerEncoderLayer(16, 4, 32, **options).eval()
    layer = TransformerEncoderLayer(16, 4, 32, 0.3, pre_norm).eval()
    layer.load_state_dict(expected.state_dict())
    torch.testing.assert_close(layer(memory, zero), expected(memory), rtol=1e-4, atol=1e-5)
    expected = nn.TransformerDecoderLayer(16, 4, 32, **options).eval()
    layer = TransformerDecoderLayer(16, 4, 32, 0.3, pre_norm).eval()
    layer.load_state_dict(expected.state_dict())
    torch.testing.assert_close(layer(queries, zero, memory, memory), expected(queries, memory), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("option", ["predictor_encoder", "encoder"])
def test_dropout_acts_in_train_mode_only(option):
    for dropout, same in ((0.0, True), (0.5, False)):
        model = tiny_model(MODEL__MASK_FORMER__DROPOUT=dropout, **OPTIONS[option])
        assert torch.equal(model(images()).pred_logits, model(images()).pred_logits)
        model.train()
        assert torch.equal(model(images()).pred_logits, model(images()).pred_logits) == same


def test_transformer_input_option_changes_what_is_built():
    projected = tiny_model(MODEL__MASK_FORMER__HIDDEN_DIM=16, MODEL__MASK_FORMER__ENFORCE_INPUT_PROJ=True)
    direct = tiny_model(MODEL__MASK_FORMER__HIDDEN_DIM=16)
    name = "sem_seg_head.predictor.input_proj.weight"
    assert name in direct.state_dict() and direct.state_dict()[name].shape[1] == 64
    matching = {
        "MODEL__MASK_FORMER__HIDDEN_DIM": 16,
        "MODEL__MASK_FORMER__TRANSFORMER_IN_FEATURE": "pixel_embedding",
    }
    assert name not in tiny_model(**matching).state_dict()
    assert name in tiny_model(MODEL__MASK_FORMER__ENFORCE_INPUT_PROJ=True, **matching).state_dict()
    assert name in projected.state_dict()


@torch.no_grad()
def test_the_queries_see_the_chosen_feature():
    model = tiny_model(MODEL__MASK_FORMER__TRANSFORMER_IN_FEATURE="res3").eval()
    features = model.backbone(model.normalize(images()))
    before = model.sem_seg_head(features).pred_logits
    assert torch.equal(model.sem_seg_head(features | {"res5": features["res5"] + 1}).pred_logits, before)
    assert not torch.allclose(model.sem_seg_head(features | {"res3": features["res3"] + 1}).pred_logits, before)


@torch.no_grad()
def test_auxiliary_outputs_can_be_left_out():
    model = tiny_model()
    full, last = model(images()), model(images(), auxiliary=False)
    assert last.aux_outputs == [] and len(full.aux_outputs) == 2
    torch.testing.assert_close(last.pred_masks, full.pred_masks)
    torch.testing.assert_close(last.pred_logits, full.pred_logits)


def test_class_weights_end_with_no_object():
    model = tiny_model(MODEL__MASK_FORMER__NO_OBJECT_WEIGHT=0.25)
    assert model.criterion.empty_weight.tolist() == [1.0, 1.0, 1.0, 1.0, 0.25]


def test_only_needed_stages_are_built_and_frozen():
    model = tiny_model(
        MODEL__RESNETS__OUT_FEATURES=["res2", "res3"],
        MODEL__SEM_SEG_HEAD__IN_FEATURES=["res2", "res3"],
        MODEL__MASK_FORMER__TRANSFORMER_IN_FEATURE="res3",
        MODEL__BACKBONE__FREEZE_AT=2,
    )
    names = {name.split(".")[1] for name, _ in model.named_parameters() if name.startswith("backbone.")}
    trained = {name.split(".")[1] for name, p in model.backbone.named_parameters() if p.requires_grad}
    assert names == {"stem", "res2", "res3"}
    assert not any(p.requires_grad for p in model.backbone.res2.parameters()) and trained
    assert model.backbone.output_shape()["res3"].stride == 8


# --- inputs -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("size", [(33, 47), (70, 35), (64, 64)])
@pytest.mark.parametrize("option", ["res5", "encoder"])
def test_odd_sizes_and_batch_of_one(size, option):
    height, width = size
    model = tiny_model(**OPTIONS[option])
    output = model(images(1, height, width))
    stride4 = (-(-height // 4), -(-width // 4))
    assert output.pred_masks.shape == (1, 6, *stride4)
    assert output.pixel_features.shape == (1, 16, *stride4)
    assert output.pred_logits.shape == (1, 6, 5)
    (result,) = model([{"image": images(1, height, width)[0], "height": 21, "width": 50}])
    assert result["sem_seg"].shape == (4, 21, 50)


@torch.no_grad()
def test_images_of_a_batch_do_not_influence_each_other():
    model, batch = tiny_model(), images()
    together = model(batch)
    alone = model(batch[1:].float())
    torch.testing.assert_close(together[1:].pred_masks, alone.pred_masks, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together[1:].pred_logits, alone.pred_logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_masks_can_be_resized_before_they_are_combined():
    key = "MODEL__MASK_FORMER__TEST__SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE"
    before, after = tiny_model(**{key: True}), tiny_model(**{key: False})
    for model in (before, after):  # masks far from 0.5, so that the order of sigmoid and resizing shows
        model.sem_seg_head.predictor.mask_embed.layers[-1].weight.mul_(20)
    image = images(1, 50, 70)[0]
    item = {"image": image, "height": 25, "width": 90}
    output = before(F.pad(before.normalize(image), (0, 26, 0, 14))[None] * before.pixel_std + before.pixel_mean)
    masks = F.interpolate(output.pred_masks, size=(64, 96), mode="bilinear", align_corners=False)[..., :50, :70]
    masks = F.interpolate(masks, size=(25, 90), mode="bilinear", align_corners=False).sigmoid()
    expected = torch.einsum("qk,qhw->khw", output.pred_logits[0].softmax(-1)[:, :-1], masks[0])
    torch.testing.assert_close(before([item])[0]["sem_seg"], expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(after([item])[0]["sem_seg"], expected, atol=1e-3)


@pytest.mark.parametrize("option", ["res5", "encoder"])
def test_bfloat16_autocast_is_finite_and_near_float32(option):
    model = tiny_model(**OPTIONS[option])
    with torch.no_grad():
        exact = model(images())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(images()).float()
            result = model([{"image": images()[0]}])[0]["sem_seg"]
    for (logits, masks), (exact_logits, exact_masks) in zip(output.layers(), exact.layers(), strict=True):
        assert (logits - exact_logits).abs().max() < 0.1
        assert (masks - exact_masks).abs().max() < 0.05 * exact_masks.abs().max() + 0.1
    assert result.dtype == torch.float32 and result.isfinite().all()


def test_list_in_train_mode_is_refused():
    model = tiny_model().train()
    with pytest.raises(TypeError, match=r"rc2l\.engine\.trainer.*model\.eval\(\)"):
        model([{"image": images()[0]}])


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64)])
def test_tensor_of_wrong_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"expected \(B, 3, H, W\)"):
        tiny_model()(torch.zeros(shape))


# --- bad configs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"MODEL__SEM_SEG_HEAD__PIXEL_DECODER_NAME": "FPN"}, "'FPN'; choose one of BasePixelDecoder, MSDeformAttn"),
        ({"MODEL__MASK_FORMER__TRANSFORMER_IN_FEATURE": "res9"}, "'res9'.*res2, res3, res4, res5, pixel_embedding$"),
        (
            {"MODEL__MASK_FORMER__TRANSFORMER_IN_FEATURE": "transformer_encoder"},
            "with BasePixelDecoder and this backbone choose",
        ),
        ({"MODEL__MASK_FORMER__TEST__OVERLAP_THRESHOLD": 1.5}, r"OVERLAP_THRESHOLD is 1.5; it must be in \[0, 1\]"),
        ({"MODEL__MASK_FORMER__TEST__OBJECT_MASK_THRESHOLD": -0.1}, r"OBJECT_MASK_THRESHOLD is -0.1"),
        ({"MODEL__MASK_FORMER__DROPOUT": 1.0}, "DROPOUT is 1.0"),
        ({"MODEL__MASK_FORMER__DEC_LAYERS": 0}, "DEC_LAYERS is 0; it must be 1 or more"),
        ({"MODEL__MASK_FORMER__NUM_OBJECT_QUERIES": 0}, "NUM_OBJECT_QUERIES is 0"),
        ({"MODEL__MASK_FORMER__HIDDEN_DIM": 26}, "HIDDEN_DIM is 26; it must be a multiple of 4 and of .*NHEADS"),
        ({"MODEL__SEM_SEG_HEAD__IN_FEATURES": ["res2", "p5"]}, "IN_FEATURES is .*OUT_FEATURES"),
        ({"MODEL__RESNETS__DEPTH": 50}, "DEPTH is 50.*build_resnet_backbone"),
        ({"MODEL__RESNETS__OUT_FEATURES": ["res6"]}, "OUT_FEATURES is .*stem, res2, res3, res4, res5"),
    ],
)
def test_bad_config_is_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        build_model(tiny_cfg(**overrides))
