"""Runs `bar route` from a checkout."""

from megatron_bar.tools import route, run_script

if __name__ == "__main__":
    run_script(route)
