"""Runs `bar adopt` from a checkout."""

from megatron_bar.tools import adopt_folder, run_script

if __name__ == "__main__":
    run_script(adopt_folder)
