"""Runs `bar preview` from a checkout."""

from megatron_bar.tools import preview_data, run_script

if __name__ == "__main__":
    run_script(preview_data)
