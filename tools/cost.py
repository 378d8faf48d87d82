"""Runs `bar cost` from a checkout."""

from megatron_bar.tools import cost, run_script

if __name__ == "__main__":
    run_script(cost)
