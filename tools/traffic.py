"""Runs `bar traffic` from a checkout."""

from megatron_bar.tools import run_script, traffic

if __name__ == "__main__":
    run_script(traffic)
