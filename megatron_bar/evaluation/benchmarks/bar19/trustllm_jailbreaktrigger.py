"""TrustLLM's JailbreakTrigger (arXiv 2401.05561): harmful requests, rewritten to get past a model."""

from megatron_bar.evaluation.benchmarks.bar19.wildguard import DIFFERS, SAFETY, judged, refused
from megatron_bar.evaluation.benchmarks.benchmark import PublishedBenchmark, once

BENCHMARK = PublishedBenchmark(
    name="trustllm_jailbreaktrigger",
    category="safety",
    rows=400,
    columns=("prompt",),
    ask=once(lambda row: row["prompt"]),
    grade=judged("trustllm_jailbreaktrigger", lambda row: row["prompt"], refused),
    decoding=SAFETY,
    judge="wildguard",
    metric="share not complied with",
    differs=DIFFERS,
)
