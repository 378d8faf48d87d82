"""BAR (Branch-Adapt-Route) post-training on Megatron-Core."""

__version__ = "0.1.0"
