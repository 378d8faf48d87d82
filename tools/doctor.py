"""Says what this environment has of what a run needs, and what each missing thing costs; under torchrun also of the network.

Exit status 0 when nothing that is required is missing.
"""

import argparse
import os
from datetime import timedelta
from pathlib import Path

from megatron_bar.cli import run
from megatron_bar.errors import BarError

EXAMPLE = """examples:
  python tools/doctor.py
  python tools/doctor.py --out /shared/runs --engine /envs/vllm/bin/python
  torchrun --nproc-per-node 8 tools/doctor.py --out /shared/runs        # and on several nodes: examples/cluster/doctor.sbatch"""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="DIR", help="where runs are to be written: its file system is tried")
    parser.add_argument("--engine", type=Path, metavar="PYTHON", help="the Python that has vLLM (default: this one)")
    return parser.parse_args()


def main() -> None:
    args = parse()
    from megatron_bar.planner.doctor import folder, local, together

    rank, found = int(os.environ.get("RANK", 0)), []

    def say(items) -> None:
        for item in items:
            found.append(item)
            if rank == 0:
                print(item.line, flush=True)

    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        say(local(args.engine))
        if args.out is not None:
            say(folder(args.out))
    if "RANK" in os.environ:
        from megatron_bar.parallel.state import distributed

        with distributed(timeout=timedelta(minutes=5)):
            say(together(list(found), args.out))
    missing = [item.name for item in found if item.required and not item.ok]
    if missing:
        raise BarError(f"required and missing: {', '.join(missing)}")


if __name__ == "__main__":
    run(main)
