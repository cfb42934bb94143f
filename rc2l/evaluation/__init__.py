"""Evaluation of semantic segmentation: confusion matrix, scores, reports of named networks."""

from rc2l.evaluation.confusion import confusion_matrix, scores_from_confusion
from rc2l.evaluation.evaluate import evaluate_networks
from rc2l.evaluation.evaluator import SemSegEvaluator
from rc2l.evaluation.scorer import Scorer, build_scorer

__all__ = [
    "Scorer",
    "SemSegEvaluator",
    "build_scorer",
    "confusion_matrix",
    "evaluate_networks",
    "scores_from_confusion",
]
