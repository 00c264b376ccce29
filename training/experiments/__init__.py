"""Comparisons of methods under one protocol: described in YAML, run with resume, reported."""

from training.experiments.runner import Runner
from training.experiments.spec import Experiment, experiments, load_experiment

__all__ = ["Experiment", "Runner", "experiments", "load_experiment"]
