"""The engines that tests run: transformers everywhere, vLLM where an environment of its own has it."""

import os
from pathlib import Path

import pytest
from folders import save_hf
from scripts import ROOT

VLLM = Path(os.environ.get("BAR_VLLM_PYTHON", ROOT / ".venv-vllm/bin/python"))


def vllm() -> dict:
    """Returns vLLM's config; skips the test where there is none."""
    if not VLLM.exists():
        pytest.skip(f"{VLLM} is not there: make test-vllm")
    return {"name": "vllm", "python": str(VLLM)}


ENGINES = {
    "transformers": lambda: {"name": "transformers"},
    "vllm": vllm,
    "vllm of two workers": lambda: vllm() | {"tensor": 2},
}


def folder_for(engine: str, place: Path, **changes) -> Path:
    """Returns a folder of two experts that the engine's kernels can run."""
    # vLLM's on a CPU want products of 32.
    wide = {"hidden_size": 128, "intermediate_size": 128} if "vllm" in engine else {}
    return save_hf(place / "source", **{"experts": 2, "seed": 2} | wide | changes)
