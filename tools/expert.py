"""Runs `bar expert` from a checkout."""

from megatron_bar.tools import expert, run_script

if __name__ == "__main__":
    run_script(expert)
