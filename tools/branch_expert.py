"""Runs `bar branch` from a checkout."""

from megatron_bar.tools import branch_expert, run_script

if __name__ == "__main__":
    run_script(branch_expert)
