"""Runs `bar doctor` from a checkout."""

from megatron_bar.tools import doctor, run_script

if __name__ == "__main__":
    run_script(doctor)
