"""Shape, parameters, experts, lineage, routing and hashes of a Hugging Face folder or a checkpoint."""

import argparse
from pathlib import Path

from megatron_bar.cli import progress, run
from megatron_bar.weights.describe import describe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: python tools/inspect_model.py merged")
    parser.add_argument("path", type=Path, metavar="PATH", help="a folder with config.json and safetensors, or a checkpoint")
    parser.add_argument("--no-hashes", action="store_true", help="read the headers only: instant on any size")
    args = parser.parse_args()
    print("\n".join(describe(args.path, hashes=not args.no_hashes, progress=progress)))


if __name__ == "__main__":
    run(main)
