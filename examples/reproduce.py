"""Does BAR hold up? The tiny study from nothing: baselines, upgrades, ablations, sweeps; a report with every
claim's verdict.

    python examples/reproduce.py                              # seed 1 (make reproduce SEEDS=1)
    python examples/reproduce.py --seeds 1 2 3 --processes 2  # make reproduce

Run again, it continues. Every seed is a run of the recipe in OUT/seedN; the processes share the steps of all
of them out. The report over all seeds is written to --results: report.md, report.html (opens from disk) and
report.json.
"""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

from megatron_bar import cli
from megatron_bar.errors import BarError


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="tiny_study", help="a recipe with a study (default tiny_study)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="default: 1")
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"), help="default: runs/reproduce")
    parser.add_argument("--results", type=Path, help="folder of the report (default: OUT)")
    parser.add_argument(
        "--processes", type=int, default=2, help="each takes the next step that nobody works at (default 2)"
    )
    parser.add_argument("--set", dest="changes", nargs="+", action="extend", default=[], metavar="A.B=VALUE")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.processes < 1:
        raise BarError(f"--processes expected above 0, got {args.processes}")
    from megatron_bar.config import override
    from megatron_bar.recipes import load_recipe

    recipe = override(load_recipe(args.recipe), args.changes)
    if not recipe.more:
        raise BarError(
            f"--recipe {args.recipe}: expected one with a study, as tiny_study; examples/pretrain_bar.py "
            f"runs this one"
        )
    if not args.worker:
        share_out(args.processes)
    from megatron_bar.parallel.state import distributed
    from megatron_bar.run.collect import collect
    from megatron_bar.run.pipeline import Pipeline, run_all
    from megatron_bar.run.report_files import write_report

    pipelines = [
        Pipeline(
            override(recipe, [f"seed={seed}"]),
            args.out / f"seed{seed}",
            lambda line, s=seed: print(f"seed {s} {line}", flush=True),
        )
        for seed in dict.fromkeys(args.seeds)
    ]
    if args.worker:
        with distributed():
            run_all({pipeline: pipeline.select() for pipeline in pipelines})
        return
    results = args.results or args.out
    write_report(collect(pipelines[0].recipe, [pipeline.folder.out for pipeline in pipelines]), results)
    print((results / "report.md").read_text(encoding="utf-8"))


def share_out(processes: int) -> None:
    """Starts the workers and waits for them; ends with status 1 if one of them failed."""
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", *sys.argv[1:]]
    threads = {"OMP_NUM_THREADS": str(max(1, os.cpu_count() // processes))}
    workers = [subprocess.Popen(command, env=threads | os.environ) for _ in range(processes)]

    def hand_on(number: int, _) -> None:
        for worker in workers:
            worker.send_signal(number)

    signal.signal(signal.SIGTERM, hand_on)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the workers, too
    status = [worker.wait() for worker in workers]
    if any(status):
        sys.exit(max(status, key=abs) % 256)


if __name__ == "__main__":
    cli.run(main)
