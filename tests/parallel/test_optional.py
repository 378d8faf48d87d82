"""Without what a GPU's image may lack or have in the wrong build: a Transformer Engine of another torch,
NCCL."""

import os
import subprocess
import sys

import pytest
from broken_engine import BROKEN, SYMBOL, broken_engine
from scripts import ROOT

from megatron_bar.errors import BarError
from megatron_bar.parallel.cpu import backend_of

BUILD = """
import sys
from megatron_bar.parallel import cpu
from megatron_bar.models.attention import TransformerEngineAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
config = TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=1)
try:
    TransformerEngineAttention(config, 1, AttnMaskType.causal, "self")
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize("where", BROKEN)
def test_an_engine_of_another_torch_is_left_out_in_one_line(where, tmp_path):
    place = broken_engine(tmp_path, BROKEN[where])
    env = os.environ | {"PYTHONPATH": f"{place}:{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BUILD], capture_output=True, text=True, env=env, check=False
    )
    said = f"transformer_engine: left out, it cannot be imported: {SYMBOL}"
    assert [line for line in done.stderr.splitlines() if "transformer_engine" in line] == [said]
    assert done.stdout.startswith("attention: transformer_engine is not installed (") and not done.returncode


def test_a_gpu_without_nccl_is_named():
    assert backend_of(gpu=True, nccl=True) == "nccl"
    assert backend_of(gpu=False, nccl=True) == backend_of(gpu=False, nccl=False) == "gloo"
    with pytest.raises(BarError, match="NCCL: expected in torch where there is a GPU, found none"):
        backend_of(gpu=True, nccl=False)
