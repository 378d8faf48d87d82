"""Processes and devices: Megatron's groups, seeds, and the CPU adaptation (installed by importing this package)."""

from megatron_bar.parallel import cpu

cpu.install()
