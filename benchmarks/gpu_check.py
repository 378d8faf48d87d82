"""What only a GPU can say, in one command of at most seven minutes: kernels, steps, sampler, interruption,
folders.

    make gpu-check                    in .venv
    PY=python3 make gpu-check         in an image that has torch, without installing anything
    python benchmarks/gpu_check.py --only train sampler --out runs/gpu_check

Each part runs in a process of its own under a time limit: one that fails, or runs out of memory, leaves a
line and the others go on. Without a GPU the same parts run on small shapes on the CPU, and the table says so;
their figures mean nothing. A table is printed, and OUT/gpu_check.json written: every figure with its unit,
target and part, and the end of a failed part's output.
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

ROOT = Path(__file__).parent.parent
LIMIT = 420
"""Seconds of all parts."""
TAIL = 25
"""Lines of a failed part's output that are kept."""


@dataclass(frozen=True)
class Part:
    name: str
    seconds: int
    """It may take."""
    about: str


PARTS = (
    Part("versions", 60, "what is there, and the rates of a bare product and a bare copy"),
    Part("tests", 100, "every test marked gpu, against fp64 on the CPU"),
    Part(
        "train",
        130,
        "a folder of 7B's width written and read, SFT steps, memory, waits for the GPU, longest kernels",
    ),
    Part("sampler", 100, "answers a second at 7B's width, at 16 and 64 slots"),
    Part("route", 60, "the router's step of five experts"),
    Part("smoke", 170, "every stage of the recipe smoke, stopped by SIGTERM and continued"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", choices=[part.name for part in PARTS], help="these parts (default: all)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/gpu_check"), help="folder of gpu_check.json (runs/gpu_check)"
    )
    parser.add_argument(
        "--part", choices=[part.name for part in PARTS], help=argparse.SUPPRESS
    )  # in this process
    args = parser.parse_args()
    if args.part:
        sys.path.insert(0, str(ROOT))
        import gpu_parts

        getattr(gpu_parts, args.part)(recorder(args.out / f"{args.part}.jsonl"), args.out)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    began, rows = time.monotonic(), []
    for part in PARTS:
        if args.only is None or part.name in args.only:
            rows += run(part, args.out, min(part.seconds, LIMIT - (time.monotonic() - began)))
    result = {"date": str(date.today()), "seconds": round(time.monotonic() - began), "rows": rows}
    (args.out / "gpu_check.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print("\n" + table(rows), flush=True)
    print(f"\n{result['seconds']} s; {args.out / 'gpu_check.json'}")
    sys.exit(any(row["failed"] for row in rows))


Record = Callable[..., None]
"""``record(name, value, unit, target=None, at_most=False)``: a figure of a part."""


def recorder(file: Path) -> Record:
    def record(
        name: str, value: object, unit: str = "", target: float | None = None, *, at_most: bool = False
    ) -> None:
        missed = target is not None and (value > target if at_most else value < target)
        row = {"name": name, "value": value, "unit": unit, "target": target, "at_most": at_most}
        row |= {"failed": False, "missed": missed}
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")
        print(line(row), flush=True)

    return record


def run(part: Part, out: Path, seconds: float) -> list[dict]:
    """The rows of a part, and one of how it ended."""
    print(f"\n== {part.name}: {part.about}", flush=True)
    file, began, ended = out / f"{part.name}.jsonl", time.monotonic(), "no time was left"
    file.unlink(missing_ok=True)
    if seconds > 5:
        ended = watch(part.name, out, seconds)
    rows = (
        [json.loads(text) for text in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
    )
    took = {
        "name": f"{part.name} took",
        "value": round(time.monotonic() - began, 1),
        "unit": "s",
        "failed": bool(ended),
    }
    rows.append(took | {"target": None, "at_most": False, "missed": False, "ended": ended})
    if ended:
        print(line(rows[-1]), flush=True)
    return [{"part": part.name} | row for row in rows]


def watch(name: str, out: Path, seconds: float) -> str:
    """Runs the part; returns how it failed, or nothing."""
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
    how = f"stopped after {seconds:.0f} s" if status is None else f"status {status}"
    return "\n".join([how, *text.splitlines()[-TAIL:]])


def line(row: dict) -> str:
    value = row["value"]
    shown = (
        f"{value:,.4g}"
        if isinstance(value, float)
        else f"{value:,}"
        if isinstance(value, int)
        else str(value)
    )
    target = (
        "" if row["target"] is None else f"{'at most' if row['at_most'] else 'at least'} {row['target']:g}"
    )
    state = "FAILED: " + row["ended"].splitlines()[0] if row["failed"] else "MISSED" if row["missed"] else ""
    return f"{row['name']:<58} {shown:>14} {row['unit']:<14} {target:<14} {state}".rstrip()


def table(rows: list[dict]) -> str:
    parts = dict.fromkeys(row["part"] for row in rows)
    return "\n".join(
        "\n".join([f"-- {part}", *(line(row) for row in rows if row["part"] == part)]) for part in parts
    )


if __name__ == "__main__":
    main()
