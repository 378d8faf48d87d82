"""Runs the command `bar` as `python -m megatron_bar`, which is what torchrun starts in its processes."""

from megatron_bar.tools import main

if __name__ == "__main__":
    main()
