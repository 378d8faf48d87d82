"""Runs `bar export` from a checkout."""

from megatron_bar.tools import export_hf, run_script

if __name__ == "__main__":
    run_script(export_hf)
