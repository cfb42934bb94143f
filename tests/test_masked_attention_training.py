"""Every method on the masked-attention decoder: training, AMP, exact resume, export, two processes."""

import shutil
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from rc2l.engine.config_file import load_config
from tests.processes import join_group, run_processes
from tests.shared_data import REPO
from tests.steps import learner_of, objective_of, step_of
from tests.test_train_net import datasets, datasets_folder, metrics, run, same_weights  # noqa: F401  two are fixtures
from tests.tool_modules import load_tool

CONFIG = "shapes/rc2l_mask2former.yaml"
DEFORMABLE = """MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME MSDeformAttnPixelDecoder MODEL.MASK_FORMER.DROPOUT 0.1
MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS 1
MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES ['res3','res4']""".split()
SMALL = ["INPUT.CROP.SIZE", "[50,60]", "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 64, "TEST.MAX_IMAGES", 2]


@pytest.fixture(scope="module", params=["fpn", "deformable"])
def trained(request, datasets, tmp_path_factory):  # noqa: F811
    output = tmp_path_factory.mktemp("trained")
    options = [*SMALL, *(DEFORMABLE if request.param == "deformable" else [])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(datasets))
        run(CONFIG, output, *options)
    return output, options


def test_training_and_exact_resume(trained, tmp_path):
    output, options = trained
    (row,) = [row for row in metrics(output) if "loss_smc" in row][-1:]
    supervised = {f"loss_{kind}{suffix}" for kind in ("ce", "mask", "dice") for suffix in ("", "_0")}
    region = {"loss_smc", "loss_rcc", "loss_rmc", "loss_rfc"}
    assert {name for name in row if name.startswith("loss_")} == supervised | region
    for name in ("model_0000001.pth", "config.yaml"):
        shutil.copy(output / name, tmp_path)
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    run(CONFIG, tmp_path, *options, options=("--resume",))
    assert same_weights(output / "model_final.pth", tmp_path / "model_final.pth")


def test_export(trained, tmp_path):
    """It compares the exported network with the original on images of other sizes."""
    output, _ = trained
    target = tmp_path / "network.pt"
    checkpoint = str(output / "model_final.pth")
    load_tool("export").main(
        ["--config-file", str(output / "config.yaml"), "--checkpoint", checkpoint, "--output", str(target)]
    )
    scores = torch.jit.load(target)(torch.randint(0, 256, (3, 45, 83), dtype=torch.uint8))
    assert scores.shape == (9, 45, 83)
    torch.testing.assert_close(scores.sum(0), torch.ones(45, 83))


PIXEL_LOSSES = "RECO.ENABLED True RECO.DIM 16 DGCL.ENABLED True DGCL.DIM 16 DGCL.MEMORY_PER_CLASS 40".split()
PLAIN = """MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME StandardTransformerDecoder
MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE res3 MODEL.MASK_FORMER.MASK_LOSS_ON points""".split()
METHODS = {
    "consistency": ("SEMI.METHOD consistency SEMI.DEEP_SUPERVISION True".split(), {"loss_consistency"}),
    "self-training, ReCo and DGCL under AMP": (
        ["SEMI.METHOD", "self_training", *PIXEL_LOSSES, "SOLVER.AMP.ENABLED", "True"],
        {"loss_reco", "loss_self_training", "loss_dgcl"},
    ),
    "s4gan": (
        "SEMI.METHOD s4gan SEMI.MIXING.NAME none S4GAN.DISCRIMINATOR_WIDTH 4".split(),
        {"loss_feature_matching", "loss_self_training"},
    ),
    "points with the plain decoder": (PLAIN, {"loss_smc"}),
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(method, tmp_path):
    options, names = METHODS[method]
    run(CONFIG, tmp_path, *SMALL, *DEFORMABLE, *options)
    last = [row for row in metrics(tmp_path) if "total_loss" in row][-1]
    assert names <= last.keys() and last["total_loss"] == last["total_loss"]


def small_config(*options):
    config = [*SMALL, "MODEL.MASK_FORMER.HIDDEN_DIM", 32, "MODEL.MASK_FORMER.DEC_LAYERS", 3, "MODEL.DEVICE", "cpu"]
    return load_config(str(REPO / "configs" / CONFIG), [str(item) for item in (*config, *options)])


def work(rank: int, folder: Path) -> None:
    join_group(rank, 2, folder)
    cfg = small_config(*DEFORMABLE)
    torch.manual_seed(0)
    model = DistributedDataParallel(build_model(cfg).train(), broadcast_buffers=False)
    learner = learner_of(cfg, model.module)
    for _ in range(2):  # parameters that were without gradient would be told of in the second step
        torch.manual_seed(rank)
        images, targets = torch.randint(0, 256, (2, 3, 50, 60)), torch.randint(0, 9, (2, 50, 60))
        output = model(images)
        sum(learner.losses(step_of(learner, output, targets)).values()).backward()
    torch.save({name: p.grad for name, p in model.module.named_parameters()}, f"{folder}/{rank}.pth")
    dist.destroy_process_group()


@pytest.mark.whole_run
def test_two_processes_share_every_gradient(tmp_path):
    run_processes(work, 2, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(2))
    assert all(torch.equal(gradient, second[name]) for name, gradient in first.items())
    # Offsets and weights of deformable attention start independent of positions, whose embedding has no slope then.
    zero = [name for name, gradient in first.items() if not gradient.any()]
    assert zero == ["sem_seg_head.pixel_decoder.transformer.level_embed"]


def test_weights_of_the_losses_come_from_the_config():
    output = build_model(small_config()).eval()(torch.randint(0, 256, (2, 3, 50, 60)))
    target = torch.randint(0, 9, (2, 50, 60))
    values, matches = [], None
    for weights in ((2, 5, 5), (4, 5, 5), (2, 5, 10)):
        keys = ("CLASS_WEIGHT", "MASK_WEIGHT", "DICE_WEIGHT")
        options = [
            item
            for key, value in zip(keys, weights, strict=True)
            for item in (f"MODEL.MASK_FORMER.{key}", float(value))
        ]
        learner = learner_of(small_config(*options))
        step = step_of(learner, output, target)
        # The same matches and points for all.
        torch.manual_seed(0)
        step.matches = matches = matches or step.matches
        torch.manual_seed(0)
        values.append(objective_of(learner, "mask_classification").losses(step))
    base = values[0]
    for changed, name in ((1, "ce"), (2, "dice")):
        other = values[changed]
        for key, value in base.items():
            factor = 2 if name in key.split("_") else 1
            torch.testing.assert_close(other[key], factor * value)
