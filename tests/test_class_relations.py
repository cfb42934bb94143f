"""Class relations: pictures, the tool, and the graph in TensorBoard."""

import json
import runpy

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.cluster.hierarchy import fcluster
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train_net
from rc2l.data.datasets.shapes import generate_shapes
from rc2l.data.loader import build_test_loader
from rc2l.engine.run import argument_parser
from rc2l.visualization.relations import class_linkage, dendrogram_figure, relation_figure, relation_image, save_figure
from tests.shared_data import REPO
from tests.test_dgcl_training import TINY, config
from tests.test_per_pixel import model_of

TOOL = str(REPO / "tools/class_relations.py")
NAMES = ["cat", "dog", "road", "sky"]
RELATIONS = np.array([[1, 0.9, 0.1, 0.2], [0.9, 1, 0.1, 0.1], [0.1, 0.1, 1, 0.7], [0.2, 0.1, 0.7, 1]])


def test_linkage_joins_similar_classes_first():
    clusters = fcluster(class_linkage(RELATIONS), 2, criterion="maxclust")
    assert clusters[0] == clusters[1] != clusters[2] == clusters[3]
    np.testing.assert_allclose(class_linkage(RELATIONS)[0, 2], 0.1, atol=1e-9)


def test_pictures_are_written(tmp_path):
    for name, figure in (
        ("matrix", relation_figure(RELATIONS, NAMES, "title")),
        ("tree", dendrogram_figure(RELATIONS, NAMES)),
    ):
        save_figure(figure, tmp_path / "new" / f"{name}.png")
        picture = np.asarray(Image.open(tmp_path / "new" / f"{name}.png"))
        assert picture.shape[0] > 100 and picture.std() > 5


def test_absent_classes_stay_blank():
    absent = RELATIONS.copy()
    absent[2] = absent[:, 2] = np.nan
    full, blank = relation_image(RELATIONS, NAMES), relation_image(absent, NAMES)
    assert full.dtype == np.uint8 and full.shape == blank.shape and full.shape[2] == 3
    assert (blank == 255).all(2).sum() > (full == 255).all(2).sum()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root, output = tmp_path_factory.mktemp("datasets"), tmp_path_factory.mktemp("output")
    generate_shapes(root, num_train=16, num_val=4, size=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root))
        options = ["--config-file", str(REPO / "configs/shapes/classmix-reco_deeplab.yaml")]
        with_dgcl = ["DGCL.ENABLED", "True"]
        train_net.main(argument_parser("").parse_args([*options, *TINY, *with_dgcl, "OUTPUT_DIR", str(output)]))
        yield options, output


def test_relations_of_the_mini_batch_are_in_tensorboard(trained):
    events = EventAccumulator(str(trained[1]), size_guidance={"images": 0})
    events.Reload()
    assert "reco/class_relations" in events.Tags()["images"]
    assert "reco/positive_similarity" in events.Tags()["scalars"]


def run_tool(monkeypatch, trained, output, *options, overrides=()):
    config_file, folder = trained
    options = [*("--checkpoint", str(folder / "model_final.pth"), "--output", str(output)), *map(str, options)]
    monkeypatch.setattr(
        "sys.argv", ["class_relations.py", *config_file, *options, *TINY, "DGCL.ENABLED", "True", *overrides]
    )
    # Without the last resort, so that the test sees the error itself.
    runpy.run_path(TOOL, run_name="tool")["main"].__wrapped__()


def test_tool_writes_pictures_and_numbers(trained, tmp_path, monkeypatch, capsys):
    run_tool(monkeypatch, trained, tmp_path)
    assert "closest are" in capsys.readouterr().out
    for name, channels in (("Z", 128), ("F", 32), ("R", 16), ("P", 16)):
        numbers = json.loads((tmp_path / f"{name}.json").read_text())
        K = len(numbers["classes"])
        means = torch.tensor(numbers["means"])
        assert means.shape == (K, channels) and len(numbers["linkage"]) == K - 1 and min(numbers["pixels"]) > 0
        expected = torch.nn.functional.normalize(means, dim=1)
        torch.testing.assert_close(torch.tensor(numbers["relations"]), expected @ expected.T, atol=1e-4, rtol=0)
        assert (tmp_path / f"{name}_relations.png").exists() and (tmp_path / f"{name}_dendrogram.png").exists()
        assert -1 <= numbers["clusters"]["silhouette"] <= 1 and numbers["clusters"]["davies_bouldin"] > 0
        assert numbers["cluster_pixels"] == sum(min(count, 500) for count in numbers["pixels"])


@pytest.mark.whole_run
def test_tool_compares_runs_in_one_table(trained, tmp_path, monkeypatch, capsys):
    plain, reco = tmp_path / "plain", tmp_path / "reco"
    run_tool(
        monkeypatch,
        trained,
        plain,
        "--pixels-per-class",
        20,
        overrides=["RECO.ENABLED", "False", "DGCL.ENABLED", "False"],
    )
    capsys.readouterr()
    run_tool(monkeypatch, trained, reco, "--pixels-per-class", 20, "--compare", plain)
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [(row[1], row[3]) for row in lines[1:]] == [
        *((name, str(folder)) for name in "ZF" for folder in (plain, reco)),
        *((name, str(reco)) for name in "RP"),
    ]
    assert lines[1][5:] == lines[2][5:]  # the same network and the same pixels
    assert not (plain / "R.json").exists()
    for options, message in (
        ((), "is of 20 pixels a class of shapes_sem_seg_val, this run of 500"),
        (("--compare", tmp_path / "none"), r"none: it holds no Z\.json"),
        (("--pixels-per-class", 1, "--compare", plain), "this run of 1 of shapes"),
    ):
        with pytest.raises(ValueError, match=message):
            run_tool(monkeypatch, trained, reco, *options, "--compare", plain)


def test_too_few_pixels_per_class_are_one_error(trained, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="pixels per class is 1: it must be at least 2"):
        run_tool(monkeypatch, trained, tmp_path, "--pixels-per-class", 1)


ENCODERS = {
    "deeplabv3+": ("classmix_deeplab", [], 128, 32),
    "deeplabv2": ("classmix_deeplab", ["MODEL.SEM_SEG_HEAD.NAME", "DeepLabV2PixelHead"], 128, 128),
    "maskformer, r18": ("rc2l", [], 128, 32),
    "maskformer, r50, encoder": (
        "rc2l",
        [
            *("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", 50),
            "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME",
            "TransformerEncoderPixelDecoder",
        ],
        128,
        32,
    ),
    "a feature that the head does not read": (
        "classmix_deeplab",
        ["MODEL.RESNETS.OUT_FEATURES", "['res2', 'res3', 'res4', 'res5']"],
        128,
        32,
    ),
}


@pytest.mark.parametrize("case", ENCODERS)
def test_embeddings_of_the_encoder_and_the_decoder(case, trained):
    name, overrides, encoder_channels, decoder_channels = ENCODERS[case]
    cfg = config(name, *overrides)
    network = model_of(cfg).eval()
    found = runpy.run_path(TOOL)["embeddings"](cfg, network, {}, 10)
    assert found.keys() == {"Z", "F"}
    assert found["Z"].means().shape == (9, encoder_channels) and found["F"].means().shape == (9, decoder_channels)
    sums, counts = torch.zeros(9, encoder_channels, dtype=torch.float64), torch.zeros(9, dtype=torch.int64)
    for (record,) in build_test_loader(cfg, cfg.DATASETS.TEST[0]):
        with torch.no_grad():
            feature = network.backbone(network.normalize(record["image"][None]))["res4"][0]
        cell = 64 // feature.shape[-1]
        labels = record["sem_seg"][::cell, ::cell]
        for k in range(9):
            sums[k] += feature[:, labels == k].double().sum(1)
            counts[k] += (labels == k).sum()
    torch.testing.assert_close(found["Z"].sums, sums)
    assert torch.equal(found["Z"].counts, counts)
    assert torch.equal(found["Z"].sample.pixels()[1].bincount(minlength=9), counts.clamp(max=10))


def test_a_checkpoint_without_projection_is_one_error(trained, tmp_path, monkeypatch):
    config_file, folder = trained
    content = torch.load(folder / "model_final.pth", weights_only=True)
    del content["projection"]
    torch.save(content, tmp_path / "model_final.pth")
    message = r"model_final\.pth has no projection head: add RECO\.ENABLED False DGCL\.ENABLED False"
    with pytest.raises(ValueError, match=message):
        run_tool(monkeypatch, (config_file, tmp_path), tmp_path)


def test_other_projection_heads_than_the_config_asks_for_are_one_error(trained, tmp_path, monkeypatch):
    with pytest.raises(
        ValueError, match=r"projection heads in .*model_final\.pth are not those of the config, reco: set"
    ):
        run_tool(monkeypatch, trained, tmp_path, overrides=["DGCL.ENABLED", "False"])
