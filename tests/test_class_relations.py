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
from rc2l.engine.run import argument_parser
from rc2l.visualization.relations import class_linkage, dendrogram_figure, relation_figure, relation_image, save_figure
from tests.shared_data import REPO
from tests.test_per_pixel import TINY

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
        config = ["--config-file", str(REPO / "configs/shapes/classmix-reco_deeplab.yaml")]
        train_net.main(argument_parser("").parse_args([*config, *TINY, "OUTPUT_DIR", str(output)]))
        yield config, output


def test_relations_of_the_mini_batch_are_in_tensorboard(trained):
    events = EventAccumulator(str(trained[1]), size_guidance={"images": 0})
    events.Reload()
    assert "reco/class_relations" in events.Tags()["images"]
    assert "reco/positive_similarity" in events.Tags()["scalars"]


def test_tool_writes_pictures_and_numbers(trained, tmp_path, monkeypatch, capsys):
    config, output = trained
    arguments = [*config, "--checkpoint", str(output / "model_final.pth"), "--output", str(tmp_path), *TINY]
    monkeypatch.setattr("sys.argv", ["class_relations.py", *arguments])
    runpy.run_path(TOOL, run_name="__main__")
    assert "closest are" in capsys.readouterr().out
    for name, channels in (("Z", 32), ("R", 16)):
        numbers = json.loads((tmp_path / f"{name}.json").read_text())
        K = len(numbers["classes"])
        means = torch.tensor(numbers["means"])
        assert means.shape == (K, channels) and len(numbers["linkage"]) == K - 1 and min(numbers["pixels"]) > 0
        expected = torch.nn.functional.normalize(means, dim=1)
        torch.testing.assert_close(torch.tensor(numbers["relations"]), expected @ expected.T, atol=1e-4, rtol=0)
        assert (tmp_path / f"{name}_relations.png").exists() and (tmp_path / f"{name}_dendrogram.png").exists()


def test_a_checkpoint_without_projection_is_one_error(trained, tmp_path, monkeypatch):
    config, output = trained
    content = torch.load(output / "model_final.pth", weights_only=True)
    del content["projection"]
    torch.save(content, tmp_path / "plain.pth")
    arguments = [*config, "--checkpoint", str(tmp_path / "plain.pth"), "--output", str(tmp_path), *TINY]
    monkeypatch.setattr("sys.argv", ["class_relations.py", *arguments])
    with pytest.raises(SystemExit, match=r"plain\.pth has no projection head: add RECO\.ENABLED False"):
        runpy.run_path(TOOL, run_name="__main__")
