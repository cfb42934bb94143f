"""RC²L: semi-supervised semantic segmentation with mask classification, as a Detectron2 project."""

from rc2l import compat  # noqa: F401  first of all: makes detectron2 importable

__version__ = "0.1.0"
