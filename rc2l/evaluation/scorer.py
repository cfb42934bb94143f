"""A network on whole images, as the config asks for it: sliding window, several scales, mirrored, half precision."""

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F

from rc2l.evaluation.window import SlidingWindow, build_window, scores_by_rows
from rc2l.modeling.precision import autocast_dtype


class Scorer(nn.Module):
    """Gives what the network gives, scores of each class in each pixel, averaged over views of the image.

    What is averaged are scores of at least 0 as :meth:`Segmentor.forward` defines them: probabilities of per-pixel
    networks; of MaskFormer its semantic inference, the sum over queries of class probability times mask probability,
    which is not normalised over classes (official MaskFormer averages the same). Mirrored images have the same weight
    as the others, and all scales have. Windows weigh as :meth:`SlidingWindow.axis` says; each is an image of its own to
    the network, with queries of its own.

    Args:
        network: takes detectron2's list of dicts and gives ``[{"sem_seg": (K, height, width)}]``.
        window: None: whole images.
        mirror: average with the scores of the image flipped horizontally.
        dtype: that of autocast; None: as the network is.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        window: SlidingWindow | None = None,
        mirror: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.network, self.window, self.mirror, self.dtype = network, window, mirror, dtype
        # Not by train(), which would also change what in the network is frozen.
        self.training = network.training

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        parameter = next(self.network.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    def forward(self, batched_inputs: list[dict]) -> list[dict[str, Tensor]]:
        """Scores of images of any sizes.

        Args:
            batched_inputs: each with ``image`` (C, h, w), or ``scales``, a list of such, which it is averaged over; and
                optionally ``height`` and ``width``, the result's size.

        Returns:
            ``[{"sem_seg": (K, height, width)}]``, float32, at least 0.
        """
        if not self.mirror and self.window is None and not any("scales" in item for item in batched_inputs):
            with self._autocast():
                return self.network(batched_inputs)
        return [{"sem_seg": self._image_scores(item)} for item in batched_inputs]

    def _image_scores(self, item: dict) -> Tensor:
        height, width = item.get("height"), item.get("width")
        if height is None or width is None:
            height, width = item["image"].shape[-2:]
        views = item.get("scales") or [item["image"]]
        total = self._view_scores(views[0], height, width)
        for view in views[1:]:
            total = total + self._view_scores(view, height, width)
        return total / len(views) if len(views) > 1 else total

    def _view_scores(self, image: Tensor, height: int, width: int) -> Tensor:
        """(C, h, w) -> (K, height, width)."""
        size = image.shape[-2:]
        if self.window is None or self.window.covers(*size):
            return self.scores(image[None], (height, width))[0]
        image = image.to(self.device)

        def score(corners: list[tuple[int, int]], window: tuple[int, int]) -> Tensor:
            return self.scores([image[:, y : y + window[0], x : x + window[1]] for y, x in corners])

        total = None
        for top, rows in scores_by_rows(self.window, *size, score):
            total = rows.new_empty(len(rows), *size) if total is None else total
            total[:, top : top + rows.shape[1]] = rows
        if size == (height, width):
            return total
        return F.interpolate(total[None], size=(height, width), mode="bilinear", align_corners=False)[0]

    def scores(self, images: Tensor | list[Tensor], size: tuple[int, int] | None = None) -> list[Tensor]:
        """Scores of images of one size, each seen whole, and mirrored too where that is asked for.

        Shape:
            images (n, C, h, w); results (K, *size) float32, at the size of the images where none is given.
        """
        scores = self._run(images, size)
        if not self.mirror:
            return scores
        mirrored = self._run([image.flip(-1) for image in images], size)
        return [(one + other.flip(-1)) / 2 for one, other in zip(scores, mirrored, strict=True)]

    def _run(self, images: Tensor | list[Tensor], size: tuple[int, int] | None) -> list[Tensor]:
        height, width = size or images[0].shape[-2:]
        with self._autocast():
            results = self.network([{"image": image, "height": height, "width": width} for image in images])
        return [result["sem_seg"].float() for result in results]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)


def build_scorer(cfg: CfgNode, network: nn.Module) -> Scorer:
    """The network as ``TEST.WINDOW``, ``TEST.AUG`` and ``TEST.AMP`` ask for it."""
    dtype = autocast_dtype(cfg.MODEL.DEVICE, cfg.SOLVER.AMP.DTYPE) if cfg.TEST.AMP else None
    mirror = cfg.TEST.AUG.ENABLED and cfg.TEST.AUG.FLIP
    return Scorer(network, window=build_window(cfg), mirror=mirror, dtype=dtype)


def describe_mode(cfg: CfgNode) -> str:
    """How images are shown to the network and at which size predictions are compared, in words."""
    options, window = cfg.TEST.AUG, build_window(cfg)
    words = ["single scale"]
    if options.ENABLED:
        sizes = ", ".join(str(size) if size else "own size" for size in options.MIN_SIZES)
        words = [f"short edges {sizes}, the long one at most {options.MAX_SIZE}"]
        if options.FLIP:
            words.append("mirrored too")
    if window:
        stride = f"{window.stride:g}" + (" of it" if window.stride <= 1 else " pixels")
        words.append(f"windows {window.size[0]}x{window.size[1]}, stride {stride}, {window.blending} blending")
    if cfg.TEST.AMP:
        words.append(f"{cfg.SOLVER.AMP.DTYPE} autocast")
    if cfg.TEST.SCORE_RESOLUTION == "mask":
        words.append("scores at the masks' resolution")
    return ", ".join([*words, "original size"])
