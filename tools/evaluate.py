"""Runs `bar evaluate` from a checkout."""

from megatron_bar.tools import evaluate, run_script

if __name__ == "__main__":
    run_script(evaluate)
