"""Says what this environment has of what a run needs, and what each missing thing costs.

Under torchrun it looks at the network and at what the machines have in common, too. On several nodes start it
by examples/cluster/doctor.sbatch of the checkout. Status 0 when nothing that is required is missing.
"""

import argparse
import os
from datetime import timedelta
from pathlib import Path

from megatron_bar.cli import Call, command_parser
from megatron_bar.errors import BarError

EXAMPLES = (
    "{program}",
    "{program} --out /shared/runs --engine /envs/vllm/bin/python",
    "torchrun --nproc-per-node 8 {script} --out /shared/runs",
)


def parse(call: Call) -> argparse.Namespace:
    parser = command_parser(call, __doc__, *EXAMPLES)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where runs are to be written: its file system is tried"
    )
    parser.add_argument(
        "--engine", type=Path, metavar="PYTHON", help="the Python that has vLLM (default: this one)"
    )
    return parser.parse_args(call.arguments)


def main(call: Call) -> None:
    args = parse(call)
    from megatron_bar.planner.doctor import folder, local, together

    rank = int(os.environ.get("RANK", 0))
    found = []

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
