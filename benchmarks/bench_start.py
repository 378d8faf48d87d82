"""From the command to the first training step of a tiny run in a new folder: Python, imports, world, tokens,
model."""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from side_by_side import figure

ROUNDS = 5
SCRIPT = Path(__file__).resolve().parent.parent / "examples" / "pretrain_bar.py"


def main() -> None:
    seconds = [first_step() for _ in range(ROUNDS)]
    print("start to first step: " + " ".join(f"{s:.1f}" for s in seconds) + " s")
    figure("start_to_first_step_s", seconds, 6, at_most=True)


def first_step() -> float:
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, SCRIPT, "tiny", "--out", out]
        start = time.perf_counter()
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
        ) as child:
            found = next(
                (time.perf_counter() - start for line in child.stdout if re.match(r"base +1/\d", line)), None
            )
            child.kill()
    if found is None:
        sys.exit("the run ended before its first step")
    return found


if __name__ == "__main__":
    main()
