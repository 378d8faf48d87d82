"""The file that an evaluation leaves: which model, which items, its answers and what each scored. One format
for all suites.

    {"format": "megatron_bar.evaluation/1", "suite": "toy", "model": "final", "model_hash": "...",
     "active_experts": 5, "limit": null, "tests": {"math": {"hash": "...", "items": 120}},
     "scores": {"math": [{"prompt", "answer", "score"}, ...]}}

``model_hash`` is the hash of the folder's receipts, a test's ``hash`` that of the items used, ``limit`` the
most items taken of a test; ``active_experts`` is null for a dense model, and a list where the layers differ.
More keys may follow: a pipeline adds ``experts`` and ``routing``, a suite of public benchmarks ``settings``,
``benchmarks`` (score, metric, items, harness, version), ``categories`` and ``overall``.
"""

import json
from pathlib import Path

from blake3 import blake3

from megatron_bar.errors import BarError
from megatron_bar.weights.card import Scores
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.hashes import folder_hash
from megatron_bar.weights.hf_config import Active
from megatron_bar.weights.json_file import read_object
from megatron_bar.weights.receipts import Proven
from megatron_bar.weights.whole import write_whole

FORMAT = "megatron_bar.evaluation/1"
_FIELDS = {"suite": (str,), "model": (str,), "model_hash": (str,), "tests": (dict,), "scores": (dict,)}
_OPTIONAL = {"active_experts": (int, list), "limit": (int,)}
"""Fields that may be null."""


def model_hash(folder: Path) -> str:
    """Returns `hashes.folder_hash` of the folder's receipts; without a manifest, of its tensors."""
    return folder_hash(Proven.open(Folder.open(folder)).units())


def hash_items(items: list) -> str:
    """Returns the BLAKE3 hash of items (JSON values) in their order."""
    text = json.dumps(items, sort_keys=True, ensure_ascii=False)
    return blake3(text.encode("utf-8", "surrogatepass")).hexdigest()


def new_results(
    folder: Path, suite: str, *, active_experts: Active | None = None, limit: int | None = None
) -> dict:
    """Returns results without any test yet. ``active_experts`` None: as many as the folder says."""
    config = Folder.open(folder).config
    active = active_experts or config.experts_per_layer or config.experts_per_token or None
    return {
        "format": FORMAT,
        "suite": suite,
        "model": folder.resolve().name,
        "model_hash": model_hash(folder),
        "active_experts": list(active) if isinstance(active, tuple) else active,
        "limit": limit,
        "tests": {},
        "scores": {},
    }


def write_results(path: Path, results: dict) -> None:
    """Writes a results file, which appears when it is whole. Raises BarError for what `read_results` would
    refuse, before anything is written."""
    _check(results, path)
    write_whole(path, json.dumps(results, indent=2) + "\n")


def read_results(path: Path) -> dict:
    """Reads a results file. Raises BarError for another format, a missing field, or a test whose items and
    scores differ in number."""
    results = read_object(path, expected="a results file (bar evaluate --out)")
    _check(results, path)
    return results


def mean_scores(results: dict) -> Scores:
    """Returns the mean score and the number of items of every test."""
    tests = results["scores"].items()
    return {name: (sum(item["score"] for item in items) / len(items), len(items)) for name, items in tests}


def scores_beside(folder: Path, digest: str) -> Scores | None:
    """Returns the scores in evaluation/NAME.json beside the folder NAME, where a run writes them; None where
    they are not there, or of a model with another hash than ``digest``."""
    folder = folder.resolve()
    path = folder.parent / "evaluation" / f"{folder.name}.json"
    results = read_results(path) if path.is_file() else None
    return mean_scores(results) if results is not None and results["model_hash"] == digest else None


def require_same_tests(one: dict, other: dict, *, shared: bool = False) -> None:
    """Raises BarError unless both have the same suite, limit and items; it names the first that differs.

    ``shared``: of the tests that both have.
    """
    where = f"results of {one['model']} and {other['model']} cannot be compared"
    for key in ("suite", "limit"):
        if one[key] != other[key]:
            raise BarError(f"{where}: {key} expected the same, got {one[key]} and {other[key]}")
    for name in {**one["tests"], **other["tests"]}:
        if shared and not (name in one["tests"] and name in other["tests"]):
            continue
        sides = [_items_of(results["tests"].get(name)) for results in (one, other)]
        if sides[0] != sides[1]:
            raise BarError(f"{where}: test {name} expected the same items, got {sides[0]} and {sides[1]}")


def require_of(results: dict, folder: Path) -> None:
    """Raises BarError if the results were not measured on the model in ``folder``."""
    expected = results["model_hash"]
    got = model_hash(folder)
    if expected != got:
        raise BarError(
            f"{folder}: expected the model that the results are of ({results['model']}, "
            f"hash {expected[:16]}), got another (hash {got[:16]})"
        )


def _items_of(test: dict | None) -> str:
    return "none" if test is None else f"{test['items']} (hash {test['hash'][:16]})"


def _check(results: dict, path: Path) -> None:
    if results.get("format") != FORMAT:
        raise BarError(f"{path}: format expected {FORMAT!r}, got {results.get('format')!r:.80}")
    for key, kinds in (_FIELDS | _OPTIONAL).items():
        value = results.get(key)
        may_be_null = key in _OPTIONAL and key in results
        wrong = not may_be_null if value is None else type(value) not in kinds
        if wrong:
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise BarError(f"{path}: {key} expected {expected}, got {value!r:.80}")
    tests = results["tests"]
    scores = results["scores"]
    if not tests or tests.keys() != scores.keys():
        expected = ", ".join(tests) or "(none)"
        raise BarError(f"{path}: scores expected of the tests {expected}, got {', '.join(scores) or 'none'}")
    for name, test in tests.items():
        _check_test(path, name, test, scores[name])


def _check_test(path: Path, name: str, test: dict, items: list[dict]) -> None:
    if not isinstance(test, dict) or type(test.get("hash")) is not str or type(test.get("items")) is not int:
        raise BarError(f"{path}: tests.{name} expected hash and items, got {test!r:.80}")
    if not isinstance(items, list) or len(items) != test["items"] or not items:
        got = len(items) if isinstance(items, list) else type(items).__name__
        raise BarError(f"{path}: scores.{name} expected {test['items']} items, at least one, got {got}")
    for number, item in enumerate(items):
        score = item.get("score") if isinstance(item, dict) else item
        if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
            raise BarError(f"{path}: scores.{name}[{number}] expected a score from 0 to 1, got {score!r:.80}")
