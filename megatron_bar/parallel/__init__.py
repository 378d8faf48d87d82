"""Processes and devices: Megatron's groups, seeds, and the CPU adaptation (installed by importing this
package)."""

import logging
import warnings

from megatron_bar.parallel import cpu
from megatron_bar.parallel.optional import say_what_is_left_out

# Said by torch and Megatron on every start, of nothing a user of this project can change.
for name in (
    "torch.utils.cpp_extension",
    "megatron.core.distributed",
    "megatron.core.models.gpt.gpt_model",
    "megatron.core.dist_checkpointing",
):
    logging.getLogger(name).setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
warnings.filterwarnings(
    "ignore", message=r"The \.grad attribute of a Tensor that is not a leaf", category=UserWarning
)

say_what_is_left_out("transformer_engine", "transformer_engine.pytorch")
cpu.install()
