"""Folders of tensors <-> Megatron's parameters and its torch_dist files: on names and files alone, Megatron
is not imported."""
