"""From the figures of a `make bench` to results/DEVICE.json and DEVICE.md: value, target, machine, versions,
date.

    BENCH_FIGURES=runs/bench.jsonl python benchmarks/bench_moe.py
    python benchmarks/collect.py runs/bench.jsonl

Figures that this run has not measured stay as they were, with their own date and versions.
"""

import argparse
import datetime
import json
import os
import platform
import re
from importlib.metadata import version
from pathlib import Path

from side_by_side import reached

from megatron_bar.parallel import cpu

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("megatron-core", "torch", "transformers")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figures", type=Path, help="the file that BENCH_FIGURES named")
    args = parser.parse_args()
    versions = {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
    device = f"{cpu.device_name()}, {os.cpu_count()} cores"
    origin = {"date": str(datetime.date.today()), "versions": versions}
    file = RESULTS / f"{re.sub(r'[^a-z0-9]+', '_', device.lower())}.json"
    found = json.loads(file.read_text(encoding="utf-8"))["figures"] if file.exists() else {}
    for line in args.figures.read_text(encoding="utf-8").splitlines():
        measured = json.loads(line)
        found[measured.pop("name")] = measured | origin
    RESULTS.mkdir(exist_ok=True)
    file.write_text(
        json.dumps({"device": device, "figures": dict(sorted(found.items()))}, indent=1) + "\n",
        encoding="utf-8",
    )
    file.with_suffix(".md").write_text(table(device, found), encoding="utf-8")
    print(f"{file.relative_to(Path.cwd(), walk_up=True)}: {len(found)} figures")


def table(device: str, figures: dict) -> str:
    lines = [
        f"# {device}",
        "",
        "| figure | value | target | reached | measured | with |",
        "|---|---|---|---|---|---|",
    ]
    for name, f in sorted(figures.items()):
        verdict = reached(f["value"], f["target"], at_most=f["at_most"], spread=f.get("spread", 0))
        value = f"{f['value']:.3g}" + (f", spread {f['spread']:.2g}" if "spread" in f else "")
        versions = ", ".join(f"{package} {number}" for package, number in f["versions"].items())
        target = f"at {'most' if f['at_most'] else 'least'} {f['target']:g}"
        lines.append(f"| {name} | {value} | {target} | {verdict} | {f['date']} | {versions} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
