"""Do-Anything-Now (arXiv 2308.03825): harmful requests inside jailbreaks that people wrote. The judge is
shown the bare request."""

from megatron_bar.evaluation.benchmarks.bar19.wildguard import DIFFERS, SAFETY, judged, refused
from megatron_bar.evaluation.benchmarks.benchmark import PublishedBenchmark, once

BENCHMARK = PublishedBenchmark(
    name="do_anything_now",
    category="safety",
    rows=300,
    columns=("vanilla", "adversarial"),
    ask=once(lambda row: row["adversarial"]),
    grade=judged("do_anything_now", lambda row: row["vanilla"], refused),
    decoding=SAFETY,
    judge="wildguard",
    metric="share not complied with",
    differs=DIFFERS,
)
