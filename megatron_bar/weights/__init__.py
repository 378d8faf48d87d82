"""Names and tensors of Hugging Face folders; no modules, no Megatron."""
