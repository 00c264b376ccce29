"""Laplace-LoRA: the curvature around a trained adapter, and the Gaussian that follows from it."""

from training.laplace.curvature import Curvature, Kfac, fit_curvature
from training.laplace.evidence import best_precision
from training.laplace.gradients import LabelGradients
from training.laplace.predictor import FACTORS_FILE, LaplacePredictor

__all__ = [
    "FACTORS_FILE",
    "Curvature",
    "Kfac",
    "LabelGradients",
    "LaplacePredictor",
    "best_precision",
    "fit_curvature",
]
