"""The toy's tests as the items of a published benchmark."""

from pathlib import Path

from megatron_bar.data.chat import ChatFormat
from megatron_bar.evaluation.benchmarks.benchmark import Decoding, Grade, PublishedBenchmark
from megatron_bar.evaluation.benchmarks.items import Items
from megatron_bar.evaluation.benchmarks.suite import TOY
from megatron_bar.evaluation.generative import read_tests


def toy_items(chats: ChatFormat, world: Path, *, each: int, new: int, positions: int) -> Items:
    """At most ``each`` of every test in ``world``, asked greedily for at most ``new`` tokens."""
    tests = read_tests(TOY.benchmarks, world, limit=each)
    rows = [row for test in tests.values() for _, row in test]
    decoding = Decoding(temperature=0.0, top_p=1.0, max_new_tokens=new)
    benchmark = PublishedBenchmark(
        name="toy",
        category="toy",
        rows=len(rows),
        columns=("messages",),
        ask=lambda row, answers: None if answers else row["messages"],
        grade=lambda row, answers, judge: Grade(score=0.0),
        decoding=decoding,
    )
    rows = [row | {"index": n} for n, row in enumerate(rows)]
    return Items(benchmark=benchmark, rows=rows, decoding=decoding, chats=chats, positions=positions)
