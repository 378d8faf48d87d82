"""One rank of the training step that bench_growth.py takes on several processes: a line in, a step of its rows,
its loss out."""

import sys

import torch.distributed as dist
from growth_steps import LENGTH, ROWS, step_of

from megatron_bar.parallel.state import distributed


def main() -> None:
    with distributed():
        mine = ROWS // dist.get_world_size()
        rows = slice(mine * dist.get_rank(), mine * (dist.get_rank() + 1))
        step = step_of(2).part(rows, LENGTH, document=LENGTH)
        for _ in sys.stdin:
            print(step(), flush=True)


if __name__ == "__main__":
    main()
