"""Offline: data, training, evaluation and calibration of adapters."""
