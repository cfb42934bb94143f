"""Every method on both models in ReCo's two labelling modes: few labelled images, and sparse labels on all images."""

import json

import pytest
import torch

import train_net
from rc2l.data.datasets.shapes import generate_shapes
from rc2l.engine.run import argument_parser
from rc2l.modeling.training_network import TrainingNetwork
from rc2l.semi.method import method_names, method_of
from rc2l.structures.views import View
from tests.shared_data import REPO
from tests.steps import learner_of, step_of
from tests.test_dgcl_training import TINY, config
from tests.test_per_pixel import images, model_of

WITH_RECO, WITH_DGCL = ["RECO.ENABLED", "True"], ["DGCL.ENABLED", "True"]
MASKS = {
    method: ("rc2l", ["SEMI.METHOD", method, *(["SEMI.MIXING.NAME", "none"] if method == "s4gan" else [])])
    for method in method_names()
    if method not in ("unimatch", "fixmatch")
}
PIXELS = {name: (f"{name}_deeplab", []) for name in ("supervised", "cutout", "cutmix", "classmix", "s4gan")}
#: Name -> config of shapes, overrides.
RUNS = {
    **{f"{name}, masks": run for name, run in MASKS.items()},
    "self_training + reco, masks": ("rc2l-reco", ["SEMI.METHOD", "self_training"]),
    **{f"{name}, pixels": run for name, run in PIXELS.items()},
    "fixmatch, masks": ("rc2l", ["SEMI.METHOD", "fixmatch"]),
    "unimatch, pixels": ("cutmix_deeplab", ["SEMI.METHOD", "unimatch"]),
    "unimatch 2 + dgcl, pixels": (
        "cutmix-dgcl_deeplab",
        ["SEMI.METHOD", "unimatch", "UNIMATCH.VERSION", "2"],
    ),
    "classmix + reco, pixels": ("classmix-reco_deeplab", []),
    "cutmix + dgcl, pixels": ("cutmix-dgcl_deeplab", []),
    "s4gan + reco + dgcl, pixels": ("s4gan_deeplab", [*WITH_RECO, *WITH_DGCL]),
    "rc2l + reco + dgcl, masks": ("rc2l", [*WITH_RECO, *WITH_DGCL]),
}
#: Name -> overrides, what the log says of it.
MODES = {
    "few labels": (
        "DATASETS.SPLIT.FRACTION all DATASETS.SPLIT.NUM_LABELED 3 DATASETS.SPLIT.SAMPLING few_labels".split(),
        "Split: 3 labelled + 5 unlabelled images",
    ),
    "partial labels": (
        "DATASETS.SPLIT.FRACTION all DATASETS.PARTIAL_LABELS.ENABLED True DATASETS.PARTIAL_LABELS.SHARE 0.0".split(),
        "Split: 8 labelled + 8 unlabelled images",
    ),
}
UNSUPERVISED = {
    "supervised": set(),
    "consistency": {"loss_consistency"},
    "rc2l": {"loss_rcc", "loss_smc", "loss_rmc", "loss_rfc"},
    "self_training": {"loss_self_training"},
    "s4gan": {"loss_self_training", "loss_feature_matching"},
    "fixmatch": {"loss_strong"},
    "unimatch": {"loss_strong"},
}


def test_all_methods_are_here():
    assert {config(name, *overrides).SEMI.METHOD for name, overrides in RUNS.values()} == set(method_names())


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("datasets")
    generate_shapes(folder, num_train=8, num_val=1, size=64)
    return folder


@pytest.mark.whole_run
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("run", RUNS)
def test_every_method_trains_in_both_modes(run, mode, shapes, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shapes))
    (name, overrides), (labels, logged) = RUNS[run], MODES[mode]
    arguments = ["--config-file", str(REPO / f"configs/shapes/{name}.yaml"), *TINY, *labels, *overrides]
    arguments += ["SOLVER.MAX_ITER", "3", "OUTPUT_DIR", str(tmp_path / "out")]
    train_net.main(argument_parser("").parse_args(arguments))
    assert logged in (tmp_path / "out/log.txt").read_text()
    rows = [json.loads(line) for line in (tmp_path / "out/metrics.json").read_text().splitlines()]
    (last,) = (row for row in rows if "total_loss" in row)
    cfg = config(name, *overrides)
    auxiliary = {key for key, node in (("loss_reco", cfg.RECO), ("loss_dgcl", cfg.DGCL)) if node.ENABLED}
    assert UNSUPERVISED[cfg.SEMI.METHOD] | auxiliary <= last.keys()
    assert ("loss_feature" in last) == method_of(cfg).needs.perturbed
    weights = torch.load(tmp_path / "out/model_final.pth", weights_only=True)
    networks = [{"student": "model"}.get(name, name) for name in weights["trainer"]["networks"]]
    assert all(value.isfinite().all() for part in networks for value in weights[part].values())


def label_maps(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels and pseudo labels of two images each, all or all but one pixel ignored."""
    generator = torch.Generator().manual_seed(0)
    labels, pseudo = torch.randint(0, 9, (2, 2, 64, 64), generator=generator, dtype=torch.uint8)
    if kind in ("no label", "nothing"):
        labels[:] = 255
    if kind in ("no pseudo label", "nothing"):
        pseudo[:] = 255
    if kind == "one pixel":
        labels[1], labels[0].view(-1)[1:] = 255, 255
    return labels, pseudo


@pytest.mark.parametrize("run", RUNS)
def test_ignored_crops_give_finite_losses_and_every_parameter_a_gradient(run):
    """Sparse labels leave crops without any: distributed training then needs gradients all the same."""
    name, overrides = RUNS[run]
    cfg = config(name, *overrides)
    student = model_of(cfg).train()
    learner, needs = learner_of(cfg, student), method_of(cfg).needs
    network = TrainingNetwork({"student": student}, {"student": learner.heads})
    pictures, everywhere = images(64, 64), torch.ones(2, 64, 64, dtype=torch.bool)
    number = 1 + needs.strong_views + needs.perturbed
    for kind in ("no label", "no pseudo label", "nothing", "one pixel"):
        labels, pseudo = label_maps(kind)
        network.zero_grad()
        output = network({"student": torch.cat([pictures] * number)})["student"].float()
        parts = [output[2 * i : 2 * i + 2] for i in range(number)]
        view = View(pictures, pseudo, torch.ones(2, 64, 64), everywhere, torch.zeros(2, 64, 64))
        step = step_of(
            learner,
            parts[0],
            labels,
            images=pictures,
            views=[view] * needs.strong_views,
            strong=parts[1 : 1 + needs.strong_views],
            weak=view,
            perturbed=parts[-1] if needs.perturbed else None,
        )
        losses = learner.losses(step)
        sum(losses.values()).backward()
        assert all(torch.isfinite(loss) for loss in losses.values()), kind
        if kind == "nothing":
            assert all(loss == 0 for key, loss in losses.items() if key != "loss_feature_matching"), losses
        for key, parameter in network.named_parameters():
            assert not parameter.requires_grad or parameter.grad.isfinite().all(), (kind, key)
        learner.after_step(step)
        for objective in learner.objectives:
            if objective.name == "s4gan":
                assert all(parameter.isfinite().all() for parameter in objective.discriminator.parameters())
