"""MODEL.WEIGHTS: every kind of file, what is reported, and what is refused."""

import hashlib
import json
import logging
import pickle
import re

import numpy as np
import pytest
import torch
import torchvision

import rc2l  # noqa: F401  makes detectron2 importable

# isort: split
from detectron2.modeling import build_model

from rc2l.config import get_rc2l_cfg
from rc2l.modeling import weight_formats, weight_sources
from rc2l.modeling.weight_files import read_weight_file
from rc2l.modeling.weight_formats import torchvision_to_detectron2
from rc2l.modeling.weights import load_weights
from tests.shared_data import shared_file

RGB_STD = [58.395, 57.12, 57.375]


def make_cfg(depth: int = 18, width: int = 64, **overrides):
    """A small head on a ResNet whose stem has 64 channels and whose basic blocks have ``width`` in res2."""
    cfg = get_rc2l_cfg()
    values = {
        "MODEL.META_ARCHITECTURE": "MaskFormer",
        "MODEL.DEVICE": "cpu",
        "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
        "MODEL.PIXEL_STD": RGB_STD,
        "MODEL.BACKBONE.NAME": "build_basic_resnet_backbone" if depth < 50 else "build_resnet_backbone",
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.RESNETS.DEPTH": depth,
        "MODEL.RESNETS.NORM": "BN",
        "MODEL.RESNETS.RES2_OUT_CHANNELS": width if depth < 50 else 256,
        "MODEL.RESNETS.STEM_OUT_CHANNELS": min(width, 64),
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
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
        "MODEL.MASK_FORMER.DEC_LAYERS": 2,
        "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 6,
        "INPUT.FORMAT": "RGB",
    }
    values.update({key.replace("__", "."): value for key, value in overrides.items()})
    cfg.merge_from_list([item for pair in values.items() for item in pair])
    return cfg


def make_model(depth: int = 18, width: int = 64, seed: int = 0, **overrides):
    torch.manual_seed(seed)
    return build_model(make_cfg(depth, width, **overrides)).eval()


def tiny(seed: int = 0, **overrides):
    return make_model(18, 8, seed, **overrides)


def make_torchvision(depth: int):
    """A torchvision ResNet whose batch norms have statistics and affine maps worth comparing."""
    torch.manual_seed(1)
    net = getattr(torchvision.models, f"resnet{depth}")(weights=None).eval()
    for name, value in net.state_dict().items():
        if re.search(r"(bn\d|downsample\.1)\.(weight|running_var)$", name):
            value.uniform_(0.5, 1.5)
        elif re.search(r"(bn\d|downsample\.1)\.(bias|running_mean)$", name):
            value.uniform_(-0.2, 0.2)
    return net


def torchvision_features(net, x):
    x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
    features = {}
    for index, stage in enumerate((net.layer1, net.layer2, net.layer3, net.layer4), start=2):
        features[f"res{index}"] = x = stage(x)
    return features


@torch.no_grad()
def assert_same_features(model, net) -> None:
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    actual, expected = model.backbone(x), torchvision_features(net, x)
    for name in ("res2", "res3", "res4", "res5"):
        # Rounding goes with a map's largest values: a folded norm rounds otherwise than one after the convolution.
        scale = max(expected[name].abs().max().item(), 1)
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-4, atol=1e-4 * scale)


@pytest.fixture
def records():
    """Records of the logger rc2l.weights, whatever other tests did to its parents."""
    found = []

    class Collector(logging.Handler):
        def emit(self, record):
            found.append(record)

    logger, collector = logging.getLogger("rc2l.weights"), Collector()
    level = logger.level
    logger.addHandler(collector)
    logger.setLevel(logging.INFO)
    yield found
    logger.removeHandler(collector)
    logger.setLevel(level)


def dump(obj, path, protocol=4) -> str:
    path.write_bytes(pickle.dumps(obj, protocol=protocol))
    return str(path)


def save(obj, path) -> str:
    torch.save(obj, path)
    return str(path)


# --- backbones --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "norm"), [(18, "BN"), (50, "FrozenBN")])
def test_torchvision_file_gives_torchvision_features(depth, norm, tmp_path, records):
    net, model = make_torchvision(depth), make_model(depth, MODEL__RESNETS__NORM=norm)
    path = save(net.state_dict(), tmp_path / "resnet.pth")
    report = load_weights(model, path, cfg=make_cfg(depth))
    assert_same_features(model, net)
    assert report.kind == "torchvision ResNet" and report.warnings == []
    assert set(report.skipped) == {"backbone.fc.weight", "backbone.fc.bias"}
    assert all(name.startswith("sem_seg_head.") for name in report.missing) and report.missing
    assert not any("num_batches_tracked" in name for name in (*report.skipped, *report.missing))
    (record,) = records
    message = record.getMessage()
    assert hashlib.sha256((tmp_path / "resnet.pth").read_bytes()).hexdigest()[:12] in message
    assert f"loaded {len(report.loaded)} of {len(report.loaded) + len(report.missing)} tensors" in message
    assert re.search(r"skipped 2: backbone\.fc\.weight \(1000, \d+\) is not in the model", message)
    assert re.search(r"sem_seg_head\.pixel_decoder \(\d+\); sem_seg_head\.predictor \(\d+\)", message)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_detectron2_pkl_gives_the_same_features(protocol, tmp_path):
    net, model = make_torchvision(18), make_model(18)
    state = {torchvision_to_detectron2(name): value.numpy() for name, value in net.state_dict().items()}
    content = {"model": state, "__author__": "torchvision", "matching_heuristics": True}
    report = load_weights(model, dump(content, tmp_path / "R-18.pkl", protocol))
    assert_same_features(model, net)
    assert report.kind == "detectron2 ResNet" and len(report.skipped) == 2


def caffe2_names(net) -> dict[str, np.ndarray]:
    """The parameters of a torchvision ResNet under Caffe2's names; batch norm without statistics."""
    state = {}
    for name, value in net.state_dict().items():
        parts = name.split(".")
        suffix = {"weight": "s", "bias": "b"}.get(parts[-1])
        is_conv = parts[-2].startswith("conv") or name.endswith("downsample.0.weight")
        if suffix is None:
            continue
        if parts[0] == "fc":
            new = f"fc1000_{'w' if suffix == 's' else 'b'}"
        elif parts[0] in ("conv1", "bn1"):
            new = "conv1_w" if is_conv else f"res_conv1_bn_{suffix}"
        else:
            branch = "1" if "downsample" in parts else "2" + "abc"[int(parts[2][-1]) - 1]
            new = f"res{int(parts[0][-1]) + 1}_{parts[1]}_branch{branch}_{'w' if is_conv else 'bn_' + suffix}"
        state[new] = value.numpy()
    return state


@pytest.mark.parametrize(("norm", "wrapped"), [("FrozenBN", True), ("BN", False)])
def test_caffe2_pkl_has_batch_norm_as_affine_map(norm, wrapped, tmp_path):
    net = make_torchvision(50)
    for name, value in net.state_dict().items():
        if name.endswith("running_mean"):
            value.zero_()
        elif name.endswith("running_var"):
            value.fill_(1 - 1e-5)
    model = make_model(50, MODEL__RESNETS__NORM=norm)
    for name, value in model.state_dict().items():  # as if it had been trained: the file must reset it
        if name.startswith("backbone.") and name.endswith("running_mean"):
            value.fill_(3.0)
    weights = caffe2_names(net)
    weights["conv1_w_momentum"] = weights["conv1_w"]
    content = {"model": weights, "__author__": "Caffe2"} if wrapped else {"blobs": weights}
    report = load_weights(model, dump(content, tmp_path / "R-50.pkl", 2))
    assert_same_features(model, net)
    assert report.kind == "Caffe2 ResNet"
    assert set(report.skipped) == {"backbone.fc1000.weight", "backbone.fc1000.bias"}
    assert not any(name.startswith("backbone.") for name in report.missing)
    assert [("FrozenBN" in warning) for warning in report.warnings] == ([] if norm == "FrozenBN" else [True])


@pytest.mark.parametrize(
    ("convention", "overrides", "words"),
    [
        ("torchvision", {}, []),
        ("torchvision", {"INPUT__FORMAT": "BGR"}, ["INPUT.FORMAT is BGR, they expect RGB"]),
        ("torchvision", {"MODEL__PIXEL_STD": [1.0, 1.0, 1.0]}, ["MODEL.PIXEL_STD is"]),
        ("torchvision", {"MODEL__PIXEL_MEAN": [103.53, 116.28, 123.675]}, ["MODEL.PIXEL_MEAN is"]),
        ("torchvision", {"MODEL__RESNETS__STRIDE_IN_1X1": True}, ["STRIDE_IN_1X1 is True, they expect False"]),
        ("caffe2", {}, ["they expect BGR", "MODEL.PIXEL_STD is", "STRIDE_IN_1X1 is False, they expect True"]),
        (
            "caffe2",
            {
                "INPUT__FORMAT": "BGR",
                "MODEL__PIXEL_MEAN": [103.53, 116.28, 123.675],
                "MODEL__PIXEL_STD": [1.0, 1.0, 1.0],
                "MODEL__RESNETS__STRIDE_IN_1X1": True,
                "MODEL__RESNETS__NORM": "FrozenBN",
            },
            [],
        ),
    ],
)
def test_warning_where_weights_expect_another_input(convention, overrides, words, tmp_path, records):
    state = {name: value.numpy() for name, value in tiny().backbone.state_dict().items()}
    if convention == "caffe2":
        state = {name: value for name, value in state.items() if "running" not in name}
    path = dump({"model": state, "__author__": convention}, tmp_path / "x.pkl")
    cfg = make_cfg(18, 8, **overrides)
    cfg.MODEL.RESNETS.DEPTH = 50  # depth 18 has no 1x1 convolution, so its stride is not checked
    norm = {"MODEL__RESNETS__NORM": cfg.MODEL.RESNETS.NORM}
    report = load_weights(tiny(MODEL__RESNETS__STRIDE_IN_1X1=False, **norm), path, cfg=cfg)
    found = [warning for warning in report.warnings if "they expect" in warning]
    assert len(found) == (1 if words else 0)
    assert all(word in found[0] for word in words)
    assert [record.levelname for record in records] == ["INFO"] + ["WARNING"] * len(report.warnings)


# --- whole models -----------------------------------------------------------------------------------------------------


def legacy(state: dict) -> dict:
    return {name.replace("sem_seg_head.pixel_decoder.", "sem_seg_head."): value for name, value in state.items()}


@torch.no_grad()
def assert_same_outputs(model, other) -> None:
    x = torch.randint(0, 256, (1, 3, 64, 64), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(model(x).pred_masks, other(x).pred_masks)
    torch.testing.assert_close(model(x).pred_logits, other(x).pred_logits)


@pytest.mark.parametrize("names", ["current", "legacy"])
@pytest.mark.parametrize("form", ["pth", "pkl", "bare", "ddp"])
def test_maskformer_checkpoint(names, form, tmp_path):
    source, model = tiny(1), tiny(2)
    state = dict(source.state_dict())
    state = legacy(state) if names == "legacy" else state
    if form == "pkl":
        arrays = {name: value.numpy() for name, value in state.items()}
        path = dump({"model": arrays, "__author__": "third_party"}, tmp_path / "model.pkl")
    elif form == "ddp":
        path = save({"model": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "model.pth")
    else:
        path = save(state if form == "bare" else {"model": state, "iteration": 3}, tmp_path / "model.pth")
    report = load_weights(model, path, strict=True, cfg=make_cfg(INPUT__FORMAT="BGR"))
    assert_same_outputs(model, source)
    assert report.missing == [] and report.skipped == {} and report.warnings == []
    assert report.kind == ("MaskFormer" if names == "current" else "MaskFormer, legacy names")


@pytest.mark.parametrize("depth", [50, 101])
@pytest.mark.parametrize("decoder", ["TransformerEncoderPixelDecoder", "BasePixelDecoder"])
def test_legacy_names_are_those_of_the_official_code(depth, decoder):
    keys = json.loads(shared_file(f"reference/maskformer_keys_r{depth}.json").read_text())[decoder]
    for current, old in keys["legacy_v1_names"].items():
        assert weight_formats._current_name(old) == current
    for current in keys["state_dict"]:
        assert weight_formats._current_name(current) == current


@pytest.mark.parametrize(("prefer", "expected"), [("teacher", 1), ("student", 0)])
def test_own_checkpoint_gives_teacher_or_student(prefer, expected, tmp_path):
    models = [tiny(1), tiny(2)]
    content = {"model": models[0].state_dict(), "teacher": models[1].state_dict(), "iteration": 5}
    model = tiny(3)
    report = load_weights(model, save(content, tmp_path / "model_final.pth"), prefer=prefer)
    assert_same_outputs(model, models[expected])
    assert report.kind == f"MaskFormer, {prefer}"
    without = save({"model": models[0].state_dict(), "teacher": None}, tmp_path / "supervised.pth")
    load_weights(model, without, prefer=prefer)
    assert_same_outputs(model, models[0])


def test_other_number_of_classes_leaves_only_the_class_head(tmp_path, records):
    source, model = tiny(1), tiny(2, MODEL__SEM_SEG_HEAD__NUM_CLASSES=9, MODEL__MASK_FORMER__NO_OBJECT_WEIGHT=0.3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_weights(model, save({"model": source.state_dict()}, tmp_path / "coco.pth"))
    head = {f"sem_seg_head.predictor.class_embed.{part}" for part in ("weight", "bias")}
    assert set(report.skipped) == set(report.missing) == head
    kept = head | {"criterion.empty_weight"}
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name] if name in kept else source.state_dict()[name]), name
    assert "class_embed.weight (5, 24) does not fit (10, 24) (other number of classes)" in records[0].getMessage()
    with pytest.raises(ValueError, match=r"does not fill the whole model: 2 tensors such as sem_seg_head\.predictor"):
        load_weights(model, str(tmp_path / "coco.pth"), strict=True)


def test_weight_of_no_object_is_the_configs_not_the_files(tmp_path):
    model = tiny(MODEL__MASK_FORMER__NO_OBJECT_WEIGHT=0.3)
    load_weights(model, save(tiny().state_dict(), tmp_path / "model.pth"))
    assert model.criterion.empty_weight[-1] == pytest.approx(0.3)


@pytest.mark.parametrize("queries", [4, 9])
def test_other_number_of_queries_is_sliced(queries, tmp_path):
    source, model = tiny(1, MODEL__MASK_FORMER__NUM_OBJECT_QUERIES=queries), tiny(2)
    name = "sem_seg_head.predictor.query_embed.weight"
    before = model.state_dict()[name].clone()
    report = load_weights(model, save(source.state_dict(), tmp_path / "model.pth"))
    used = min(queries, 6)
    assert report.sliced == {name: f"first {used} of {queries} queries for the model's 6"}
    assert torch.equal(model.state_dict()[name][:used], source.state_dict()[name][:used])
    assert torch.equal(model.state_dict()[name][used:], before[used:])
    assert name in report.loaded and report.missing == []


def test_empty_path_loads_nothing(records):
    model = tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_weights(model, "")
    assert report.loaded == [] and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "random weights" in records[0].getMessage()


def test_addresses_go_through_path_manager(tmp_path, monkeypatch):
    path = tmp_path / "cached"  # without its suffix, as a download may be kept
    dump({"model": {name: value.numpy() for name, value in tiny(1).state_dict().items()}}, path)
    asked = []
    monkeypatch.setattr(weight_sources.PathManager, "get_local_path", lambda name: asked.append(name) or str(path))
    report = load_weights(tiny(2), "detectron2://COCO/model.pkl", strict=True)
    assert asked == ["detectron2://COCO/model.pkl"] and report.missing == []


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (lambda: {"a.b": torch.ones(1)}, r"fits 0 of the backbone's \d+ parameters; likely cause: its names \(a.b"),
        (
            lambda: make_model(18, 16).backbone.state_dict(),
            r"fits \d+ of the backbone's 60 .*stem\.conv1.* does not fit .*set MODEL\.RESNETS\.\{DEPTH, STEM",
        ),
        (
            lambda: make_torchvision(18).state_dict(),
            r"fits \d+ of the backbone's 60 .*likely cause: another width or block",
        ),
        (
            lambda: torchvision.models.resnet34(weights=None).state_dict(),
            r"holds a network with blocks \(3, 4, 6, 3\), the model has \(2, 2, 2, 2\); fix: set MODEL\.RESNETS\.DEPTH",
        ),
    ],
)
def test_backbone_file_that_fits_too_little_is_refused_and_changes_nothing(state, message, tmp_path):
    model = tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    path = save(state(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match=message) as error:
        load_weights(model, path)
    assert path in str(error.value) and "\n" not in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_half_of_the_backbone_is_enough(tmp_path):
    state = tiny(1).backbone.state_dict()
    parameters = [name for name, _ in tiny().backbone.named_parameters()]
    assert len(parameters) == 60
    for count in (29, 30):
        part = {name: value for name, value in state.items() if name in parameters[-count:] or "running" in name}
        path = save(part, tmp_path / f"{count}.pth")
        if count == 30:
            assert len(load_weights(tiny(), path).missing) > 30
        else:
            with pytest.raises(ValueError, match="fits 29 of the backbone's 60 parameters"):
                load_weights(tiny(), path)


def test_file_of_another_depth_that_fits_by_half_is_warned_about(tmp_path):
    shallow = tiny().backbone.state_dict()
    report = load_weights(tiny(MODEL__RESNETS__DEPTH=34), save(shallow, tmp_path / "r18.pth"))
    (warning,) = report.warnings
    assert re.search(r"blocks \(2, 2, 2, 2\), the model has \(3, 4, 6, 3\): \d\d of the model's 108 backbone", warning)


class Harmful:
    """Unpickling it would create a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("form", ["pkl", "pth"])
def test_code_in_a_file_is_not_run(form, tmp_path):
    victim = tmp_path / "victim"
    content = {"model": {"backbone.stem.conv1.weight": Harmful(victim)}}
    path = (dump if form == "pkl" else save)(content, tmp_path / f"harmful.{form}")
    with pytest.raises(ValueError, match=r"cannot be loaded safely: it contains \S*open") as error:
        read_weight_file(path)
    assert not victim.exists() and path in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be loaded safely"),
        (b"PK\x03\x04 cut short", "cannot be loaded safely"),
        (pickle.dumps([1, 2]), "holds a list, not named tensors"),
        (pickle.dumps({"model": {"a": "text"}}), "holds no named tensors"),
    ],
)
def test_damaged_and_foreign_files_are_refused(content, message, tmp_path):
    path = tmp_path / "bad.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_weight_file(str(path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_missing_file_and_unknown_preference_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"MODEL\.WEIGHTS: there is no file .*none\.pth"):
        read_weight_file(str(tmp_path / "none.pth"))
    network = {"weight": torch.zeros(1)}
    torch.save({"model": network, "teacher": network}, tmp_path / "run.pth")
    with pytest.raises(ValueError, match="holds the networks teacher, student, but no best"):
        read_weight_file(str(tmp_path / "run.pth"), prefer="best")
