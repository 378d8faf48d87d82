"""Runs `bar card` from a checkout."""

from megatron_bar.tools import card, run_script

if __name__ == "__main__":
    run_script(card)
