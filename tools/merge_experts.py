"""Runs `bar merge` from a checkout."""

from megatron_bar.tools import merge_experts, run_script

if __name__ == "__main__":
    run_script(merge_experts)
