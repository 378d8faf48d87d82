"""Runs `bar compare` from a checkout."""

from megatron_bar.tools import compare, run_script

if __name__ == "__main__":
    run_script(compare)
