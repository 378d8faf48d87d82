"""lm-eval tasks of our own, graded by our verifiers, where lm-eval's run what the model wrote (HumanEval+,
MBPP+) or need another version of a package than the verifiers do (MATH: an older antlr).
"""

from megatron_bar.evaluation.benchmarks.bar19 import humaneval_plus, math, mbpp_plus


def humaneval_plus_task(doc: dict, results: list[str]) -> dict[str, float]:
    """Grades an answer as lm-eval's ``process_results``; ``doc``: a row of the data, ``results``: the
    answer."""
    return {"pass_at_1": float(humaneval_plus.passes(doc, results[0]))}


def mbpp_plus_task(doc: dict, results: list[str]) -> dict[str, float]:
    """Grades an answer like `humaneval_plus_task`."""
    return {"pass_at_1": float(mbpp_plus.passes(doc, results[0]))}


def math_task(doc: dict, results: list[str]) -> dict[str, float]:
    """Grades an answer by the verifier of mathematics, like `humaneval_plus_task`."""
    return {"math": float(math.right(doc, results[0]))}


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
    humaneval_plus_task,
    "pass_at_1",
)
MBPP_PLUS = _task(
    "mbpp_plus_sandboxed",
    "evalplus/mbppplus",
    "{{prompt}} Answer with the whole program in one block of code. It should satisfy this assertion:\n"
    "```python\n{{test_list[0]}}\n```",
    mbpp_plus_task,
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
        math_task,
        "math",
        dataset_name=subject,
    )
    for subject in _SUBJECTS
)
