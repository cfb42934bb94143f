"""detectron2 evaluator of semantic segmentation at the original image size."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from rc2l.evaluation.boundary import boundary_counts
from rc2l.evaluation.confusion import confusion_matrix, image_scores, scores_from_confusion
from rc2l.evaluation.extremes import Extremes, best_and_worst
from rc2l.structures.label_map import IGNORE

#: Pictures of the best, and of the worst images of a test set.
NUM_PICTURES = 4


class SemSegEvaluator(DatasetEvaluator):
    """Accumulates one confusion matrix over a dataset, on the device, and over all processes at the end."""

    def __init__(
        self,
        dataset_name: str,
        num_classes: int,
        device: torch.device | str,
        draw: Callable[[dict, np.ndarray], np.ndarray] | None = None,
        *,
        boundary_width: float = 0.0,
    ) -> None:
        """
        Args:
            dataset_name: registered name; its metadata gives ``stuff_classes`` (default: the ids). Targets are
                label maps of the project, 255 being ignored whatever id the label files have for that.
            num_classes: K, the classes that the model predicts.
            device: where the matrix is kept; the device of the predictions.
            draw: makes the picture (height, width, 3) of an image of the dataset and its prediction (H0, W0); None: no
                pictures of the best and worst images.
            boundary_width: of Boundary IoU, as :func:`boundary_counts` takes it; 0: it is not measured.

        Raises:
            ValueError: the dataset has another number of classes.
        """
        metadata = MetadataCatalog.get(dataset_name)
        self.dataset_name = dataset_name
        self.class_names = list(metadata.get("stuff_classes", None) or map(str, range(num_classes)))
        self.device = torch.device(device)
        self.draw = draw
        self.boundary_width = boundary_width
        if len(self.class_names) != num_classes:
            raise ValueError(
                f"{dataset_name} has {len(self.class_names)} classes, but the model predicts {num_classes}; "
                f"set MODEL.SEM_SEG_HEAD.NUM_CLASSES to {len(self.class_names)}"
            )
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        num_classes = len(self.class_names)
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=self.device)
        self.boundary = torch.zeros(3, num_classes, dtype=torch.int64, device=self.device)
        self.num_images = 0
        #: Of each image: ``image_id``, ``file_name``, ``mIoU`` and ``pixel_accuracy`` in percent.
        self.images: list[dict] = []
        self._extremes = Extremes(NUM_PICTURES if self.draw else 0)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Count the pixels of some images.

        Args:
            inputs: each with the target ``sem_seg`` (H0, W0) uint8, best on the CPU, where checking it is free.
            outputs: each with the scores ``sem_seg`` (K, H0, W0).

        Raises:
            ValueError: an image has no target, a target of another size, or a label that is no class.
        """
        num_classes = len(self.class_names)
        for image, output in zip(inputs, outputs, strict=True):
            scores, target = output["sem_seg"], self._checked_target(image, output["sem_seg"])
            target = target.to(self.device, non_blocking=True)
            # Like argmax, in a third of the time on CPUs.
            pred = scores.max(0).indices.to(self.device)
            counts = confusion_matrix(pred, target, num_classes, IGNORE)
            self.matrix += counts
            if self.boundary_width > 0:
                self.boundary += boundary_counts(pred, target, num_classes, self.boundary_width)
            self.num_images += 1
            # Each image waits for the device here, as it does in detectron2's inference_on_dataset anyway.
            score, accuracy = image_scores(counts)
            file_name = str(image.get("file_name", ""))
            image_id = str(image.get("image_id", Path(file_name).stem))
            self.images.append(
                {"image_id": image_id, "file_name": file_name, "mIoU": score, "pixel_accuracy": accuracy}
            )
            if self.draw and score == score:
                self._extremes.add(
                    score, image_id, lambda image=image, pred=pred: self.draw(image, pred.byte().cpu().numpy())
                )

    def evaluate(self) -> dict:
        """Scores over the images of all processes, on every process.

        Returns:
            What :func:`scores_from_confusion` returns, ``num_images``, ``confusion_matrix`` (nested lists), and
            ``images``, the scores of each image alone in the order of the dataset: ``image_id``, ``file_name``,
            ``mIoU``, the mean over classes that it has or that are predicted (NaN: no pixel counts), and
            ``pixel_accuracy``.

        Raises:
            ValueError: no pixel was counted.
        """
        counts = [self.matrix.flatten(), self.boundary.flatten(), self.matrix.new_tensor([self.num_images])]
        totals = torch.cat(counts)
        if comm.get_world_size() > 1:
            dist.all_reduce(totals)
        totals = totals.cpu()
        matrix, boundary, num_images = totals.split([len(each) for each in counts])
        matrix, boundary, num_images = matrix.view_as(self.matrix), boundary.view_as(self.boundary), num_images.item()
        if not matrix.any():
            raise ValueError(
                f"{self.dataset_name}: {num_images} images have no pixel to evaluate; "
                f"give its label files pixels of a class, not of ignored ones alone"
            )
        scores = scores_from_confusion(matrix, self.class_names, boundary if self.boundary_width > 0 else None)
        # Processes have consecutive parts of the dataset, in order of rank.
        images = [image for part in comm.all_gather(self.images) for image in part]
        return {**scores, "num_images": num_images, "confusion_matrix": matrix.tolist(), "images": images}

    def pictures(self) -> dict[str, list]:
        """``best`` and ``worst``, lists of :class:`~rc2l.evaluation.extremes.ScoredPicture`, the most extreme first;
        empty in all but the main process. Every process must call it."""
        parts = comm.gather(self._extremes.kept)
        best, worst = best_and_worst([each for part in parts for each in part], NUM_PICTURES)
        return {"best": best, "worst": worst}

    def _checked_target(self, image: dict, scores: torch.Tensor) -> torch.Tensor:
        where = f"{self.dataset_name}: label map of {image.get('file_name', 'an image')}"
        target = image.get("sem_seg")
        if target is None:
            raise ValueError(f"{where} is missing; evaluation needs one for every image")
        if target.shape != scores.shape[-2:]:
            raise ValueError(
                f"{where} is {tuple(target.shape)} pixels, its prediction {tuple(scores.shape[-2:])} (height, width); "
                "both must have the size of the original image"
            )
        out_of_range = target >= len(self.class_names)
        out_of_range &= target != IGNORE
        if target.dtype.is_signed:
            out_of_range |= target < 0
        if out_of_range.any():
            wrong = target[out_of_range]
            raise ValueError(
                f"{where} has labels {sorted(set(wrong.tolist()))}; allowed are 0 to {len(self.class_names) - 1} "
                f"and {IGNORE} (ignore)"
            )
        return target
