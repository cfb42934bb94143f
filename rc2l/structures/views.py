"""Pseudo labels, and the views of unlabelled images that a student is trained on."""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class PseudoLabels:
    """Pseudo labels of a batch at crop resolution."""

    #: (B, H, W) uint8, 255 = ignored.
    label_map: Tensor
    #: (B, H, W) float32 in [0, 1]: share of the most probable class in the sum over classes.
    confidence: Tensor
    #: (B, H, W) float32, at least 0, in nats: of the distribution over classes; None where nothing asks for it.
    entropy: Tensor | None = None


@dataclass
class View:
    """What the student sees of the unlabelled batch, and what it must predict there."""

    #: (B_u, 3, H, W) 0..255.
    images: Tensor
    #: (B_u, H, W) uint8, 255 = ignored.
    targets: Tensor
    #: (B_u, H, W) float32 in [0, 1], of who labelled.
    confidence: Tensor
    #: (B_u, H, W) bool, False in padding, also in that which mixing pasted.
    valid: Tensor
    #: (B_u, H, W) float32, in nats, where the pseudo labels have one.
    entropy: Tensor | None = None
