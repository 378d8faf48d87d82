"""lm-eval tasks of our own, graded by our verifiers, where lm-eval's run what the model wrote (HumanEval+,
MBPP+) or need another version of a package than the verifiers do (MATH: an older antlr).
"""

from megatron_bar.errors import BarError
from megatron_bar.evaluation.benchmarks import programs
from megatron_bar.verifiers import check_task, verify
from megatron_bar.verifiers.math import final_answer


def humaneval_plus(doc: dict, results: list[str]) -> dict[str, float]:
    """Grades an answer as lm-eval's ``process_results``; ``doc``: a row of the data, ``results``: the
    answer."""
    return {"pass_at_1": float(programs.humaneval_plus(doc, results[0]))}


def mbpp_plus(doc: dict, results: list[str]) -> dict[str, float]:
    """Grades an answer like `humaneval_plus`."""
    return {"pass_at_1": float(programs.mbpp_plus(doc, results[0]))}


def math(doc: dict, results: list[str]) -> dict[str, float]:
    """Grades an answer by the verifier of mathematics.

    Quirks of the data: a few solutions box their answer by fbox, and a few answers are nothing that the
    verifier can decide (a sum, say): those must be given as they are written.
    """
    truth = final_answer(doc["solution"].replace("\\fbox", "\\boxed"))
    try:
        check_task("math", truth, doc["problem"])
    except BarError:
        return {"math": float(final_answer(results[0]) == truth)}
    return {"math": verify("math", results[0], truth)}


def _task(name: str, dataset: str, question: str, grade, metric: str, **more) -> dict:
    return {
        "task": name,
        "dataset_path": dataset,
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": question,
        "doc_to_target": "",
        "process_results": grade,
        "generation_kwargs": {"until": [], "do_sample": False},
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True}],
        "num_fewshot": 0,
        "metadata": {"version": 1.0},
        **more,
    }


HUMANEVAL_PLUS = _task(
    "humaneval_plus_sandboxed",
    "evalplus/humanevalplus",
    "Complete this function, and answer with the whole program in one block of code.\n"
    "```python\n{{prompt}}\n```",
    humaneval_plus,
    "pass_at_1",
)
MBPP_PLUS = _task(
    "mbpp_plus_sandboxed",
    "evalplus/mbppplus",
    "{{prompt}} Answer with the whole program in one block of code. It should satisfy this assertion:\n"
    "```python\n{{test_list[0]}}\n```",
    mbpp_plus,
    "pass_at_1",
)
_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
MATH = tuple(
    _task(
        f"math_verified_{subject}",
        "EleutherAI/hendrycks_math",
        "{{problem}}\n\nPut the final answer within \\boxed{}.",
        math,
        "math",
        dataset_name=subject,
    )
    for subject in _SUBJECTS
)
