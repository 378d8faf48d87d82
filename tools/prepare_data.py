"""Runs `bar prepare` from a checkout."""

from megatron_bar.tools import prepare_data, run_script

if __name__ == "__main__":
    run_script(prepare_data)
