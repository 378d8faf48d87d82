"""Training steps of growing size, for bench_growth.py: fp32, hidden 512, 2 layers, all experts active, all but
the last one frozen."""

import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from statistics import median

from bench_moe import model_shape
from bench_step import Step, is_frozen
from growth import Quantity, Work
from side_by_side import alternate, figure, over

LAYERS, ROWS, LENGTH, DOCUMENT = 2, 4, 256, 256
PACKED = 4096
MANY, SHARE = 9, 0.55


def step_of(experts: int, *, rows: int = ROWS, length: int = LENGTH) -> Step:
    """A step of so many experts; 1: of the dense model, where everything trains."""
    shape = model_shape(experts if experts > 1 else 0, "float32", LAYERS)
    frozen = partial(is_frozen, experts) if experts > 1 else lambda _: False
    return Step(shape, frozen=frozen, rows=rows, length=length)


def experts(place: Path, sizes: tuple[int, ...]) -> list[Work]:
    return [Work(size=size, run=step_of(size)) for size in sizes]


def sequence(place: Path, sizes: tuple[int, ...]) -> list[Work]:
    step = step_of(2, rows=1, length=max(sizes))
    return [Work(size=size, run=step.part(slice(None), size, document=DOCUMENT)) for size in sizes]


def documents(place: Path, sizes: tuple[int, ...]) -> list[Work]:
    step = step_of(2, rows=1, length=PACKED)
    return [Work(size=n, run=step.part(slice(None), PACKED, document=PACKED // n)) for n in sizes]


def processes(place: Path, sizes: tuple[int, ...]) -> list[Work]:
    expected = step_of(2)()
    return [shared_out(size, expected) for size in sizes]


def shared_out(size: int, expected: float) -> Work:
    """The batch of `step_of`, whose loss is ``expected``, shared out to so many processes of one thread each:
    growth_rank.py."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    own = {
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(size),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(Path(__file__).with_name("growth_rank.py"))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    ranks = [
        subprocess.Popen(
            command, env=os.environ | own | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, **pipes
        )
        for rank in range(size)
    ]

    def losses() -> list[float]:
        for rank in ranks:
            rank.stdin.write("step\n")
        return [float(rank.stdout.readline()) for rank in ranks]

    def end() -> None:
        for rank in ranks:
            rank.stdin.close()  # which ends it
        for rank in ranks:
            rank.stdout.close()
            rank.wait()

    first = sum(losses()) / size
    assert abs(first - expected) <= 1e-4 * expected, ("not the same work", first, expected)
    return Work(size=size, run=losses, end=end)


def frozen_of_trained(rounds: int) -> None:
    """Prints what a step of `MANY` experts, all but one frozen, takes of as many dense steps in which
    everything trains, and of one step of as many experts in which everything trains."""
    everything = Step(model_shape(MANY, "float32", LAYERS), frozen=lambda _: False)
    ways = {"frozen": step_of(MANY), "all": everything, "dense": step_of(1)}
    seconds = alternate(ways, rounds)
    spent = ", ".join(f"{way} {1e3 * median(times):.0f} ms" for way, times in seconds.items())
    print(f"\n{MANY} experts: {spent}")
    of_dense = [ratio / MANY for ratio in over(seconds["frozen"], seconds["dense"])]
    name = f"growth_step_{MANY}_experts_of_{MANY}_dense_steps"
    figure(name, of_dense, SHARE, at_most=True)
    of_all = median(over(seconds["frozen"], seconds["all"]))
    # A frozen expert's products are forward and the input's gradient, a trained one's the weights' gradient too.
    limit = (2 * (MANY - 1) + 3) / (3 * MANY)
    print(
        f"of a step of {MANY} experts in which everything trains: {of_all:.2f}; the experts' products alone "
        f"are {limit:.2f}"
    )


QUANTITIES = (
    Quantity(
        name="experts",
        over="experts",
        sizes=(2, 3, 5, 9),
        make=experts,
        expected=1,
        why="each frozen one adds a forward and an input gradient; attention, head and the trained one stay",
    ),
    Quantity(
        name="sequence",
        over="tokens of a row",
        sizes=(512, 1024, 2048, 4096, 8192),
        make=sequence,
        expected=1,
        why=f"products grow with the tokens, attention ends with its document of {DOCUMENT}",
        rounds=4,
    ),
    Quantity(
        name="documents",
        over="documents in a row",
        sizes=(1, 4, 16, 64),
        make=documents,
        expected=0,
        why=f"products are those of {PACKED:,} tokens; only attention shrinks, by one over the documents, and "
        "soon is the smaller part",
        linear=False,
        rounds=3,
    ),
    Quantity(
        name="processes",
        over="processes",
        sizes=(1, 2),
        make=processes,
        expected=-1,
        why="the same batch shared out, a core each; what trains is summed over them, at any batch",
        linear=False,
    ),
)
