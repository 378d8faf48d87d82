"""BAR (Branch-Adapt-Route) post-training of OLMo 2 on Megatron-Core."""

__version__ = "0.1.0"
