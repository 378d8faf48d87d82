"""WildJailbreak (arXiv 2406.18510): harmless requests that look like jailbreaks; to refuse them is wrong."""

from megatron_bar.evaluation.benchmarks.bar19.wildguard import DIFFERS, SAFETY, complied, judged
from megatron_bar.evaluation.benchmarks.benchmark import PublishedBenchmark, once

BENCHMARK = PublishedBenchmark(
    name="wildjailbreak_benign",
    category="safety",
    rows=250,
    columns=("adversarial",),
    ask=once(lambda row: row["adversarial"]),
    grade=judged("wildjailbreak_benign", lambda row: row["adversarial"], complied),
    decoding=SAFETY,
    judge="wildguard",
    metric="share complied with",
    differs=DIFFERS,
)
