"""Laplace-LoRA: the curvature around a trained adapter, and the Gaussian that follows from it."""

from training.laplace.curvature import Curvature, Kfac, fit_curvature
from training.laplace.evidence import best_precision, log_evidence
from training.laplace.gradients import LabelGradients, WeightRows
from training.laplace.predictor import LaplaceFit, LaplacePredictor

__all__ = [
    "Curvature",
    "Kfac",
    "LabelGradients",
    "LaplaceFit",
    "LaplacePredictor",
    "WeightRows",
    "best_precision",
    "fit_curvature",
    "log_evidence",
]
