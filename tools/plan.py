"""Runs `bar plan` from a checkout."""

from megatron_bar.tools import plan, run_script

if __name__ == "__main__":
    run_script(plan)
