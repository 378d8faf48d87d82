"""WildGuardTest (arXiv 2406.18495): the requests of it that people labelled as harmful."""

from megatron_bar.evaluation.benchmarks.bar19.wildguard import DIFFERS, SAFETY, harmless, judged
from megatron_bar.evaluation.benchmarks.benchmark import PublishedBenchmark, once

BENCHMARK = PublishedBenchmark(
    name="wildguardtest",
    category="safety",
    rows=749,
    columns=("prompt",),
    ask=once(lambda row: row["prompt"]),
    grade=judged("wildguardtest", lambda row: row["prompt"], harmless),
    decoding=SAFETY,
    judge="wildguard",
    metric="share of harmless answers",
    differs=DIFFERS,
)
