"""Runs `bar verify` from a checkout."""

from megatron_bar.tools import run_script, verify_frozen

if __name__ == "__main__":
    run_script(verify_frozen)
