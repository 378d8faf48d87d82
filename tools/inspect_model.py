"""Runs `bar inspect` from a checkout."""

from megatron_bar.tools import inspect_model, run_script

if __name__ == "__main__":
    run_script(inspect_model)
