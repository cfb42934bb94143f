"""detectron2 evaluator of semantic segmentation at the original image size."""

import torch
import torch.distributed as dist
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from rc2l.data.reading import IGNORE
from rc2l.evaluation.confusion import confusion_matrix, scores_from_confusion


class SemSegEvaluator(DatasetEvaluator):
    """Accumulates one confusion matrix over a dataset, on the device, and over all processes at the end."""

    def __init__(self, dataset_name: str, num_classes: int, device: torch.device | str):
        """
        Args:
            dataset_name: registered name; its metadata gives ``stuff_classes`` (default: the ids). Targets are
                label maps of the project, 255 being ignored whatever id the label files have for that.
            num_classes: K, the classes that the model predicts.
            device: where the matrix is kept; the device of the predictions.

        Raises:
            ValueError: the dataset has another number of classes.
        """
        metadata = MetadataCatalog.get(dataset_name)
        self.dataset_name = dataset_name
        self.class_names = list(metadata.get("stuff_classes", None) or map(str, range(num_classes)))
        self.device = torch.device(device)
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
        self.num_images = 0

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
            pred = scores.argmax(0).to(self.device)
            self.matrix += confusion_matrix(pred, target, num_classes, IGNORE)
            self.num_images += 1

    def evaluate(self) -> dict:
        """Scores over the images of all processes, on every process.

        Returns:
            What :func:`scores_from_confusion` returns, and ``num_images`` and ``confusion_matrix`` (nested lists).

        Raises:
            ValueError: no pixel was counted.
        """
        totals = torch.cat([self.matrix.flatten(), self.matrix.new_tensor([self.num_images])])
        if comm.get_world_size() > 1:
            dist.all_reduce(totals)
        totals = totals.cpu()
        matrix, num_images = totals[:-1].view_as(self.matrix), totals[-1].item()
        if not matrix.any():
            raise ValueError(
                f"{self.dataset_name}: {num_images} images have no pixel to evaluate; "
                f"give its label files pixels of a class, not of ignored ones alone"
            )
        scores = scores_from_confusion(matrix, self.class_names)
        return {**scores, "num_images": num_images, "confusion_matrix": matrix.tolist()}

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
        wrong = target[(target != IGNORE) & ((target >= len(self.class_names)) | (target < 0))]
        if wrong.numel():
            raise ValueError(
                f"{where} has labels {sorted(set(wrong.tolist()))}; allowed are 0 to {len(self.class_names) - 1} "
                f"and {IGNORE} (ignore)"
            )
        return target
