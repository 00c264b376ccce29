"""Honest probabilities from a frozen Llama: rank-masked LoRA, sampled in one packed forward."""
