"""Runs `bar preprocess` from a checkout."""

from megatron_bar.tools import preprocess_data, run_script

if __name__ == "__main__":
    run_script(preprocess_data)
