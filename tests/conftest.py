"""Loaded before any test imports torch."""

from dalorra.threads import settle

settle()
