"""A training pass of the MoE layer on two processes that share the experts: ours against Megatron's
all-to-all path.

Shapes of bench_moe, 1,024 tokens a process, one thread each, gloo, the anchor frozen; alternated, medians.
Ours cuts every expert over the processes. For 2 experts the all-to-all path has whole ones, one on each
process, as Megatron lays them out, and so has ours in a third run: there the process of the anchor waits for
the other. 5 experts do not divide: both have theirs cut.
"""

import os
import subprocess
import sys
from functools import partial
from statistics import median

from bench_moe import TOKENS, alltoall, build, model_shape, ours
from side_by_side import alternate, figure, over

PAIRS, PROCESSES = 15, 2


def main() -> None:
    if "RANK" not in os.environ:
        command = [
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(PROCESSES),
            __file__,
        ]
        sys.exit(
            subprocess.run(
                [sys.executable, *command], env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
            ).returncode
        )
    import torch

    from megatron_bar.parallel import cpu
    from megatron_bar.parallel.state import ParallelConfig, distributed, is_rank_zero, set_layout

    class Whole(ParallelConfig):
        def expert_sizes(self, config):
            return self.expert, 1

    with distributed():
        for experts in (2, 5):
            for dtype in ("float32", "bfloat16"):
                shape = model_shape(experts, dtype)

                def layer(layout, shape=shape):
                    set_layout(layout, shape, seed=0)
                    return build(shape, layout)

                cut = layer(ParallelConfig(expert=PROCESSES))
                whole = layer(Whole(expert=PROCESSES)) if experts % PROCESSES == 0 else None
                x = torch.randn(
                    TOKENS,
                    1,
                    shape.hidden_size,
                    dtype=getattr(torch, dtype),
                    device=cpu.device(),
                    requires_grad=True,
                )
                ways = {"cut": partial(ours, cut, x), "alltoall": partial(alltoall, whole or cut, x)}
                if whole is not None:
                    ways["whole"] = partial(ours, whole, x)
                seconds = alternate(ways, PAIRS)
                if is_rank_zero():
                    print(
                        f"{experts} experts, {dtype}: "
                        + ", ".join(f"{n} {1e3 * median(s):.1f} ms" for n, s in seconds.items())
                    )
                    figure(
                        f"ep2_{experts}_experts_{dtype}_over_alltoall",
                        over(seconds["alltoall"], seconds["cut"]),
                        1,
                    )


if __name__ == "__main__":
    main()
