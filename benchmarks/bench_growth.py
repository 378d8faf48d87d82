"""How cost grows with the work: seconds at several sizes, and the exponents that fit them.

    python benchmarks/bench_growth.py [--only merge export] [--quick]

All sizes of a quantity are timed in turn, round by round; shown are medians, and how far the rounds lie apart
(from quartile to quartile). An exponent is the slope of log seconds over log size by least squares, in every
round; what should be linear may have 1.05 at most, over all sizes and between the two largest. A machine at
other work shows in the spread: a figure whose spread is larger than its distance to the target says "not
decided". At the end stands a table of them all with what theory says, and where the exponent changes: a cost
that is the same at any size bends it at the lower end.

steps          experts, tokens of a row, documents in a row, processes (growth_steps.py); frozen: a step of 9
               experts, all but one of them frozen, over nine dense steps in which everything trains
folders        branch, merge, export, resume, by bytes (growth_folders.py)
answers        the sampler by slots and by answer length, evaluation by items (growth_answers.py)
texts          preprocessing by rows, the report by tokens (growth_texts.py)

Some 10 minutes, and 4 GB of disk. ``--quick``: two sizes each, two rounds, to see that all runs; it says
nothing of growth and records no figure.
"""

import argparse
import gc
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import growth_answers
import growth_folders
import growth_steps
import growth_texts
from growth import SUMMARY, Quantity, grow, tell

from megatron_bar.parallel.state import distributed

QUANTITIES = {
    quantity.name: quantity
    for part in (growth_steps, growth_folders, growth_answers, growth_texts)
    for quantity in part.QUANTITIES
}
FROZEN = "frozen"
ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = (*QUANTITIES, FROZEN)
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names)
    )
    parser.add_argument("--quick", action="store_true", help="two sizes each, two rounds, no figure recorded")
    args = parser.parse_args()
    if args.quick:
        os.environ.pop("BENCH_FIGURES", None)
    with distributed():
        if FROZEN in args.only:
            growth_steps.frozen_of_trained(2 if args.quick else ROUNDS)
        chosen = [quantity for name, quantity in QUANTITIES.items() if name in args.only]
        rows = [measured(quick(q) if args.quick else q) for q in chosen]
    if rows:
        print("\n" + SUMMARY + "\n".join(rows))


def quick(quantity: Quantity) -> Quantity:
    """Too little to make a figure of."""
    return replace(quantity, sizes=quantity.sizes[:2], rounds=2, linear=False)


def measured(quantity: Quantity) -> str:
    """Makes the works, times them, and tells what was found; returns the row of the summary."""
    with tempfile.TemporaryDirectory() as place:
        works = quantity.make(Path(place), quantity.sizes)
        try:
            found = grow(quantity, works)
        finally:
            for work in works:
                work.end()
    del works
    gc.collect()  # models are circles of references
    return tell(quantity, found)


if __name__ == "__main__":
    main()
