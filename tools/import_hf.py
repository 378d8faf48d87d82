"""Runs `bar import` from a checkout."""

from megatron_bar.tools import import_hf, run_script

if __name__ == "__main__":
    run_script(import_hf)
