"""Runs `bar run` from a checkout."""

from megatron_bar.tools import run_recipe, run_script

if __name__ == "__main__":
    run_script(run_recipe)
