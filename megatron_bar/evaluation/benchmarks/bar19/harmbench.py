"""HarmBench (arXiv 2402.04249): harmful requests, of which some need a text that stands before them."""

from megatron_bar.evaluation.benchmarks.bar19.wildguard import DIFFERS, SAFETY, harmless, judged
from megatron_bar.evaluation.benchmarks.benchmark import PublishedBenchmark, once


def request(row: dict) -> str:
    if row["FunctionalCategory"] != "contextual":
        return row["Behavior"]
    return f"{row['ContextString']}\n\n---\n\n{row['Behavior']}"


BENCHMARK = PublishedBenchmark(
    name="harmbench",
    category="safety",
    rows=320,
    columns=("Behavior", "FunctionalCategory", "ContextString"),
    ask=once(request),
    grade=judged("harmbench", request, harmless),
    decoding=SAFETY,
    judge="wildguard",
    metric="share of harmless answers",
    differs=DIFFERS,
)
