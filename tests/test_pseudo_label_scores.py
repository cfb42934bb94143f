"""How good pseudo labels are: by hand, with what is left out, and which labels may be looked at."""

import pytest
import torch
from torch import nn

from rc2l.data.splits import build_split, hidden_labels
from rc2l.engine.config_file import load_config
from rc2l.evaluation.pseudo_labels import PseudoLabelMeter, measure_pseudo_labels, summary
from rc2l.structures.outputs import SegmentationOutput
from tests.mini_datasets import build_mini_camvid
from tests.shared_data import REPO

NAMES = ["sky", "road", "pole"]


class Fixed(nn.Module):
    """A network whose queries are sure of class 0, 1, 2, ... and whose masks, (Q, h, w) bool, are given."""

    device = torch.device("cpu")

    def __init__(self, masks: torch.Tensor, kind: str = "masks") -> None:
        super().__init__()
        self.maps, self.kind = masks.float() * 40 - 20, kind

    def forward(self, images: torch.Tensor, auxiliary: bool) -> SegmentationOutput:
        assert not self.training and not auxiliary
        maps = self.maps.expand(len(images), -1, -1, -1)
        if self.kind == "pixels":
            return SegmentationOutput(None, None, maps, pixel_logits=maps)
        logits = (torch.eye(len(NAMES), len(NAMES) + 1) * 40)[: maps.shape[1]].expand(len(images), -1, -1)
        return SegmentationOutput(logits, maps, maps)


def config(*overrides):
    return load_config(
        str(REPO / "configs/shapes/rc2l.yaml"), ["MODEL.DEVICE", "cpu", "SEMI.PSEUDO_LABEL.MIN_AREA", "0", *overrides]
    )


def masks_of(label_map: torch.Tensor) -> torch.Tensor:
    return label_map == torch.arange(len(NAMES))[:, None, None]


@pytest.mark.parametrize("kind", ["masks", "pixels"])
def test_scores_by_hand(kind):
    """Sky is found; road has 2 of its 6 pixels and 1 of the pole's, which nobody claims; one pixel does not count."""
    truth = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1], [2, 2, 2, 255]])
    pseudo = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]])
    labeler = Fixed(masks_of(pseudo), kind).train()
    meter = PseudoLabelMeter(config(), NAMES)
    meter.add(labeler, labeler, torch.zeros(1, 3, 4, 4), truth[None])
    scores = meter.scores()
    assert labeler.training  # as it was
    assert scores["pseudo/IoU/sky"] == pytest.approx(100 * 6 / 12)
    assert scores["pseudo/IoU/road"] == pytest.approx(100 * 2 / 7) and scores["pseudo/IoU/pole"] == 0
    assert scores["pseudo/mIoU"] == pytest.approx(100 * (6 / 12 + 2 / 7) / 3)
    assert scores["pseudo/region_precision"] == 50 and "pseudo/region_precision/pole" not in scores  # none is claimed
    assert scores["pseudo/region_recall"] == pytest.approx(100 / 3) and scores["pseudo/region_recall/pole"] == 0
    assert ("pseudo/query_IoU" in scores) == (kind == "masks")
    assert scores.get("pseudo/query_IoU", 100) == 100  # the student is the labeller
    assert summary(scores).startswith(f"mIoU {scores['pseudo/mIoU']:.2f}, region_precision 50.00")


def test_matched_queries_are_compared_with_the_pseudo_regions_and_small_regions_are_none():
    truth = torch.tensor([[0, 0, 1, 1]] * 4)
    pseudo = torch.tensor([[0, 0, 1, 1]] * 3 + [[0, 0, 1, 2]])  # one pixel of pole, below MIN_AREA
    student = torch.tensor([[0, 0, 0, 1]] * 2 + [[0, 0, 1, 1]] * 2)
    meter = PseudoLabelMeter(config("SEMI.PSEUDO_LABEL.MIN_AREA", "2"), NAMES)
    meter.add(Fixed(masks_of(pseudo)), Fixed(masks_of(student)), torch.zeros(1, 3, 4, 4), truth[None])
    scores = meter.scores()
    # Sky: 8 pixels, and 10 of the query; road: 7, and 5 of the query beside the one that is ignored.
    assert scores["pseudo/query_IoU"] == pytest.approx(100 * (8 / 10 + 5 / 7) / 2)
    assert scores["pseudo/mIoU"] == 100 and scores["pseudo/region_recall"] == 100


def test_without_images_there_are_no_scores():
    assert PseudoLabelMeter(config(), NAMES).scores() == {}


def test_only_labels_that_the_split_hides_are_looked_at_and_a_damaged_one_is_left_out(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    build_mini_camvid(tmp_path)
    cfg = load_config(
        str(REPO / "configs/camvid/rc2l_r18_1-8.yaml"), ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", "36"]
    )
    split = build_split(cfg)
    assert hidden_labels(cfg, split, 0) == []
    records = hidden_labels(cfg, split, 3)
    assert [record["image_id"] for record in records] == [record["image_id"] for record in split.unlabeled[:3]]
    assert len(hidden_labels(cfg, split, 100)) == len(split.unlabeled) == 14
    assert not any("sem_seg_file_name" in record for record in split.unlabeled)

    with open(records[0]["sem_seg_file_name"], "wb"):
        pass
    names = [f"class {k}" for k in range(11)]
    labeler = Fixed(torch.ones(11, 36, 48), "pixels")
    scores = measure_pseudo_labels(cfg, names, labeler, labeler, records)
    assert records[0]["sem_seg_file_name"] in caplog.text and "left out" in caplog.text
    assert scores == pytest.approx(measure_pseudo_labels(cfg, names, labeler, labeler, records[1:]))
    assert measure_pseudo_labels(cfg, names, labeler, labeler, records[:1]) == {}
