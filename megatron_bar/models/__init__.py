"""Megatron-Core models of Hugging Face families, and their weights in and out."""

import megatron_bar.parallel  # noqa: F401  (adapts Megatron-Core to a CPU before anything here imports it)
