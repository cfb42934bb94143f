"""How good pseudo labels are, measured on unlabelled images whose labels are known: why a method gains, or does not.

The labels are read for this measurement alone; nothing of it reaches a loss.
"""

import logging
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import Tensor

from rc2l.data.errors import DatasetError
from rc2l.data.mapper import EvaluationMapper
from rc2l.evaluation.confusion import confusion_matrix, scores_from_confusion
from rc2l.modeling.matcher import HungarianMatcher
from rc2l.modeling.segmentor import Segmentor
from rc2l.semi.pseudo_label import drop_small_regions, pseudo_labels
from rc2l.structures.label_map import sample_nearest, with_ignored_as
from rc2l.structures.outputs import SegmentationOutput
from rc2l.structures.regions import Regions

logger = logging.getLogger(__name__)

#: Least IoU of a pseudo region and the true region of its class at which it is counted as found.
FOUND = 0.5


class PseudoLabelMeter:
    """Sums over images, on the device, and over all processes at the end.

    A region is what an image has of a class, as in RC²L.

    Args:
        cfg: the full config; read are SEMI.PSEUDO_LABEL, the weights of the matching, and MODEL.DEVICE.
        class_names: K names.
    """

    def __init__(self, cfg: CfgNode, class_names: Sequence[str]) -> None:
        self.class_names = list(class_names)
        self.options, matching = cfg.SEMI.PSEUDO_LABEL, cfg.MODEL.MASK_FORMER
        device = torch.device(cfg.MODEL.DEVICE)
        K = len(self.class_names)
        self._pixels = torch.zeros(K, K, dtype=torch.int64, device=device)
        #: Regions of the pseudo labels, of the truth, and of both with an IoU of :data:`FOUND` or more.
        self._regions = torch.zeros(3, K, dtype=torch.int64, device=device)
        #: Sum of the IoU of matched queries and pseudo regions, and their number.
        self._queries = torch.zeros(2, dtype=torch.float64, device=device)
        # On all pixels even where training matches on sampled points, so that two measurements agree.
        self._matcher = HungarianMatcher(matching.CLASS_WEIGHT, matching.MASK_WEIGHT, matching.DICE_WEIGHT)

    @torch.no_grad()
    def add(self, labeler: Segmentor, student: Segmentor, images: Tensor, truth: Tensor) -> None:
        """Label some images as training does, on their weak view, and compare.

        Shape:
            images (B, 3, H, W) 0..255; truth (B, H, W), integers in 0..K-1 or 255.
        """
        K = len(self.class_names)
        output = _evaluated(labeler, images)
        everywhere = torch.ones(truth.shape, dtype=torch.bool, device=images.device)
        labels = pseudo_labels(output, everywhere, self.options.MIN_CONFIDENCE).label_map
        labels = drop_small_regions(labels, self.options.MIN_AREA, K)
        # One more column than classes: true pixels without a pseudo label.
        for pseudo, true in zip(labels, truth, strict=True):
            matrix = confusion_matrix(with_ignored_as(pseudo, K), with_ignored_as(true, K), K + 1, K)[:K]
            self._pixels += matrix[:, :K]
            both, predicted, present = matrix.diagonal(), matrix[:, :K].sum(0), matrix.sum(1)
            found = (both > 0) & (both >= FOUND * (predicted + present - both))
            self._regions += torch.stack([predicted > 0, present > 0, found]).long()
        if student.kind == "masks":
            self._add_queries(student, images, labels)

    def _add_queries(self, student: Segmentor, images: Tensor, labels: Tensor) -> None:
        logits, masks = _evaluated(student, images).layers()[0]
        regions = Regions.from_label_map(labels, len(self.class_names)).resized(*masks.shape[-2:])
        image, query, slot = self._matcher([([(logits, masks)], regions)])[0].pairs[0]
        inside = (masks[image, query] > 0) & regions.valid[image]
        wanted = regions.select(image, slot)
        both, either = (inside & wanted).sum((1, 2)), (inside | wanted).sum((1, 2))
        self._queries += torch.stack(
            [(both / either.clamp(min=1)).double().sum(), self._queries.new_tensor(len(query))]
        )

    def scores(self) -> dict[str, float]:
        """Of the images of all processes, in percent, without what is not applicable.

        Returns:
            ``pseudo/mIoU`` and ``pseudo/IoU/<class>``: of the pixels that have a pseudo label.
            ``pseudo/region_precision``: the share of a class's pseudo regions that cover the true region of the class
            in the image with an IoU of at least 0.5; ``pseudo/region_recall``: the share of its true regions that are
            so covered; of each class (``.../<class>``), and their means.
            ``pseudo/query_IoU``: mean IoU of pseudo regions and the masks of the student's queries that are matched
            with them. {} where no image was added.
        """
        if comm.get_world_size() > 1:
            for sums in (self._pixels, self._regions, self._queries):
                dist.all_reduce(sums)
        predicted, present, found = self._regions.double().cpu()
        if not present.any():
            return {}
        ious = scores_from_confusion(self._pixels, self.class_names)
        scores = {"pseudo/mIoU": ious["mIoU"]} | self._named("pseudo/IoU", torch.tensor(list(ious["IoU"].values())))
        for name, each in (("precision", 100 * found / predicted), ("recall", 100 * found / present)):
            scores[f"pseudo/region_{name}"] = each.nanmean().item()
            scores |= self._named(f"pseudo/region_{name}", each)
        total, matched = self._queries.tolist()
        if matched:
            scores["pseudo/query_IoU"] = 100 * total / matched
        return {name: value for name, value in scores.items() if value == value}  # NaN: not applicable

    def _named(self, name: str, values: Tensor) -> dict[str, float]:
        return {f"{name}/{c}": value for c, value in zip(self.class_names, values.tolist(), strict=True)}


def measure_pseudo_labels(
    cfg: CfgNode, class_names: Sequence[str], labeler: Segmentor, student: Segmentor, records: Iterable[dict]
) -> dict[str, float]:
    """:meth:`PseudoLabelMeter.scores` of this process's images and those of the others, at the size of test images.

    Args:
        cfg: the full config.
        class_names: K names.
        labeler: the network that labels for the student.
        student: the network that is trained.
        records: dataset dicts with ``sem_seg_file_name``. One whose files cannot be read, which training itself need
            not notice, is left out with a warning.
    """
    meter, mapper = PseudoLabelMeter(cfg, class_names), EvaluationMapper(cfg)
    for record in records:
        try:
            sample = mapper(record)
        except DatasetError as error:
            logger.warning(f"left out of the measurement of pseudo labels: {error}")
            continue
        images = sample["image"][None].to(student.device)
        truth = sample_nearest(sample["sem_seg"][None].to(student.device), *images.shape[-2:])
        meter.add(labeler, student, images, truth)
    return meter.scores()


def summary(scores: dict[str, float]) -> str:
    """The figures over all classes, for a line of the log."""
    return ", ".join(
        f"{name.removeprefix('pseudo/')} {value:.2f}" for name, value in scores.items() if name.count("/") == 1
    )


@torch.no_grad()
def _evaluated(network: Segmentor, images: Tensor) -> SegmentationOutput:
    """Outputs in evaluation mode, float32."""
    training = network.training
    network.eval()
    output = network(images, auxiliary=False).float()
    network.train(training)
    return output
