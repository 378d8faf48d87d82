"""The data of the published nineteen: of every benchmark, the rows of which public set are its file.

`bar prepare bar19` makes NAME.jsonl of them, with the set's own columns (docs/evaluate.md). Counts are those
of the published run's results or of the sets themselves. Nothing of a set is run: its rows are read as text.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from megatron_bar.data.hub import FromHub, HubSet
from megatron_bar.data.tables import table_rows
from megatron_bar.errors import BarError

AGIEVAL = "lsat-ar|lsat-lr|lsat-rc|logiqa-en|sat-math|sat-en|aqua-rat|gaokao-english"
"""AGIEval's tasks in English, as their files are called."""
BASELINE, GAMED = "alpaca_eval_gpt4_baseline.json", "df_gamed.csv"
BFCL_CATEGORIES = (
    r"simple|java|javascript|simple_(?:python|java|javascript)|multiple|parallel|parallel_multiple"
    r"|irrelevance|live_(?:simple|multiple|parallel|parallel_multiple|irrelevance|relevance)"
    r"|multi_turn_(?:base|miss_func|miss_param|long_context)"
)
BFCL_FILES = (
    rf"(?:.*/)?(?:(?:possible_answer/)?BFCL_v[34]_(?:{BFCL_CATEGORIES})\.json"
    r"|multi_turn_func_doc/\w+\.json|func_source_code/\w+\.py)"
)


def alpaca_eval(files: dict[str, Path]) -> Iterable[dict]:
    """Returns the baseline's answers, and where df_gamed.csv is there what controls their length."""
    from megatron_bar.evaluation.benchmarks.bar19.alpaca_eval import with_gamed

    if BASELINE not in files:
        raise BarError(f"tatsu-lab/alpaca_eval: expected {BASELINE}, got {', '.join(files)}")
    rows = [row for _, row in table_rows(files[BASELINE])]
    if GAMED not in files or not all(isinstance(row, dict) for row in rows):
        return rows
    try:
        return with_gamed(rows, (line for _, line in table_rows(files[GAMED])))
    except (LookupError, TypeError, ValueError) as error:
        if isinstance(error, BarError):
            raise
        raise BarError(
            f"{files[GAMED]}: expected index, preference, instruction_difficulty and std_delta_len of the "
            f"rows of {BASELINE}, got {type(error).__name__}: {error}"
        ) from None


def bfcl(files: dict[str, Path]) -> Iterator[dict]:
    """Yields the rows of BFCL's files, laid out as on the hub or as in the package bfcl-eval."""
    from megatron_bar.evaluation.benchmarks.bar19.bfcl.rows import rows

    with TemporaryDirectory() as folder:
        for name, path in files.items():
            in_package = re.search(r"(?:^|/)((?:data|eval_checker)/.*)", name)
            place = Path(folder, in_package[1] if in_package else f"data/{name}")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path.absolute())
        try:
            yield from rows(Path(folder))
        except (LookupError, TypeError, AttributeError) as error:
            raise BarError(
                f"gorilla-llm/Berkeley-Function-Calling-Leaderboard: expected the files of BFCL, "
                f"got others: {type(error).__name__}: {error}"
            ) from None


def _of(name: str, hub: HubSet, rows: int, columns: tuple[str, ...], licence: str, **more) -> FromHub:
    return FromHub(
        path=Path(f"{name}.jsonl"),
        hub=hub,
        convert="rows",
        rows=rows,
        columns=columns,
        licence=licence,
        **more,
    )


BENCHMARK_DATA = (
    _of(
        "mmlu",
        HubSet(id="cais/mmlu"),
        14_042,
        ("question", "subject", "choices", "answer"),
        "MIT",
        files="all/test*",
        note="all of its 57 subjects",
    ),
    _of(
        "popqa",
        HubSet(id="akariasai/PopQA", revision="098765c79ea10a2cb19c828324e33281b8336ec0"),
        14_267,
        ("question", "possible_answers"),
        "none given",
        files="test*",
    ),
    _of(
        "simpleqa",
        HubSet(id="lighteval/SimpleQA"),
        4_326,
        ("problem", "answer"),
        "MIT",
        files="*test*",
    ),
    _of(
        "bbh",
        HubSet(id="lukaemon/bbh", revision="7f6d1e32b1667e264ff58fee9e1b685bae899d62"),
        6_511,
        ("task", "input", "target"),
        "MIT",
        files="*/test*",
        pattern=r"(?P<task>\w+)/test.*\.parquet",
        note="the hub's own Parquet files of it, branch refs/convert/parquet",
    ),
    _of(
        "gpqa",
        HubSet(id="Idavidrein/gpqa", revision="633f5ee89ab8ad4522a9f850766b73f62147ffdd", gated=True),
        448,
        ("Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"),
        "CC-BY-4.0",
        files="gpqa_main*",
    ),
    _of(
        "zebralogic",
        HubSet(id="allenai/ZebraLogicBench-private", gated=True),
        1_000,
        ("id", "size", "puzzle", "solution"),
        "not known",
        files="grid_mode/test*",
        note="allenai/ZebraLogicBench, which everybody may read, has its puzzles with blank solutions",
    ),
    _of(
        "agieval_english",
        HubSet(id="RUCAIBox/agieval", revision="69d972a61ab98780f9b53563fc0bb91b835119a6"),
        2_646,
        ("task", "passage", "question", "options", "label"),
        "MIT",
        files="test/*",
        pattern=rf"test/(?P<task>{AGIEVAL})\.jsonl",
        note="the run read a copy of its own of microsoft/AGIEval, data/v1",
    ),
    _of(
        "alpaca_eval",
        HubSet(id="tatsu-lab/alpaca_eval", revision="17853a40d13d6685f232795138d844a92b4089c6"),
        805,
        ("instruction", "output"),
        "CC-BY-NC-4.0",
        pattern=f"{re.escape(BASELINE)}|{re.escape(GAMED)}",
        join=alpaca_eval,
        note="with what controls for the answers' length",
    ),
    _of(
        "ifeval",
        HubSet(id="HuggingFaceH4/ifeval"),
        541,
        ("key", "prompt", "instruction_id_list", "kwargs"),
        "Apache-2.0",
    ),
    _of(
        "math",
        HubSet(id="EleutherAI/hendrycks_math"),
        5_000,
        ("problem", "level", "type", "solution"),
        "MIT",
        files="*/test*",
    ),
    _of(
        "gsm8k",
        HubSet(id="openai/gsm8k"),
        1_319,
        ("question", "answer"),
        "MIT",
        files="main/test*",
    ),
    _of(
        "humaneval_plus",
        HubSet(id="evalplus/humanevalplus"),
        164,
        ("task_id", "prompt", "canonical_solution", "entry_point", "test"),
        "Apache-2.0",
        files="data/test*",
    ),
    _of(
        "mbpp_plus",
        HubSet(id="evalplus/mbppplus", revision="9a36f31e81d5e1670b68e6de8ef23da0c4e1abb5"),
        378,
        ("task_id", "code", "prompt", "test_imports", "test_list", "test"),
        "Apache-2.0",
        files="data/test*",
    ),
    _of(
        "bfcl",
        HubSet(id="gorilla-llm/Berkeley-Function-Calling-Leaderboard"),
        4_441,
        ("id", "category", "question", "function", "ground_truth"),
        "Apache-2.0",
        pattern=BFCL_FILES,
        join=bfcl,
        note="its 800 conversations are graded with the classes of the package bfcl-eval, unpacked in the "
        "place of the set below --from",
    ),
    _of(
        "do_anything_now",
        HubSet(id="allenai/tulu-3-do-anything-now-eval"),
        300,
        ("vanilla", "adversarial"),
        "not known",
    ),
    _of(
        "harmbench",
        HubSet(id="allenai/tulu-3-harmbench-eval"),
        320,
        ("Behavior", "FunctionalCategory", "SemanticCategory", "ContextString", "BehaviorID"),
        "MIT",
    ),
    _of(
        "trustllm_jailbreaktrigger",
        HubSet(id="allenai/tulu-3-trustllm-jailbreaktrigger-eval"),
        400,
        ("prompt", "source"),
        "not known",
    ),
    _of(
        "wildguardtest",
        HubSet(id="allenai/wildguardmix", gated=True),
        749,
        ("prompt", "prompt_harm_label", "response_harm_label"),
        "ODC-BY",
        files="*test*",
        column="prompt_harm_label",
        values=("harmful",),
        filled=("response_harm_label",),
        note="of 1,725 rows those whose request is labelled harmful and whose response is labelled",
    ),
    _of(
        "wildjailbreak_benign",
        HubSet(id="allenai/olmo-eval-wildjailbreak"),
        250,
        ("adversarial", "data_type"),
        "ODC-BY",
        column="data_type",
        values=("adversarial_benign",),
    ),
)
