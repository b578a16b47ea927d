"""Weights between Hugging Face and Megatron: one rule per weight, both directions."""
