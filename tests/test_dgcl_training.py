"""DGCL in training: the pixels it uses, and whole runs through train_net.py, resumed ones and of two processes too."""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

import train_net
from rc2l.data.datasets.shapes import generate_shapes
from rc2l.engine.config_file import load_config
from rc2l.engine.run import argument_parser
from rc2l.modeling.training_network import ProjectionHeads, TrainingNetwork
from rc2l.semi.method import method_of
from rc2l.semi.objectives.dgcl import DensityGuidedContrast
from rc2l.semi.pseudo_label import most_certain, pseudo_labels
from rc2l.semi.step import Step
from rc2l.structures.outputs import SegmentationOutput
from tests.shared_data import REPO
from tests.steps import learner_of, objective_of, step_of, view_of

TINY = """MODEL.SEM_SEG_HEAD.CONVS_DIM 32 MODEL.SEM_SEG_HEAD.ASPP_CHANNELS 32 MODEL.SEM_SEG_HEAD.MASK_DIM 32
MODEL.MASK_FORMER.HIDDEN_DIM 32 MODEL.MASK_FORMER.DIM_FEEDFORWARD 32 MODEL.MASK_FORMER.DEC_LAYERS 2 RECO.DIM 16
RECO.NUM_QUERIES 16 RECO.NUM_KEYS 16 DGCL.DIM 16 DGCL.NEIGHBORS [2,4] DGCL.NUM_ANCHORS 8 DGCL.MEMORY_PER_CLASS 40
DGCL.REFRESHED_PER_CLASS 4 DGCL.MAX_PIXELS 300 DGCL.MEMORY_CONFIDENCE 0.0 SOLVER.IMS_PER_BATCH 2
SOLVER.IMS_PER_BATCH_UNLABELED 2 SEMI.BURN_IN 1 SOLVER.MAX_ITER 4 SOLVER.CHECKPOINT_PERIOD 2 TEST.EVAL_PERIOD 0
VIS_PERIOD 0 DATASETS.SPLIT.FRACTION 1/4 MODEL.DEVICE cpu""".split()
H = W = 8


def config(name: str, *overrides):
    return load_config(str(REPO / f"configs/shapes/{name}.yaml"), [*TINY, *map(str, overrides)])


def outputs(seed: int = 0) -> SegmentationOutput:
    """Per-pixel outputs of two images, 9 classes, at 4x4."""
    generator = torch.Generator().manual_seed(seed)
    features, representation, logits = (torch.randn(2, n, 4, 4, generator=generator) for n in (32, 16, 9))
    representations = {"dgcl": representation.requires_grad_()}
    return SegmentationOutput(None, None, features, pixel_logits=logits, representations=representations)


def dgcl_of(*overrides) -> tuple[DensityGuidedContrast, Callable[..., Step]]:
    """DGCL, and a function that makes its steps."""
    learner = learner_of(config("cutmix-dgcl_deeplab", "DGCL.SKIP_CLASSES", "[]", *overrides))
    return objective_of(learner, "dgcl"), partial(step_of, learner)


@pytest.mark.parametrize(("folder", "images"), [("voc_aug", 10582), ("cityscapes", 2975)])
def test_configs_have_the_splits_of_the_poster(folder, images):
    """Tables 2 and 3."""
    counts = {10582: (662, 1323, 2646, 5291), 2975: (186, 372, 744, 1488)}[images]
    for share, count in zip((16, 8, 4, 2), counts, strict=True):
        recipe = f"configs/{folder}/cutmix-dgcl_deeplab-r101_1-16.yaml"
        cfg = load_config(str(REPO / recipe), ["DATASETS.SPLIT.FRACTION", f"1/{share}"])
        fraction = cfg.DATASETS.SPLIT.FRACTION
        assert fraction == f"1/{share}" and math.ceil(images / share) == count
        assert (cfg.SEMI.METHOD, cfg.SEMI.MIXING.NAME, cfg.MODEL.RESNETS.DEPTH) == ("self_training", "cutmix", 101)
        assert cfg.DGCL.ENABLED and list(cfg.DGCL.SKIP_CLASSES) == ([0] if folder == "voc_aug" else [])
        assert (cfg.DGCL.TEMPERATURE, list(cfg.DGCL.NEIGHBORS)) == (0.5, [8, 16, 32])
        assert (list(cfg.DGCL.DROPPED_SHARE), list(cfg.SELF_TRAINING.KEPT_SHARE)) == ([0.8, 0.1], [0.8, 1.0])
        assert method_of(cfg).needs.entropy


@pytest.mark.parametrize(("progress", "kept"), [(0.0, 7), (0.5, 18), (1.0, 29)])
def test_the_most_uncertain_pseudo_labels_are_left_out(progress, kept):
    """80 % of them at the beginning, 10 % at the end; labelled pixels are all used."""
    dgcl, step_with = dgcl_of()
    targets, pseudo_targets = torch.zeros(2, H, W, dtype=torch.uint8), torch.ones(2, H, W, dtype=torch.uint8)
    entropy = torch.rand(2, H, W)
    view = view_of(pseudo_targets, entropy=entropy)
    step = step_with(outputs(0), targets, outputs(1), view, progress=progress)
    dgcl.losses(step)
    dgcl.after_step(step)
    assert dgcl._used == 32 + kept
    assert dgcl.memory.count[:3].tolist() == [32, kept, 0]
    stored = dgcl.memory.projections[1, :kept]
    pixels = outputs(1).representations["dgcl"].permute(0, 2, 3, 1).flatten(0, 2)
    certain = pixels[entropy[:, ::2, ::2].flatten().argsort()[:kept].sort().values]
    assert torch.equal(stored, certain)


def test_only_labeled_and_confident_pixels_enter_the_memory():
    dgcl, step_with = dgcl_of("DGCL.MEMORY_CONFIDENCE", 0.7, "DGCL.DROPPED_SHARE", "[0.0,0.0]")
    targets, pseudo_targets = torch.zeros(2, H, W, dtype=torch.uint8), torch.ones(2, H, W, dtype=torch.uint8)
    targets[:, :4], pseudo_targets[:, :4] = 255, 255
    confidence = torch.full((2, H, W), 0.7)
    confidence[:, 6:] = 0.71
    view = view_of(pseudo_targets, confidence, torch.zeros(2, H, W))
    step = step_with(outputs(0), targets, outputs(1), view, progress=0.0)
    dgcl.losses(step)
    dgcl.after_step(step)
    assert dgcl._used == 32 and dgcl.memory.count[:3].tolist() == [16, 8, 0]


def test_at_most_so_many_pixels_are_looked_at_and_unused_ones_last():
    dgcl, step_with = dgcl_of("DGCL.MAX_PIXELS", 10)
    targets = torch.full((2, H, W), 255, dtype=torch.uint8)
    targets[0, :2] = 4  # 4 pixels of the features
    dgcl.losses(step_with(outputs(), targets))
    assert dgcl._used == 4 and len(dgcl.last.density) == 10
    targets[:] = 4
    dgcl.losses(step_with(outputs(), targets))
    assert dgcl._used == 10


def test_loss_begins_with_the_memory_and_does_not_touch_features_or_bank():
    (dgcl, step_with), output = dgcl_of(), outputs()
    output.pixel_features.requires_grad_()
    targets = torch.randint(0, 3, (2, H, W), dtype=torch.uint8)
    step = step_with(output, targets)
    losses = dgcl.losses(step)
    losses["loss_dgcl"].backward()
    assert losses["loss_dgcl"] == 0 and dgcl.memory.count.sum() == 0
    dgcl.after_step(step)
    before = {name: buffer.clone() for name, buffer in dgcl.memory.named_buffers()}
    step = step_with(output, targets)
    losses = dgcl.losses(step)
    losses["loss_dgcl"].backward()
    assert losses["loss_dgcl"] > 0 and output.pixel_features.grad is None
    assert output.representations["dgcl"].grad.abs().sum() > 0
    for name, buffer in dgcl.memory.named_buffers():
        assert torch.equal(buffer, before[name]), name
    watched = dgcl.metrics()
    assert watched["dgcl/classes_active"] == 3 and watched["dgcl/memory_entries"] == 32
    assert watched["dgcl/positive_density"] > watched["dgcl/anchor_density"]


def test_entropy_and_the_most_certain():
    logits = torch.tensor([[10.0, 0.0], [0.0, 0.0]]).T.view(1, 2, 1, 2)
    output = SegmentationOutput(None, None, torch.zeros(1, 1, 1, 2), pixel_logits=logits)
    entropy = pseudo_labels(output, torch.ones(1, 1, 2, dtype=torch.bool), with_entropy=True).entropy
    p = torch.tensor([10.0, 0.0]).softmax(0)
    torch.testing.assert_close(entropy.flatten(), torch.stack([-(p * p.log()).sum(), torch.tensor(2.0).log()]))
    assert pseudo_labels(output, torch.ones(1, 1, 2, dtype=torch.bool)).entropy is None

    entropy, candidates = torch.tensor([0.3, 0.1, 0.2, 0.0, 0.4]), torch.tensor([True, True, True, False, True])
    for share, expected in ((0.0, [1]), (0.25, [1]), (0.5, [1, 2]), (0.51, [0, 1, 2]), (1.0, [0, 1, 2, 4])):
        assert most_certain(entropy, candidates, share).nonzero()[:, 0].tolist() == expected
    assert not most_certain(entropy, torch.zeros(5, dtype=torch.bool), 0.5).any()


def test_self_training_keeps_the_most_certain_pixels():
    output, targets = outputs(), torch.randint(0, 9, (2, H, W), dtype=torch.uint8)
    targets[0, 0] = 255
    entropy, confidence = torch.rand(2, H, W), torch.ones(2, H, W)
    cfg = config("cutmix_deeplab", "SELF_TRAINING.KEPT_SHARE", "[0.8,1.0]")
    learner = learner_of(cfg)

    def loss(progress: float, targets: torch.Tensor = targets) -> torch.Tensor:
        view = view_of(targets, confidence, entropy)
        return learner.losses(step_of(learner, output, targets, output, view, progress=progress))["loss_self_training"]

    threshold = entropy[targets != 255].sort().values[int(0.8 * 120) - 1]
    kept = torch.where(entropy <= threshold, targets, 255)
    assert (kept != 255).sum() == 96
    torch.testing.assert_close(loss(0.0), loss(1.0, kept))
    assert loss(0.0) != loss(1.0)
    plain = learner_of(config("cutmix_deeplab"))
    assert method_of(cfg).needs.entropy and not method_of(config("cutmix_deeplab")).needs.entropy
    without = plain.losses(step_of(plain, output, targets, output, view_of(targets, confidence)))
    assert torch.equal(loss(1.0), without["loss_self_training"])


@pytest.mark.parametrize("name", ["cutmix-dgcl_deeplab", "rc2l-dgcl"])
def test_gradient_reaches_the_student_through_a_head_of_its_own(name):
    cfg = config(name, "RECO.ENABLED", True)
    torch.manual_seed(0)
    student = build_model(cfg)
    learner = learner_of(cfg, student)
    network = TrainingNetwork({"student": student}, {"student": learner.heads})
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    targets = torch.randint(0, 9, (2, 64, 64), dtype=torch.uint8)
    view = view_of(targets, entropy=torch.zeros(2, 64, 64))
    for _ in range(2):
        output = network({"student": images})["student"].float()
        step = step_of(learner, output[:2], targets, output[2:], view)
        losses = learner.losses(step)
        learner.after_step(step)
    assert output.representations.keys() == {"reco", "dgcl"}
    losses["loss_dgcl"].backward()
    touched = {key for key, p in network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any(key.startswith("heads.student.dgcl.") for key in touched)
    assert any(key.startswith("students.student.backbone.") for key in touched)
    assert not any(key.startswith("heads.student.reco.") or "predictor" in key for key in touched)


def test_projection_heads_of_earlier_reco_runs_load():
    cfg = config("classmix-reco_deeplab")
    student = build_model(cfg)
    saved, heads = learner_of(cfg, student).heads, learner_of(cfg, student).heads
    heads.load_state_dict(saved["reco"].state_dict())
    for name, value in saved.state_dict().items():
        assert torch.equal(heads.state_dict()[name], value) and name.startswith("reco.")
    both = learner_of(config("classmix-reco_deeplab", "DGCL.ENABLED", True), student).heads
    assert isinstance(both, ProjectionHeads) and list(both) == ["reco", "dgcl"]
    with pytest.raises(RuntimeError, match=r"dgcl\.layers"):
        both.load_state_dict(saved.state_dict())


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("datasets")
    generate_shapes(root, num_train=16, num_val=4, size=64)
    return root


RUNS = {
    "cutmix": ("cutmix-dgcl_deeplab", [], {"loss_ce", "loss_self_training"}),
    "recipe": ("cutmix-dgcl_deeplab", ["SELF_TRAINING.KEPT_SHARE", "[0.8,1.0]"], {"loss_ce", "loss_self_training"}),
    "supervised": ("supervised_deeplab", ["DGCL.ENABLED", True], {"loss_ce"}),
    "s4gan": ("s4gan_deeplab", ["DGCL.ENABLED", True], {"loss_ce", "loss_feature_matching"}),
    "consistency": ("consistency", ["DGCL.ENABLED", True], {"loss_consistency"}),
    "rc2l": ("rc2l-dgcl", ["SOLVER.AMP.ENABLED", True], {"loss_smc"}),
    "rc2l + reco": ("rc2l-dgcl", ["RECO.ENABLED", True, "DGCL.POSITIVES", "average"], {"loss_smc", "loss_reco"}),
}


def train(arguments: list[str], output: Path, *options: str) -> dict:
    return train_net.main(argument_parser("").parse_args([*options, *arguments, "OUTPUT_DIR", str(output)]))


def arguments_of(name: str, *overrides) -> list[str]:
    return ["--config-file", str(REPO / f"configs/shapes/{name}.yaml"), *TINY, *map(str, overrides)]


@pytest.mark.whole_run
@pytest.mark.parametrize("case", RUNS)
def test_every_method_trains_with_dgcl(case, shapes, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shapes))
    name, overrides, expected = RUNS[case]
    results = train(arguments_of(name, *overrides), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    last = [row for row in rows if "total_loss" in row][-1]
    losses = {key: value for key, value in last.items() if key.startswith("loss_")}
    assert expected | {"loss_dgcl"} <= losses.keys()
    assert last["total_loss"] == pytest.approx(sum(losses.values()), rel=1e-4)
    assert losses["loss_dgcl"] > 0 and last["dgcl/classes_active"] > 0 and last["dgcl/memory_entries"] > 0
    checkpoint = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert checkpoint["objectives"]["dgcl"]["count"].sum() == last["dgcl/memory_entries"]
    assert any(key.startswith("dgcl.") for key in checkpoint["projection"])
    if case == "cutmix":  # a model without DGCL loads the checkpoint whole
        plain = arguments_of(name, "DGCL.ENABLED", False, "MODEL.WEIGHTS", tmp_path / "model_final.pth")
        assert train(plain, tmp_path, "--eval-only") == results


BAD = {
    "MEMORY_PER_CLASS": (3, r"DGCL\.MEMORY_PER_CLASS is 3: it must be at least 4, the largest of DGCL\.NEIGHBORS"),
    "REFRESHED_PER_CLASS": (-1, r"DGCL\.REFRESHED_PER_CLASS is -1: it must be a whole number in \[0, "),
    "MAX_PIXELS": (0, r"DGCL\.MAX_PIXELS is 0: it must be a whole number in \[1, "),
    "MEMORY_CONFIDENCE": (1.5, r"DGCL\.MEMORY_CONFIDENCE is 1\.5: it must be a number in \[0, 1\]"),
    "DROPPED_SHARE": (
        "[0.8,1.1]",
        r"DGCL\.DROPPED_SHARE is \[0\.8, 1\.1\]: it must be a list of 2, each a number in \[0, 1\]",
    ),
    "SKIP_CLASSES": ("[9]", r"DGCL\.SKIP_CLASSES is \[9\].*class ids are at most 8"),
    "NUM_ANCHORS": (0, r"DGCL\.NUM_ANCHORS is 0"),
}


@pytest.mark.parametrize("key", BAD)
def test_bad_values_are_one_error(key):
    value, message = BAD[key]
    with pytest.raises(ValueError, match=message):
        method_of(config("rc2l-dgcl", f"DGCL.{key}", value))


def test_a_bad_share_of_self_training_is_one_error():
    with pytest.raises(ValueError, match=r"SELF_TRAINING\.KEPT_SHARE is \[0\.8\]: it must be a list of 2"):
        method_of(config("cutmix_deeplab", "SELF_TRAINING.KEPT_SHARE", "[0.8]"))
