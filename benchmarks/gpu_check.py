"""What only a GPU can say, in one command of at most seven minutes: kernels, steps, sampler, interruption,
folders.

    make gpu-check                    in .venv
    PY=python3 make gpu-check         in an image that has torch, without installing anything
    python benchmarks/gpu_check.py --only train sampler --out runs/gpu_check

Each part runs in a process of its own under a time limit: one that fails, or runs out of memory, leaves a
line and the others go on. Without a GPU the same parts run on small shapes on the CPU, in two minutes, and
the table says which; their figures mean nothing. A table is printed, and OUT/gpu_check.json written: every
figure with its unit, target and part, and the end of a failed part's output.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import gpu_machine
import gpu_model
from gpu_machine import ROOT, Record

LIMIT = 420
"""Seconds of all parts."""
TAIL = 25
"""Lines of a failed part's output that are kept."""
DEVICE = "device"
"""Name of the figure that says where a part ran."""


@dataclass(frozen=True)
class Part:
    """Something that is looked at, in a process of its own."""

    name: str
    seconds: int
    """Time that it may take."""
    about: str
    work: Callable[[Record, Path], None]


PARTS = (
    Part(
        "versions",
        60,
        "what is there, and the rates of a bare product and a bare copy",
        gpu_machine.versions,
    ),
    Part(
        "tests",
        100,
        "packed attention's error, and every test marked gpu, against fp64 on the CPU",
        gpu_machine.tests,
    ),
    Part(
        "train",
        130,
        "a folder of 7B's width written and read, SFT steps, memory, waits for the GPU, longest kernels",
        gpu_model.train,
    ),
    Part("sampler", 100, "answers a second at 7B's width, at 16 and 64 slots", gpu_model.sampler),
    Part("route", 60, "the router's step of five experts", gpu_model.route),
    Part(
        "smoke", 170, "every stage of the recipe smoke, stopped by SIGTERM and continued", gpu_machine.smoke
    ),
)
NAMES = [part.name for part in PARTS]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=NAMES, help="these parts (default: all)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/gpu_check"), help="folder of gpu_check.json (runs/gpu_check)"
    )
    parser.add_argument("--part", choices=NAMES, help=argparse.SUPPRESS)  # in this process
    args = parser.parse_args()
    if args.part:
        work_here(PARTS[NAMES.index(args.part)], args.out)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    began, rows = time.monotonic(), []
    for part in PARTS:
        if args.only is None or part.name in args.only:
            rows += run(part, args.out, min(part.seconds, LIMIT - round(time.monotonic() - began)))
    result = {"date": str(date.today()), "seconds": round(time.monotonic() - began), "rows": rows}
    (args.out / "gpu_check.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print("\n" + table(rows), flush=True)
    print(f"\n{result['seconds']} s; {args.out / 'gpu_check.json'}")
    sys.exit(any(row["failed"] for row in rows))


def work_here(part: Part, out: Path) -> None:
    """Does a part in this process."""
    sys.path.insert(0, str(ROOT))
    record = recorder(out / f"{part.name}.jsonl")
    record(DEVICE, gpu_machine.device())
    part.work(record, out)


def recorder(file: Path) -> Record:
    """Returns a function that appends a figure to ``file``."""

    def record(
        name: str,
        value: object,
        unit: str = "",
        target: float | None = None,
        *,
        at_most: bool = False,
        problem: str = "",
    ) -> None:
        missed = target is not None and (value > target if at_most else value < target)
        row = {"name": name, "value": value, "unit": unit, "target": target, "at_most": at_most}
        row |= {"failed": False, "missed": missed, "problem": problem}
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")
        print(line(row), flush=True)

    return record


def run(part: Part, out: Path, seconds: float) -> list[dict]:
    """Returns the rows of a part, and one of how it ended."""
    print(f"\n== {part.name}: {part.about}", flush=True)
    file, began, ended = out / f"{part.name}.jsonl", time.monotonic(), "no time was left"
    file.unlink(missing_ok=True)
    if seconds > 5:
        ended = watch(part.name, out, seconds)
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    rows = [json.loads(line) for line in text.splitlines()]
    took = {"name": f"{part.name} took", "value": round(time.monotonic() - began, 1), "unit": "s"}
    took |= {"target": None, "at_most": False, "missed": False, "problem": "", "failed": bool(ended)}
    rows.append(took | {"ended": ended})
    if ended:
        print(line(rows[-1]), flush=True)
    return [{"part": part.name} | row for row in rows]


def watch(name: str, out: Path, seconds: float) -> str:
    """Runs the part; returns how it failed in one line, the end of its output below, or nothing."""
    command = [sys.executable, __file__, "--part", name, "--out", str(out)]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    }
    log = out / f"{name}.log"
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            status = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            status = None
    text = log.read_text(encoding="utf-8", errors="replace")
    print(text, end="", flush=True)
    if status == 0:
        return ""
    lines = [line for line in text.splitlines() if line.strip()]
    how = f"stopped after {seconds:g} s" if status is None else f"status {status}"
    if status is not None and lines:  # what sys.exit or an error said
        how = f"{lines[-1].strip()} ({how})"
    return "\n".join([how, *lines[-TAIL:]])


def line(row: dict) -> str:
    """Returns a figure as a line of the table."""
    value = row["value"]
    shown = str(value)
    if isinstance(value, float):
        shown = f"{value:,.4g}"
    elif isinstance(value, int):
        shown = f"{value:,}"
    bound = "at most" if row["at_most"] else "at least"
    target = "" if row["target"] is None else f"{bound} {row['target']:g}"
    state = "MISSED" if row["missed"] else row["problem"]
    if row["failed"]:
        state = "FAILED: " + row["ended"].splitlines()[0]
    return f"{row['name']:<58} {shown:>14} {row['unit']:<14} {target:<14} {state}".rstrip()


def table(rows: list[dict]) -> str:
    """Returns the figures of every part, and which parts were not on a GPU."""
    parts = dict.fromkeys(row["part"] for row in rows)
    ran_on = {row["part"]: row["value"] for row in rows if row["name"] == DEVICE}
    blocks = []
    for part in parts:
        mine = [row for row in rows if row["part"] == part and row["name"] != DEVICE]
        blocks.append("\n".join([f"-- {part}, on {ran_on.get(part, 'nothing')}", *map(line, mine)]))
    without = ", ".join(part for part in parts if ran_on.get(part, gpu_machine.CPU) == gpu_machine.CPU)
    return "\n".join([*blocks, "", f"not on a GPU: {without or 'none'}"])


if __name__ == "__main__":
    main()
