"""Runs `bar generate` from a checkout."""

from megatron_bar.tools import generate, run_script

if __name__ == "__main__":
    run_script(generate)
