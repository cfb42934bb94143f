"""Trained networks as functions of images: for tools, notebooks and services."""

from rc2l.inference.predictor import Prediction, Predictor

__all__ = ["Prediction", "Predictor"]
