"""Mask2Former's decoders: parity with the official numbers and names, options, odd inputs, gradients."""

import json

import numpy as np
import pytest
import torch

import rc2l  # noqa: F401  makes detectron2 importable

# isort: split
from detectron2.modeling import build_model

from rc2l.config import get_rc2l_cfg
from rc2l.modeling.deformable_attention import MultiScaleDeformableAttention, sample_levels
from rc2l.modeling.position_encoding import sine_position_encoding
from rc2l.structures.regions import Regions
from tests.shared_data import shared_file
from tests.test_maskformer import assert_close, images, official_yaml, targets_of, tiny_model
from tests.test_points import run_recorded

DECODERS = {
    "deformable": {
        "MODEL__SEM_SEG_HEAD__PIXEL_DECODER_NAME": "MSDeformAttnPixelDecoder",
        "MODEL__SEM_SEG_HEAD__TRANSFORMER_ENC_LAYERS": 1,
    },
    "fpn": {},
    "encoder": {
        "MODEL__SEM_SEG_HEAD__PIXEL_DECODER_NAME": "TransformerEncoderPixelDecoder",
        "MODEL__SEM_SEG_HEAD__TRANSFORMER_ENC_LAYERS": 1,
    },
}
MASKED = {
    "MODEL__MASK_FORMER__TRANSFORMER_DECODER_NAME": "MultiScaleMaskedTransformerDecoder",
    "MODEL__MASK_FORMER__TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder",
}


def masked_model(decoder: str = "fpn", **overrides):
    return tiny_model(**MASKED, **DECODERS[decoder], **overrides)


# --- parity -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["forward", "forward_fpn", "forward_fpnenc"])
def reference(request):
    """(arrays, config, model) of one reference file."""
    arrays = np.load(shared_file(f"reference/mask2former_{request.param}.npz"))
    cfg = get_rc2l_cfg()
    for key, value in json.loads(str(arrays["config_json"])).items():
        if key.startswith("MODEL."):
            cfg.merge_from_list([key, value])
    cfg.MODEL.DEVICE = "cpu"
    return arrays, cfg, build_model(cfg)


@pytest.fixture
def parity(reference):
    arrays, _, model = reference
    model.load_state_dict({name[3:]: torch.from_numpy(arrays[name]) for name in arrays.files if name[:3] == "sd/"})
    return arrays, model.eval()


@torch.no_grad()
def test_parity_of_features(parity):
    arrays, model = parity
    features = model.backbone(model.normalize(torch.from_numpy(arrays["image"])))
    pixel_features, levels = model.sem_seg_head.pixel_decoder.forward_levels(features)
    assert_close(pixel_features, arrays["feat/mask_features"], "mask_features")
    for index in range(3):
        assert_close(levels[index], arrays[f"feat/multi_scale{index}"], f"level {index}")
        expected = arrays[f"feat/decoder_pos{index}"]
        assert_close(sine_position_encoding(*expected.shape[1:], expected.shape[0])[0], expected, f"position {index}")


@torch.no_grad()
def test_parity_of_queries_attention_masks_and_predictions(parity):
    arrays, model = parity
    predictor = model.sem_seg_head.predictor
    queries, blocked = [], []
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs: blocked.append(inputs[-1]))
        for layer in predictor.transformer_cross_attention_layers
    ]
    hooks.append(predictor.decoder_norm.register_forward_pre_hook(lambda _, inputs: queries.append(inputs[0])))
    output = model(torch.from_numpy(arrays["image"]))
    for hook in hooks:
        hook.remove()
    assert f"attn/mask{len(blocked)}" not in arrays.files and blocked
    open_rows = 0
    for index, actual in enumerate(blocked):
        expected = torch.from_numpy(arrays[f"attn/mask{index}"]).bool().flatten(2)
        full = expected.all(-1)
        assert torch.equal(full, torch.from_numpy(arrays[f"attn/blocked{index}"]).bool())
        open_rows += full.sum().item()
        assert torch.equal(actual, expected & ~full[..., None])
    assert open_rows > 0
    # Normalised once for the mask and once for the prediction.
    for index, actual in enumerate(queries[1::2]):
        assert_close(actual, arrays[f"dec/query{index}"], f"query {index}")
    assert_close(output.pred_logits, arrays["pred_logits"], "pred_logits")
    assert_close(output.pred_masks, arrays["pred_masks"], "pred_masks")
    assert len(output.aux_outputs) == len(blocked)
    for index, (logits, masks) in enumerate(output.aux_outputs):
        assert_close(logits, arrays[f"aux{index}_pred_logits"], f"aux{index} logits")
        assert_close(masks, arrays[f"aux{index}_pred_masks"], f"aux{index} masks")
    alone = model(torch.from_numpy(arrays["image"]), auxiliary=False)
    assert alone.aux_outputs == []
    torch.testing.assert_close(alone.pred_masks, output.pred_masks, rtol=1e-4, atol=1e-4)


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


def test_parity_of_a_training_step(parity, reference):
    arrays, model = parity
    options = reference[1].MODEL.MASK_FORMER
    model.train()
    output = model(torch.from_numpy(arrays["image"]))
    for name in (name for name in arrays.files if name.startswith("train/after/")):
        assert_close(model.get_buffer(name.removeprefix("train/after/")), arrays[name], name)
    data = {name: torch.from_numpy(arrays[name]) for name in arrays.files if name.startswith("train/draw/")}
    names = ["", *(f"aux{index}_" for index in range(len(output.aux_outputs)))]
    weights = {"ce": options.CLASS_WEIGHT, "mask": options.MASK_WEIGHT, "dice": options.DICE_WEIGHT}
    layers, regions = output.layers(), Regions.from_masks(*targets_of(arrays))
    ratios = options.OVERSAMPLE_RATIO, options.IMPORTANCE_SAMPLE_RATIO
    matches, losses = run_recorded(
        layers,
        regions,
        "train/draw/",
        data,
        names,
        options.NO_OBJECT_WEIGHT,
        tuple(weights.values()),
        (options.TRAIN_NUM_POINTS, *ratios),
    )
    for pairs, name in zip(matches.pairs, names, strict=True):
        for b in range(len(arrays["image"])):
            assert pairs[1][pairs[0] == b].tolist() == arrays[f"train/match/{name}src{b}"].tolist()
            assert pairs[2][pairs[0] == b].tolist() == arrays[f"train/match/{name}tgt{b}"].tolist()
    losses = {name: weights[name.split("_")[1]] * value for name, value in losses.items()}
    assert {f"train/{name}" for name in losses} == {name for name in arrays.files if name.startswith("train/loss_")}
    for name, value in losses.items():
        np.testing.assert_allclose(value.item(), arrays[f"train/{name}"], rtol=1e-4, err_msg=name)
    sum(losses.values()).backward()
    norms = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.requires_grad}
    prefix = "train/gradnorm/"
    assert {prefix + name for name in norms} == {name for name in arrays.files if name.startswith(prefix)}
    for name, value in norms.items():
        np.testing.assert_allclose(value, arrays[prefix + name], rtol=1e-3, atol=1e-5, err_msg=name)


def test_deformable_attention_equals_the_official_one():
    arrays = np.load(shared_file("reference/mask2former_deform_attn.npz"))
    data = {name: torch.from_numpy(arrays[name]) for name in arrays.files if arrays[name].dtype.kind in "fiu"}
    shapes = [tuple(shape) for shape in data["shapes"].tolist()]
    value, locations, weights = (
        data[f"core/{name}"].clone().requires_grad_() for name in ("value", "locations", "weights")
    )
    parts = value.permute(0, 2, 3, 1).split([h * w for h, w in shapes], dim=3)
    output = sample_levels(
        [part.unflatten(3, shape) for part, shape in zip(parts, shapes, strict=True)], locations, weights
    )
    (output * data["core/cotangent"]).sum().backward()
    torch.testing.assert_close(output, data["core/output"], rtol=1e-4, atol=1e-5)
    for name, tensor in (("value", value), ("locations", locations), ("weights", weights)):
        torch.testing.assert_close(tensor.grad, data[f"core/grad_{name}"], rtol=1e-3, atol=1e-4)

    query = data["module/query"]
    module = MultiScaleDeformableAttention(query.shape[-1], len(shapes), int(data["n_heads"]), int(data["n_points"]))
    torch.testing.assert_close(
        module.sampling_offsets.bias.data, data["init/sampling_offsets_bias"].flatten(), rtol=1e-6, atol=1e-6
    )
    module.load_state_dict({n.removeprefix("module/sd/"): v for n, v in data.items() if n.startswith("module/sd/")})
    inputs = query, data["module/reference_points"], data["module/input"], shapes
    torch.testing.assert_close(module(*inputs), data["module/output"], rtol=1e-4, atol=1e-5)
    masked = module(*inputs, padding_mask=data["module/padding_mask"].bool())
    torch.testing.assert_close(masked, data["module/output_masked"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["ade20k_semantic_R50", "cityscapes_semantic_R50"])
def test_official_yaml_gives_official_names_shapes_and_initialisation(name, tmp_path):
    expected = json.loads(shared_file("reference/mask2former_keys_r50.json").read_text())[name]
    path = tmp_path / "official.yaml"
    path.write_text(official_yaml({k: v for k, v in expected["config"].items() if k[:7] != "GLOBAL."} | {"VERSION": 2}))
    cfg = get_rc2l_cfg()
    cfg.merge_from_file(str(path))
    statistics = expected.get("init_min_max_std_of_one_draw", {})
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    state = model.state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == expected["state_dict"]
    assert {key for key, value in model.named_parameters() if value.requires_grad} == set(expected["trainable"])
    assert sum(value.numel() for value in model.parameters()) == expected["num_parameters"]
    if not statistics:
        return
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    for key, (_, largest, deviation) in statistics.items():
        value = model.state_dict()[key]
        if value.numel() > 200:
            assert value.std().item() == pytest.approx(deviation, rel=0.1, abs=1e-6), key
        if value.numel() > 5000 and "embed.weight" not in key and "feat" not in key:
            assert value.max().item() == pytest.approx(largest, rel=0.02, abs=1e-6), key


# --- options and inputs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("layers", [2, 5])
@pytest.mark.parametrize("hidden", [24, 32])
def test_gradient_reaches_every_parameter(decoder, layers, hidden):
    model = masked_model(decoder, MODEL__MASK_FORMER__DEC_LAYERS=layers, MODEL__MASK_FORMER__HIDDEN_DIM=hidden).train()
    output = model(images())
    assert len(output.aux_outputs) == layers - 1
    sum(logits.square().mean() + masks.square().mean() for logits, masks in output.layers()).backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is None} == set()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@torch.no_grad()
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("size", [(33, 47), (70, 35)])
def test_odd_sizes_and_batch_of_one(decoder, size):
    height, width = size
    model = masked_model(decoder)
    output = model(images(1, height, width))
    stride4 = (-(-height // 4), -(-width // 4))
    assert output.pred_masks.shape == (1, 6, *stride4) and output.pixel_features.shape == (1, 16, *stride4)
    (result,) = model([{"image": images(1, height, width)[0], "height": 21, "width": 50}])
    assert result["sem_seg"].shape == (4, 21, 50)


@torch.no_grad()
def test_deformable_decoder_of_other_levels_and_with_the_plain_predictor():
    three = {
        "MODEL__SEM_SEG_HEAD__IN_FEATURES": ["res2", "res3", "res4"],
        "MODEL__SEM_SEG_HEAD__DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": ["res3", "res4"],
    }
    assert masked_model("deformable", **three)(images()).pred_masks.shape == (2, 6, 16, 24)
    plain = {"MODEL__MASK_FORMER__TRANSFORMER_IN_FEATURE": "transformer_encoder"}
    assert tiny_model(**DECODERS["deformable"], **plain)(images()).pred_masks.shape == (2, 6, 16, 24)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({**MASKED, "MODEL__MASK_FORMER__TRANSFORMER_IN_FEATURE": "res5"}, "multi_scale_pixel_decoder.*belong"),
        ({"MODEL__MASK_FORMER__TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder"}, "belong together"),
        ({"MODEL__MASK_FORMER__TRANSFORMER_DECODER_NAME": "Deformable"}, "'Deformable'; choose one of Standard"),
        ({**MASKED, "MODEL__MASK_FORMER__DEC_LAYERS": 1}, "DEC_LAYERS is 1; it must be 2 or more"),
        ({**MASKED, "MODEL__SEM_SEG_HEAD__IN_FEATURES": ["res2", "res3"]}, "needs 3 or more features"),
        ({**MASKED, **DECODERS["deformable"], "MODEL__SEM_SEG_HEAD__CONVS_DIM": 48}, "CONVS_DIM is 48.*multiple of 32"),
        (
            {
                **MASKED,
                **DECODERS["deformable"],
                "MODEL__SEM_SEG_HEAD__DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": ["res3", "res5"],
            },
            "without a gap",
        ),
        ({"MODEL__MASK_FORMER__TEST__INSTANCE_ON": True}, "INSTANCE_ON is True.*semantic"),
    ],
)
def test_bad_config_is_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(**overrides)
