"""The objectives and methods of the project, a file a paper; importing this package registers them."""

# Objectives that join any method draw their random numbers in the order of their registration.
from rc2l.semi.objectives import reco

# isort: split
from rc2l.semi.objectives import consistency, dgcl, mask_former, pixels, rc2l, s4gan, self_training, unimatch

__all__ = [
    "consistency",
    "dgcl",
    "mask_former",
    "pixels",
    "rc2l",
    "reco",
    "s4gan",
    "self_training",
    "unimatch",
]
