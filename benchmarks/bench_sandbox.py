"""What isolating a model-written program costs: start and end of an empty one, by the clock and in processor
time."""

import resource
import time
from statistics import median

from side_by_side import figure

from megatron_bar.verifiers.sandbox import sandbox

RUNS = 50


def main() -> None:
    sandbox.run("pass")
    walls = []
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(RUNS):
        began = time.perf_counter()
        sandbox.run("pass")
        walls.append(time.perf_counter() - began)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / RUNS
    print(f"sandbox: processor time of an empty program {1000 * spent:.1f} ms")
    figure("sandbox_start_median_ms", 1000 * median(walls), 50, at_most=True)


if __name__ == "__main__":
    main()
