"""Evaluation of semantic segmentation: confusion matrix, scores, reports of named networks."""

from rc2l.evaluation.confusion import confusion_matrix, scores_from_confusion
from rc2l.evaluation.evaluate import evaluate_networks
from rc2l.evaluation.evaluator import SemSegEvaluator

__all__ = ["SemSegEvaluator", "confusion_matrix", "evaluate_networks", "scores_from_confusion"]
