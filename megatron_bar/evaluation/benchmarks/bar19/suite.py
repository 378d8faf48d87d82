"""The nineteen in seven categories (arXiv 2604.18473, section 5)."""

from megatron_bar.evaluation.benchmarks.bar19 import (
    agieval_english,
    alpaca_eval,
    bbh,
    bfcl,
    do_anything_now,
    gpqa,
    gsm8k,
    harmbench,
    humaneval_plus,
    ifeval,
    math,
    mbpp_plus,
    mmlu,
    popqa,
    simpleqa,
    trustllm_jailbreaktrigger,
    wildguardtest,
    wildjailbreak_benign,
    zebralogic,
)
from megatron_bar.evaluation.benchmarks.suite import Suite

FILES = (
    *(mmlu, popqa, simpleqa),
    *(bbh, gpqa, zebralogic, agieval_english),
    *(alpaca_eval, ifeval),
    *(math, gsm8k),
    *(humaneval_plus, mbpp_plus),
    bfcl,
    *(do_anything_now, harmbench, trustllm_jailbreaktrigger, wildguardtest, wildjailbreak_benign),
)
BAR19 = Suite(name="bar19", benchmarks=tuple(file.BENCHMARK for file in FILES))
