"""The per-pixel family: model, projection head, methods and ReCo through train_net.py."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from torch.nn import functional as F

import train_net
from rc2l.data.datasets.shapes import generate_shapes
from rc2l.engine.config_file import load_config
from rc2l.engine.run import argument_parser
from rc2l.modeling import MaskFormer, PerPixelSegmentor
from rc2l.modeling.training_network import TrainingNetwork
from rc2l.semi.method import method_of
from rc2l.semi.pseudo_label import pseudo_labels
from tests.shared_data import REPO
from tests.steps import learner_of, objective_of, step_of, view_of

TINY = """MODEL.SEM_SEG_HEAD.CONVS_DIM 32 MODEL.SEM_SEG_HEAD.ASPP_CHANNELS 32 MODEL.SEM_SEG_HEAD.MASK_DIM 32
MODEL.MASK_FORMER.HIDDEN_DIM 32 MODEL.MASK_FORMER.DIM_FEEDFORWARD 32 MODEL.MASK_FORMER.DEC_LAYERS 2 RECO.DIM 16
RECO.NUM_QUERIES 16 RECO.NUM_KEYS 16 SOLVER.IMS_PER_BATCH 2 SOLVER.IMS_PER_BATCH_UNLABELED 2 SEMI.BURN_IN 1
SOLVER.MAX_ITER 4 SOLVER.CHECKPOINT_PERIOD 2 TEST.EVAL_PERIOD 0 DATASETS.SPLIT.FRACTION 1/4 MODEL.DEVICE cpu
VIS_PERIOD 0""".split()


def config(name: str, *overrides):
    return load_config(str(REPO / f"configs/shapes/{name}.yaml"), [*TINY, *map(str, overrides)])


def model_of(cfg, seed: int = 0):
    torch.manual_seed(seed)
    return build_model(cfg)


def images(*size: int) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("head", ["DeepLabV3PlusPixelHead", "DeepLabV2PixelHead"])
@pytest.mark.parametrize("size", [(64, 64), (49, 81)])
def test_outputs_of_per_pixel_models(head, size):
    model = model_of(config("classmix_deeplab", "MODEL.SEM_SEG_HEAD.NAME", head)).eval()
    assert isinstance(model, PerPixelSegmentor)
    with torch.no_grad():
        output = model(images(*size))
        scores = model([{"image": images(*size)[0], "height": 30, "width": 40}])[0]["sem_seg"]
    h, w = output.pixel_features.shape[-2:]
    assert output.pixel_logits.shape == (2, 9, h, w) and output.pred_masks is None and len(output) == 2
    assert scores.shape == (9, 30, 40)
    torch.testing.assert_close(scores.sum(0), torch.ones(30, 40))
    if head == "DeepLabV3PlusPixelHead":
        assert (h, w) == (-(-size[0] // 4), -(-size[1] // 4))


@torch.no_grad()
def test_inference_is_the_softmax_of_raised_logits():
    model = model_of(config("classmix_deeplab")).eval()
    image = images(64, 64)
    scores = model([{"image": image[0]}, {"image": image[1]}])
    logits = F.interpolate(model(image).pixel_logits, size=(64, 64), mode="bilinear", align_corners=False)
    for index in range(2):
        torch.testing.assert_close(scores[index]["sem_seg"], logits[index].softmax(0))


@torch.no_grad()
@pytest.mark.parametrize("name", ["classmix_deeplab", "rc2l"])
def test_class_probabilities_and_pseudo_labels_of_both_architectures(name):
    output = model_of(config(name)).eval()(images(64, 64))
    probabilities = output.class_probabilities((64, 64))
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2, 64, 64))
    torch.testing.assert_close(output.class_logits((64, 64)).softmax(1), probabilities, atol=1e-4, rtol=1e-3)
    pseudo = pseudo_labels(output, torch.ones(2, 64, 64, dtype=torch.bool))
    confidence, labels = probabilities.max(1)
    torch.testing.assert_close(pseudo.confidence, confidence)
    assert torch.equal(pseudo.label_map.long(), labels)
    first = output[:1]
    assert len(first) == 1 and torch.equal(first.pixel_features, output.pixel_features[:1])


@pytest.mark.parametrize("name", ["classmix-reco_deeplab", "rc2l-reco"])
def test_projection_head_is_in_the_training_network_only(name):
    cfg = config(name)
    student = model_of(cfg)
    heads = learner_of(cfg, student).heads
    output = TrainingNetwork({"student": student}, {"student": heads})({"student": images(64, 64)})["student"]
    assert output.representations["reco"].shape == (2, 16, *output.pixel_features.shape[-2:])
    assert not any("projection" in key for key in student.state_dict())
    assert student(images(64, 64)).representations == {}
    assert not learner_of(config(name, "RECO.ENABLED", False), student).heads


@pytest.mark.parametrize("name", ["classmix-reco_deeplab", "rc2l-reco"])
def test_reco_gradient_reaches_the_student_through_its_features(name):
    cfg = config(name, "RECO.HARD_THRESHOLD", 1.0)
    student = model_of(cfg)
    learner = learner_of(cfg, student)
    reco = objective_of(learner, "reco")
    network = TrainingNetwork({"student": student}, {"student": learner.heads})
    output = network({"student": torch.cat([images(64, 64)] * 2)})["student"].float()
    targets = torch.randint(0, 9, (2, 64, 64), dtype=torch.uint8)
    confidence = torch.full((2, 64, 64), 0.9)
    losses = learner.losses(step_of(learner, output[:2], targets, output[2:], view_of(targets, confidence)))
    losses["loss_reco"].backward()
    touched = {key for key, p in network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any(key.startswith("heads.student.reco.") for key in touched)
    assert any(key.startswith("students.student.backbone.") for key in touched)
    assert not any("predictor" in key for key in touched)  # class probabilities only choose the queries
    assert reco.last.usable.sum() == 4 * output.representations["reco"][0, 0].numel()
    view = view_of(targets, confidence * 0.7)
    unsure = learner.losses(step_of(learner, output[:2], targets, output[2:], view))
    assert "loss_reco" in unsure and reco.last.usable.sum() == 2 * output.representations["reco"][0, 0].numel()


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("datasets")
    generate_shapes(root, num_train=16, num_val=4, size=64)
    return root


RUNS = {
    "supervised, deeplab": ("supervised_deeplab", [], {"loss_ce"}),
    "cutout, deeplab": ("cutout_deeplab", [], {"loss_ce", "loss_self_training"}),
    "cutmix, deeplab": ("cutmix_deeplab", [], {"loss_ce", "loss_self_training"}),
    "classmix + reco, deeplab": ("classmix-reco_deeplab", [], {"loss_ce", "loss_self_training", "loss_reco"}),
    "supervised + reco, deeplab": ("supervised_deeplab", ["RECO.ENABLED", True], {"loss_ce", "loss_reco"}),
    "rc2l + reco": ("rc2l-reco", [], {"loss_smc", "loss_reco"}),
    "consistency + reco": ("consistency", ["RECO.ENABLED", True], {"loss_consistency", "loss_reco"}),
    "self_training + reco, masks": (
        "rc2l-reco",
        ["SEMI.METHOD", "self_training", "SOLVER.AMP.ENABLED", True, "RECO.KEY_SETS", "query"],
        {"loss_self_training", "loss_reco"},
    ),
}


@pytest.mark.whole_run
@pytest.mark.parametrize("case", RUNS)
def test_methods_train_evaluate_resume_and_save_no_projection(case, shapes, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shapes))
    name, overrides, expected = RUNS[case]
    arguments = ["--config-file", str(REPO / f"configs/shapes/{name}.yaml"), *TINY, "OUTPUT_DIR", str(tmp_path)]
    arguments += map(str, overrides)
    results = train_net.main(argument_parser("").parse_args(arguments))
    assert {"teacher/mIoU", "student/mIoU"} <= results.keys()
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    last = [row for row in rows if "total_loss" in row][-1]
    losses = {key: value for key, value in last.items() if key.startswith("loss_")}
    assert expected <= losses.keys() and last["total_loss"] == pytest.approx(sum(losses.values()), rel=1e-4)
    with_reco = "loss_reco" in expected
    assert ("reco/positive_similarity" in last) == ("reco/valid_queries" in last) == with_reco
    assert ("self_training/confident_share" in last) == ("loss_self_training" in expected)
    checkpoint = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert ("projection" in checkpoint) == with_reco
    assert checkpoint["model"].keys() == checkpoint["teacher"].keys()
    assert not any("projection" in key for key in checkpoint["model"])
    # A model without ReCo loads the checkpoint whole.
    scored = train_net.main(
        argument_parser("").parse_args(
            ["--eval-only", *arguments, "RECO.ENABLED", "False", "MODEL.WEIGHTS", str(tmp_path / "model_final.pth")]
        )
    )
    assert scored == results


BAD = {
    "regions of pixels": ("classmix_deeplab", ["SEMI.METHOD", "rc2l"], r"PerPixelSegmentor has none of.*self_training"),
    "mixing": ("rc2l", ["SEMI.MIXING.NAME", "mixup"], r"MIXING\.NAME is 'mixup'.*cutmix, classmix, cutout or none"),
    "box": ("rc2l", ["SEMI.MIXING.BOX", "whole"], r"SEMI\.MIXING\.BOX is 'whole'"),
    "delta_s": ("cutmix_deeplab", ["SELF_TRAINING.CONFIDENCE_THRESHOLD", 2.0], r"CONFIDENCE_THRESHOLD is 2\.0"),
    "delta_w": ("rc2l-reco", ["RECO.PSEUDO_THRESHOLD", -0.1], r"RECO\.PSEUDO_THRESHOLD is -0\.1"),
    "queries": ("rc2l-reco", ["RECO.NUM_QUERIES", 0], r"RECO\.NUM_QUERIES is 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_values_are_one_error(case):
    name, overrides, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        method_of(config(name, *overrides))


def test_bad_heads_are_one_error():
    with pytest.raises(ValueError, match=r"SEM_SEG_HEAD\.NAME is 'MaskFormerHead'.*DeepLabV3PlusPixelHead"):
        model_of(config("cutmix_deeplab", "MODEL.SEM_SEG_HEAD.NAME", "MaskFormerHead"))
    with pytest.raises(ValueError, match=r"PROJECT_CHANNELS is \[48\].*2 in all"):
        model_of(config("cutmix_deeplab", "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS", "[48]"))
    assert isinstance(model_of(config("rc2l")), MaskFormer)
