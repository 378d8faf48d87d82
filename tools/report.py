"""Runs `bar report` from a checkout."""

from megatron_bar.tools import report, run_script

if __name__ == "__main__":
    run_script(report)
