"""Pictures of a few fixed images while a run trains: what labels, what is learned from, and what is predicted.

They change nothing: networks run in evaluation mode without gradient, and every random number comes from a generator
of its own.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.engine import hooks
from torch import Tensor

from rc2l.data.datasets import load_records
from rc2l.data.errors import DatasetError
from rc2l.data.image_rule import record_rule
from rc2l.data.mapper import EvaluationMapper, UnlabeledMapper, seeded_randomness
from rc2l.data.partial_labels import read_record_label
from rc2l.data.reading import read_image
from rc2l.data.splits import Split, hidden_labels
from rc2l.evaluation.scorer import build_scorer
from rc2l.modeling.segmentor import Segmentor
from rc2l.semi.labeler import STUDENT, Labeler
from rc2l.semi.pseudo_label import pseudo_labels
from rc2l.semi.views import strong_view
from rc2l.structures.label_map import IGNORE
from rc2l.structures.needs import Needs
from rc2l.structures.views import PseudoLabels
from rc2l.visualization.grid import (
    EMPTY,
    as_picture,
    confidence_map,
    error_map,
    legend_of,
    picture_grid,
    save_picture,
    shrink,
)
from rc2l.visualization.label_images import class_colors
from rc2l.visualization.panels import colorize

logger = logging.getLogger(__name__)

#: VIS_PERIOD: at each evaluation.
AT_EVALUATIONS = -1
#: Images of each picture.
NUM_IMAGES = 4
FOLDER = "pictures"
#: Tells the random numbers of these views from those of the streams.
_KEY = 2


class PictureHook(hooks.HookBase):
    """Draws every ``period`` steps and after the last, or with the evaluations; only in the main process.

    Pictures go to TensorBoard, to what else ``show`` feeds, and to ``folder/pictures/<iteration>_<name>.jpg``. One that
    cannot be written is warned of; the run goes on.

    Args:
        period: VIS_PERIOD, not 0.
        draw: name -> (height, width, 3) uint8.
        folder: OUTPUT_DIR.
        show: called with name, picture (height, width, 3) and iteration.
    """

    def __init__(
        self,
        period: int,
        draw: Callable[[], Mapping[str, np.ndarray]],
        folder: str,
        show: Callable[[str, np.ndarray, int], None] = lambda name, picture, iteration: None,
    ) -> None:
        self.period, self.draw, self.folder, self.show = period, draw, Path(folder) / FOLDER, show
        self._failed = False

    def due(self, steps: int) -> bool:
        """Is there a picture after so many steps of the run?"""
        if self.period == AT_EVALUATIONS:
            return self.trainer.evaluation.due(steps)
        return steps == self.trainer.max_iter or (steps > 0 and steps % self.period == 0)

    def catch_up(self) -> None:
        """Draw again what belongs to the step that the run was resumed from: it may have been killed before."""
        steps = self.trainer.start_iter
        if steps and self.due(steps):
            self._run(steps - 1)

    def after_step(self) -> None:
        if self.due(self.trainer.iter + 1):
            self._run(self.trainer.iter)

    def _run(self, iteration: int) -> None:
        storage = self.trainer.storage
        now, storage.iter = storage.iter, iteration
        for name, picture in self.draw().items():
            storage.put_image(f"pictures/{name}", picture.transpose(2, 0, 1))
            self.show(f"pictures/{name}", picture, iteration)
            try:
                save_picture(picture, self.folder / f"{iteration:07d}_{name}.jpg")
            except OSError as error:
                if not self._failed:
                    logger.warning(f"pictures cannot be written to {self.folder}: {error}; the run goes on without")
                self._failed = True
        storage.iter = now


class TrainingPictures:
    """Two pictures: ``unlabeled``, the way of unlabelled images from the weak view to what the student makes of the
    strong one, where the method has such; and ``test``, predictions on images of the first test set.

    The images, their crops and the boxes of mixing are the same each time, so that pictures can be compared.

    Args:
        cfg: the full config.
        split: labelled and unlabelled images.
        needs: what the method asks for.
        labeler: the networks.
        autocast: the precision that pseudo labels are made in.
        seed: of the run.
    """

    def __init__(
        self,
        cfg: CfgNode,
        split: Split,
        needs: Needs,
        labeler: Labeler,
        autocast: Callable[[], AbstractContextManager],
        seed: int,
    ) -> None:
        self.cfg, self.labeler, self.autocast, self.seed = cfg, labeler, autocast, seed
        self.records = _shown_records(cfg, split) if needs.unlabeled else []
        self.num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        self.colors, self.class_names = class_colors(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]), self.num_classes)

    @torch.no_grad()
    def draw(self) -> dict[str, np.ndarray]:
        """Name -> (height, width, 3) uint8."""
        training = {network: network.training for network in self.labeler.networks.values()}
        for network in training:
            network.eval()
        try:
            pictures = {"unlabeled": self._draw_unlabeled()} if self.records else {}
            return pictures | {"test": self._draw_test()}
        finally:
            for network, mode in training.items():
                network.train(mode)

    @cached_property
    def _unlabeled(self) -> list[dict]:
        """Samples of the loader's kind, with ``hidden`` (H, W) uint8 where the image has a label after all."""
        mapper = UnlabeledMapper(self.cfg)
        samples = []
        for number, record in enumerate(self.records):
            with seeded_randomness(self.seed, _KEY, number):
                sample = mapper(record)
            label = _label_of(record)
            if label is not None:
                # The same numbers again, this time with the label beside the image.
                with seeded_randomness(self.seed, _KEY, number):
                    image = read_image(record["file_name"], self.cfg.INPUT.FORMAT, record_rule(record))
                    view = T.AugInput(image, sem_seg=label)
                    mapper.weak(view)
                pad = mapper.padding.get_transform(view.image)
                sample["hidden"] = pad.apply_segmentation(view.sem_seg)
            samples.append(sample | {"image_id": str(record["image_id"])})
        return samples

    def _draw_unlabeled(self) -> np.ndarray:
        samples, labels, student = self._unlabeled, self.labeler.labels_for(STUDENT), self.labeler.students[STUDENT]
        minimum = self.cfg.SEMI.PSEUDO_LABEL.MIN_CONFIDENCE
        # One image at a time: the maps of all classes at full size are the peak of memory.
        found = [
            pseudo_labels(self._output(labels, sample["image"]), self._on_device(sample["valid"]), minimum)
            for sample in samples
        ]
        pseudo = PseudoLabels(
            torch.cat([each.label_map for each in found]), torch.cat([each.confidence for each in found])
        )
        valid = torch.cat([self._on_device(sample["valid"]) for sample in samples])
        images = torch.cat([self._on_device(sample["strong"][0]) for sample in samples])
        generators = [np.random.default_rng([self.seed, _KEY, number]) for number in range(len(samples))]
        view = strong_view(self.cfg, images, valid, pseudo, generators)
        hidden = any("hidden" in sample for sample in samples)
        titles = ["weak view", *(["hidden label"] if hidden else []), "pseudo label", "confidence", "strong view"]
        titles += ["its label", "student on it", "errors of pseudo label" if hidden else "student against label"]
        rows, captions, maps = [], [], []
        for number, sample in enumerate(samples):
            output = self._output(student, view.images[number])
            size = view.images.shape[-2:]
            predicted = output.class_scores(size)[0].argmax(0)
            weak, strong = (
                shrink(as_picture(image, self.cfg.INPUT.FORMAT)) for image in (sample["image"], view.images[number])
            )
            label, mixed, predicted = (
                shrink(each.byte().cpu().numpy())
                for each in (pseudo.label_map[number], view.targets[number], predicted)
            )
            truth = shrink(sample["hidden"]) if "hidden" in sample else None
            confidence = shrink(confidence_map(pseudo.confidence[number].cpu().numpy()))
            row = [weak, *([EMPTY if truth is None else colorize(truth, self.colors)] if hidden else [])]
            row += [colorize(label, self.colors), confidence, strong]
            row += [colorize(mixed, self.colors), colorize(predicted, self.colors)]
            if hidden:
                row.append(EMPTY if truth is None else error_map(weak, label, truth))
            else:
                row.append(error_map(strong, predicted, mixed))
            rows.append(row)
            maps += [label, mixed, predicted, *([] if truth is None else [truth])]
            captions.append(f"{sample['image_id']}: {_summary(pseudo, number, sample)}")
        return picture_grid(rows, titles, captions, legend_of(maps, self.class_names, self.colors))

    @cached_property
    def _test(self) -> list[dict]:
        records = load_records(self.cfg.DATASETS.TEST[0])[: self.cfg.TEST.MAX_IMAGES or None]
        # Spread over the set: neighbours are often frames of one video.
        chosen = np.linspace(0, len(records) - 1, min(NUM_IMAGES, len(records))).round().astype(int)
        return [EvaluationMapper(self.cfg)(records[index]) for index in chosen.tolist()]

    def _draw_test(self) -> np.ndarray:
        networks = {name: build_scorer(self.cfg, network) for name, network in self.labeler.networks.items()}
        titles = ["image", "truth", *networks, f"errors of {next(iter(networks))}"]
        rows, captions, maps = [], [], []
        for sample in self._test:
            predicted = [
                shrink(network([sample])[0]["sem_seg"].argmax(0).byte().cpu().numpy()) for network in networks.values()
            ]
            truth = shrink(sample["sem_seg"].numpy())
            image = as_picture(sample["image"], self.cfg.INPUT.FORMAT, truth.shape)
            row = [image, *(colorize(each, self.colors) for each in (truth, *predicted))]
            rows.append([*row, error_map(image, predicted[0], truth)])
            captions.append(str(sample["image_id"]))
            maps += [truth, *predicted]
        return picture_grid(rows, titles, captions, legend_of(maps, self.class_names, self.colors))

    def _on_device(self, tensor: Tensor) -> Tensor:
        """A batch of one."""
        return tensor[None].to(self.cfg.MODEL.DEVICE)

    def _output(self, network: Segmentor, image: Tensor):
        with self.autocast():
            return network(self._on_device(image), auxiliary=False).float()


def _shown_records(cfg: CfgNode, split: Split) -> list[dict]:
    """Unlabelled images; first those whose labels the split hides, which say most."""
    known = hidden_labels(cfg, split, NUM_IMAGES)
    names = {record["file_name"] for record in known}
    others = [record for record in split.unlabeled[: 2 * NUM_IMAGES] if record["file_name"] not in names]
    return [*known, *others][:NUM_IMAGES]


def _label_of(record: dict) -> np.ndarray | None:
    """(H, W) uint8; None where there is none, or where its file is damaged, which training need not notice."""
    if "sem_seg_file_name" not in record:
        return None
    try:
        return read_record_label(record)
    except DatasetError as error:
        logger.warning(f"shown without its label: {error}")
        return None


def _summary(pseudo: PseudoLabels, number: int, sample: dict) -> str:
    valid = sample["valid"].numpy()
    label = pseudo.label_map[number].cpu().numpy()
    confidence = pseudo.confidence[number].cpu().numpy()
    area = max(int(valid.sum()), 1)
    text = f"mean confidence {confidence[valid].sum() / area:.2f}, kept {(label[valid] != IGNORE).sum() / area:.0%}"
    if "hidden" in sample:
        counted = valid & (sample["hidden"] != IGNORE) & (label != IGNORE)
        right = (label == sample["hidden"])[counted].sum() / max(int(counted.sum()), 1)
        text += f", right {right:.0%} of these"
    return text
