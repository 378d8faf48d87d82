"""Runs `bar merge-dense` from a checkout."""

from megatron_bar.tools import merge_dense, run_script

if __name__ == "__main__":
    run_script(merge_dense)
