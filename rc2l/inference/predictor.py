"""A trained network as a function of images, for tools, notebooks and services."""

from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

import rc2l.modeling  # noqa: F401  registers the architectures
from rc2l.data.image_rule import ImageRule, rule_of
from rc2l.data.transforms import build_test_resize
from rc2l.engine.training_check import check_networks, explained_build
from rc2l.modeling.weights import load_weights
from rc2l.structures.label_map import IGNORE
from rc2l.visualization.label_images import colors_of


@dataclass
class Prediction:
    """What a network says about one image, at the image's own size."""

    #: (H, W) uint8, the class of each pixel, or 255 where the confidence is below the least one asked for.
    label_map: np.ndarray
    #: (H, W) float32 in [0, 1]: share of the most probable class in the sum over classes.
    confidence: np.ndarray


class Predictor:
    """Labels images as evaluation does: same sizes, same network, single scale.

    Args:
        cfg: the config of the training run, MODEL.DEVICE being where it runs.
        checkpoint: of a run, or any file that fits the whole model (:func:`~rc2l.modeling.weights.load_weights`).
        network: "teacher", "student" or another one of a checkpoint of ours; "": the result of its run.
        min_confidence: pixels below it, in [0, 1], become 255.
        image_rule: how stored values become 8-bit RGB; default: as in the dataset of the run.

    Raises:
        FileNotFoundError, ValueError: the checkpoint cannot be read or does not fit, or a value is out of range.
    """

    def __init__(
        self,
        cfg: CfgNode,
        checkpoint: str,
        *,
        network: str = "",
        min_confidence: float = 0.0,
        image_rule: ImageRule | None = None,
    ) -> None:
        if not 0 <= min_confidence <= 1:
            raise ValueError(f"the least confidence is {min_confidence}: it must be in [0, 1]")
        if not str(checkpoint).strip():
            raise ValueError("--checkpoint is empty: name the file of a trained network, such as model_best.pth")
        self.min_confidence = min_confidence
        check_networks(cfg)
        with explained_build():
            self.network = build_model(cfg).eval()
        load_weights(self.network, checkpoint, prefer=network, cfg=cfg, strict=True)
        self.bgr = cfg.INPUT.FORMAT == "BGR"
        self.resize = build_test_resize(cfg)
        metadata = MetadataCatalog.get((*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)[0])
        self.image_rule = image_rule or rule_of(metadata)
        self.class_names: list[str] = list(metadata.stuff_classes)
        self.class_colors = colors_of(metadata)

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> Prediction:
        """Label one image, of any size.

        Args:
            image: (H, W, 3) uint8 in RGB, as :func:`~rc2l.data.reading.read_image` gives it; or values as a file stores
                them, (H, W) or (H, W, C) of another type or number of bands, of which ``image_rule`` makes RGB.

        Raises:
            ValueError: it is no such array, or the rule says nothing about its values or bands.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            image = self.image_rule.to_rgb(image)
        image = np.ascontiguousarray(image[..., ::-1]) if self.bgr else image
        resized = self.resize.get_transform(image).apply_image(image)
        tensor = torch.from_numpy(np.array(resized.transpose(2, 0, 1), order="C"))
        scores = self.network([{"image": tensor, "height": image.shape[0], "width": image.shape[1]}])[0]["sem_seg"]
        best, label_map = scores.max(0)
        confidence = best / scores.sum(0).clamp(min=torch.finfo(scores.dtype).tiny)
        label_map = torch.where(confidence >= self.min_confidence, label_map, IGNORE).to(torch.uint8)
        return Prediction(label_map.cpu().numpy(), confidence.cpu().numpy())
