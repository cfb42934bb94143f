"""RC²L on timm backbones: training, exact resume, export, two processes, at sizes that fit no patch."""

import shutil
from pathlib import Path

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY, build_model
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rc2l.engine.config_file import load_config
from rc2l.modeling import SegmentationOutput
from rc2l.modeling.timm_backbone import TimmBackbone
from tests.processes import join_group, run_processes
from tests.shared_data import REPO
from tests.test_train_net import datasets, datasets_folder, metrics, run, same_weights  # noqa: F401  two are fixtures
from tests.tool_modules import load_tool

timm = pytest.importorskip("timm")


def tiny_swin(**options):
    sizes = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2)}
    return timm.create_model("swin_tiny_patch4_window7_224", **{**sizes, **options})


def tiny_dinov2(**options):
    sizes = {"embed_dim": 32, "depth": 4, "num_heads": 2, "img_size": 56}
    return timm.create_model("vit_small_patch14_reg4_dinov2", **{**sizes, **options})


for model in (tiny_swin, tiny_dinov2):
    if not timm.is_model(model.__name__):
        timm.models.register_model(model)

BACKBONE = ["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.BACKBONE.FREEZE_AT", 0, "INPUT.CROP.SIZE", "[50,60]"]
NETWORKS = ("test_efficientnet", "tiny_swin", "tiny_dinov2")


@pytest.fixture(scope="module", params=NETWORKS)
def trained(request, datasets, tmp_path_factory):  # noqa: F811
    output = tmp_path_factory.mktemp("trained")
    options = [*BACKBONE, "MODEL.TIMM.NAME", request.param, "MODEL.TIMM.OUTPUT_NORM", True]
    if request.param != "test_efficientnet":
        options += ["MODEL.TIMM.DROP_PATH", 0.2, "SOLVER.BACKBONE_LAYER_DECAY", 0.8]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(datasets))
        run("shapes/rc2l.yaml", output, *options)
    return output, options


def test_training_and_exact_resume(trained, tmp_path):
    output, options = trained
    (row,) = [row for row in metrics(output) if "loss_smc" in row][-1:]
    assert all(row[name] == row[name] for name in ("loss_smc", "loss_rcc", "loss_rmc", "loss_rfc", "loss_ce"))

    for name in ("model_0000001.pth", "config.yaml"):
        shutil.copy(output / name, tmp_path)
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    run("shapes/rc2l.yaml", tmp_path, *options, options=("--resume",))
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


def work(rank: int, folder: Path) -> None:
    join_group(rank, 2, folder)
    gradients = {}
    for name in NETWORKS:
        torch.manual_seed(0)
        model = DistributedDataParallel(TimmBackbone(name, output_norm=True, checkpointing=name != "tiny_swin").train())
        for _ in range(2):  # parameters that were without gradient would be told of in the second step
            images = torch.randn(2, 3, 50, 60, generator=torch.Generator().manual_seed(rank))
            sum(x.square().mean() + x.mean() for x in model(images).values()).backward()
        gradients[name] = [p.grad for p in model.parameters()]
    torch.save(gradients, f"{folder}/{rank}.pth")
    dist.destroy_process_group()


def test_two_processes_share_every_gradient(tmp_path):
    run_processes(work, 2, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(2))
    for name in NETWORKS:
        assert all(torch.equal(a, b) and a.any() for a, b in zip(first[name], second[name], strict=True)), name


# --- networks say what they are


class OneConvolution(nn.Module):
    """A head of one's own, which knows nothing of keys but the number of classes."""

    def __init__(self, cfg, input_shape: dict[str, ShapeSpec]):
        super().__init__()
        self.classify = nn.Conv2d(input_shape["res2"].channels, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, 1)

    def forward(self, features, auxiliary=True):
        x = features["res2"]
        return SegmentationOutput(None, None, x, pixel_logits=self.classify(x))


class GivesATensor(OneConvolution):
    def forward(self, features, auxiliary=True):
        return self.classify(features["res2"])


for head in (OneConvolution, GivesATensor):
    if head.__name__ not in SEM_SEG_HEADS_REGISTRY:
        SEM_SEG_HEADS_REGISTRY.register(head)


def deeplab(*overrides):
    return load_config(str(REPO / "configs/shapes/classmix-reco_deeplab.yaml"), ["MODEL.DEVICE", "cpu", *overrides])


def test_a_head_of_ones_own_trains_with_reco_on_a_timm_backbone(tmp_path):
    options = [*BACKBONE, "MODEL.TIMM.NAME", "test_convnext", "MODEL.SEM_SEG_HEAD.NAME", "OneConvolution"]
    cfg = deeplab(*map(str, options))
    network = build_model(cfg)
    assert network.kind == "pixels" and network.pixel_feature_channels == 24
    run("shapes/classmix-reco_deeplab.yaml", tmp_path, *options)
    assert any("loss_reco" in row for row in metrics(tmp_path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("OneConvolutoin", r"NAME is 'OneConvolutoin'; choose one of .*DeepLabV3PlusPixelHead.*OneConvolution"),
        ("GivesATensor", r"GivesATensor's forward must take \(features, auxiliary\) and give .*, not a Tensor"),
        ("MaskFormerHead", r"MaskFormerHead', which gives no pixel_logits: set MODEL\.META_ARCHITECTURE to MaskFormer"),
    ],
)
def test_heads_that_classify_no_pixels_are_refused(name, message):
    with pytest.raises(ValueError, match=message) as error:
        build_model(deeplab("MODEL.SEM_SEG_HEAD.NAME", name))
    assert "\n" not in str(error.value)


def test_masks_and_pixels_say_their_channels():
    masks = build_model(load_config(str(REPO / "configs/shapes/rc2l.yaml"), ["MODEL.DEVICE", "cpu"]))
    output = masks(torch.zeros(1, 3, 64, 64))
    assert masks.kind == "masks" and masks.pixel_feature_channels == output.pixel_features.shape[1]
    pixels = build_model(deeplab())
    assert pixels.pixel_feature_channels == pixels(torch.zeros(2, 3, 64, 64)).pixel_features.shape[1]
