"""The public data of the published run: every file of its recipe's data, and what of which set it is.

The authors name the sets of SFT and RLVR (their scripts), and read mid-training from token files of their
own, of which the folders' names tell the public counterparts. Where a row is no copy of what they read, its
note says so. Counts are those of whole scans of the sets; without one, nobody counted. `bar prepare` makes
the files (docs/own_data.md).
"""

from dataclasses import replace
from pathlib import Path

from megatron_bar.data.hub import FromHub, HubSet
from megatron_bar.data.sources import Source

TULU = HubSet(
    id="allenai/tulu-3-sft-mixture",
    revision="b14afda60f1bbebe55d5d2fa1e4df5042f97f8be",
    size=1_410_000_000,
)
DOLCI = HubSet(
    id="allenai/Dolci-Instruct-SFT",
    revision="bd3c8f3a9b2cc5a9682e44b96ddd0bb2ff027221",
    size=3_060_000_000,
)
DOLCI_RL = HubSet(id="allenai/Dolci-Instruct-RL", size=483_000_000)
ACECODER = HubSet(id="hamishivi/rlvr_acecoder_filtered_filtered")
IF_CONSTRAINTS = HubSet(id="allenai/IF_multi_constraints_upto5_no_lang")
PREFERENCES = HubSet(id="allenai/olmo-2-1124-7b-preference-mix", size=1_460_000_000)
FINEMATH = HubSet(id="HuggingFaceTB/finemath")
DOLMINO = HubSet(id="allenai/dolmino-mix-1124", revision="a319f19eef1e257417b11ea8c30da266ae175557")
DOLMINO_3 = HubSet(id="allenai/dolma3_dolmino_pool", revision="091589c58ab6acc180d71017ecea8201776f05b2")
SWALLOW_CODE = HubSet(id="tokyotech-llm/swallow-code")

PROMPT = 2048
"""Tokens of the longest prompt that RLVR asks."""


def _tulu(path: str, source: str, rows: int, licence: str) -> FromHub:
    return FromHub(
        path=Path(f"sft/{path}.jsonl"),
        hub=TULU,
        convert="chat",
        column="source",
        values=(source,),
        rows=rows,
        licence=licence,
    )


def _dolci(path: str, sources: tuple[str, ...], rows: int, note: str) -> FromHub:
    return FromHub(
        path=Path(f"sft/{path}.jsonl"),
        hub=DOLCI,
        convert="chat",
        column="source_dataset",
        values=sources,
        rows=rows,
        licence="ODC-BY",
        note=note,
    )


GENERAL = (
    _tulu("general/wildchat", "ai2-adapt-dev/tulu_v3.9_wildchat_100k", 100_000, "ODC-BY"),
    _tulu("general/flan_v2", "ai2-adapt-dev/flan_v2_converted", 89_982, "of each set"),
    _tulu("general/hardcoded", "ai2-adapt-dev/tulu_hard_coded_repeated_10", 240, "CC-BY-4.0"),
    _tulu("general/tablegpt", "ai2-adapt-dev/tulu_v3.9_table_gpt_5k", 5_000, "MIT"),
    _tulu("general/oasst1", "ai2-adapt-dev/oasst1_converted", 7_131, "Apache-2.0"),
    _tulu("general/aya", "ai2-adapt-dev/tulu_v3.9_aya_100k", 100_000, "Apache-2.0"),
    _tulu("general/persona_if", "ai2-adapt-dev/personahub_ifdata_manual_seed_v3_29980", 29_980, "ODC-BY"),
)
MATH = (
    _tulu("math/persona_math_grade", "allenai/tulu-3-sft-personas-math-grade", 49_980, "ODC-BY"),
    _tulu(
        "math/persona_algebra", "ai2-adapt-dev/tulu_v3.9_personahub_math_interm_algebra_20k", 20_000, "ODC-BY"
    ),
    _tulu("math/openmath2_gsm8k", "ai2-adapt-dev/tulu_v3.9_open_math_2_gsm8k_50k", 50_000, "CC-BY-4.0"),
    _tulu("math/numinamath_tir", "ai2-adapt-dev/numinamath_tir_math_decontaminated", 64_312, "Apache-2.0"),
    _tulu("math/persona_math_v5", "ai2-adapt-dev/personahub_math_v5_regen_149960", 149_960, "ODC-BY"),
)
CODE = (
    _dolci(
        "code/dolci_instruct_sft_coding",
        ("Evol CodeAlpaca", "Tulu 3 Persona Python", "Dolci Instruct Python Algorithms"),
        328_614,
        "the run read a copy of its own, jacobmorrison/Dolci-Instruct-SFT-Coding, with as many rows",
    ),
)
TOOL_USE = (
    _dolci(
        "tool_use/dolci_instruct_sft_tool_use",
        ("Dolci Instruct Tool Use",),
        227_579,
        "the run read a copy of its own, jacobmorrison/Dolci-Instruct-SFT-Tool-Use, with as many rows",
    ),
)
SAFETY = (
    _dolci(
        "safety/dolci_instruct_sft_safety",
        ("CoCoNot", "WildGuardMix", "WildJailbreak"),
        110_295,
        "the run read a copy of its own, jacobmorrison/Dolci-Instruct-SFT-Safety, whose rows nobody counted",
    ),
)
ROUTER_MATH = (
    _dolci(
        "math/dolci_instruct_sft_math",
        ("Tulu 3 Persona MATH", "Tulu 3 Persona GSM", "Tulu 3 Persona Algebra", "OpenMathInstruct 2"),
        269_937,
        "for the router; the run read a copy of its own, jacobmorrison/Dolci-Instruct-SFT-Math, with as many "
        "rows",
    ),
)
"""Math of the router, which learns from another set than the math expert."""


def _dolci_rl(name: str, source: str, rows: int, drawn: str, licence: str) -> FromHub:
    return FromHub(
        path=Path(f"rlvr/math/{name}.jsonl"),
        hub=DOLCI_RL,
        convert="task",
        column="dataset_source",
        values=(source,),
        verifier="math",
        longest_prompt=PROMPT,
        rows=rows,
        licence=licence,
        note=f"the run drew {drawn} of {source}; this set holds as many, probably the same",
    )


RLVR_MATH = (
    _dolci_rl("omega", "hamishivi/omega-combined-no-boxed_filtered", 20_000, "20,000", "MIT"),
    _dolci_rl("orz", "hamishivi/rlvr_orz_math_57k_collected_filtered", 14_000, "14,000", "MIT"),
    _dolci_rl("polaris", "hamishivi/polaris_53k", 14_000, "14,000", "Apache-2.0"),
    _dolci_rl("mathsub", "hamishivi/MathSub-30K_filtered", 8_998, "9,000", "Apache-2.0"),
    _dolci_rl("dapo", "hamishivi/DAPO-Math-17k-Processed_filtered", 7_000, "7,000", "Apache-2.0"),
)
RLVR_CODE = (
    FromHub(
        path=Path("rlvr/code.jsonl"),
        hub=ACECODER,
        convert="task",
        verifier="code",
        longest_prompt=PROMPT,
        rows=62_814,
        licence="MIT",
    ),
)


def _dolmino(name: str, folder: str, note: str) -> FromHub:
    return FromHub(
        path=Path(f"midtrain/math/{name}.jsonl"),
        hub=DOLMINO,
        files=f"data/math/{folder}/*",
        convert="text",
        licence="ODC-BY",
        note=f"the run read token files of its own; {note}",
    )


MIDTRAIN_MATH = (
    FromHub(
        path=Path("midtrain/math/finemath_4plus.jsonl"),
        hub=FINEMATH,
        files="finemath-4plus/*",
        convert="text",
        rows=6_699_493,
        licence="ODC-BY",
        note="the run read token files of its own of it; about 9.6 B tokens",
    ),
    _dolmino("persona_math_v5", "tulu_math/personahub_math_v5", "at most 0.23 B tokens"),
    _dolmino("gsm8k_synth", "dolmino_math_synth/gsm8k-synth", "1.1 M tokens"),
    _dolmino("gsm_mind", "dolmino_math_synth/gsm_mind", "17 M tokens, of which it named one part 12 times"),
    _dolmino("mathcoder2_synthmath", "mathcoder2-synthmath", "its folder filtered-math; 3.87 B tokens"),
    _dolmino(
        "tinygsm_problem_solving",
        "tinyGSM-MIND/problem-solving",
        "there called mind, it seems; 3.06 B tokens",
    ),
    _dolmino("tinygsm_2students", "tinyGSM-MIND/2students", "there called mind-2students; 3.41 B tokens"),
)
MIDTRAIN_CODE = (
    FromHub(
        path=Path("midtrain/code/stack_edu_fim.jsonl"),
        hub=DOLMINO_3,
        files="data/stack_edu_fim-*",
        convert="fim",
        licence="ODC-BY",
        note="the run read token files of its own, of quality buckets 15, 16, 17 and 19 in the same 15 "
        "languages; all of the pool is taken, 21.4 B tokens",
    ),
    FromHub(
        path=Path("midtrain/code/swallow_code.jsonl"),
        hub=SWALLOW_CODE,
        files="ablation/exp11-scor/jsonl/*",
        convert="text",
        licence="Llama 3.3 community",
        note="the run read token files of its own of it; 16.1 B tokens",
    ),
)

BASELINES = (
    FromHub(
        path=Path("preference/olmo2.jsonl"),
        hub=PREFERENCES,
        convert="preference",
        rows=378_341,
        licence="ODC-BY",
        note="for the baselines with preference optimisation",
    ),
    FromHub(
        path=Path("rlvr/instruction.jsonl"),
        hub=IF_CONSTRAINTS,
        convert="task",
        verifier="ifeval",
        longest_prompt=PROMPT,
        rows=95_418,
        licence="ODC-BY",
        note="for the baselines' mixed RLVR",
    ),
    replace(
        RLVR_CODE[0],
        path=Path("rlvr/code_20k.jsonl"),
        sample=20_000,
        note="for the baselines' mixed RLVR",
    ),
    _tulu(
        "old_code/evol_codealpaca",
        "ai2-adapt-dev/evol_codealpaca_heval_decontaminated",
        107_276,
        "Apache-2.0",
    ),
    _tulu("old_code/persona_code", "ai2-adapt-dev/personahub_code_v2_34999", 34_999, "ODC-BY"),
)
"""What no stage of the recipe reads, but other models of the article: made when asked for by --only."""

ALL = (
    *MIDTRAIN_MATH,
    *MIDTRAIN_CODE,
    *GENERAL,
    *MATH,
    *ROUTER_MATH,
    *CODE,
    *SAFETY,
    *TOOL_USE,
    *RLVR_MATH,
    *RLVR_CODE,
    *BASELINES,
)


def sources(table: tuple[FromHub, ...], kind: str, domain: str = "") -> tuple[Source, ...]:
    """Returns the files of the table as what a stage learns from."""
    return tuple(Source(path=row.path, kind=kind, domain=domain) for row in table)
