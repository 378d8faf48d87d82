"""BFCL's own checkers on cases from standard input, in a process of their own: run with bfcl-eval's folder in the
path. Prints a list of verdicts: true, false, or the name of what was raised."""

import json
import sys
import types
from collections import defaultdict

MODELS = types.ModuleType("bfcl_eval.constants.model_config")  # the real one imports every vendor's client
MODELS.MODEL_CONFIG_MAPPING = defaultdict(lambda: types.SimpleNamespace(underscore_to_dot=False))
sys.modules[MODELS.__name__] = MODELS

from bfcl_eval.constants.enums import Language  # noqa: E402
from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker  # noqa: E402
from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import multi_turn_checker  # noqa: E402


def verdict(number: int, case: dict) -> bool | str:
    row = case["row"]
    try:
        if "turns" in case:
            turns, truth = case["turns"], row["ground_truth"]
            checked = multi_turn_checker(turns, truth, row, row["category"], f"model{number}")
        else:
            calls = [{name: arguments} for name, arguments in case["calls"]]
            language = Language[case["language"].upper()]
            wanted, kind = row["ground_truth"], row["category"]
            checked = ast_checker(row["function"], calls, wanted, language, kind, "model")
    except Exception as error:  # noqa: BLE001  whatever it raises is its verdict
        return type(error).__name__
    return checked["valid"]


json.dump([verdict(number, case) for number, case in enumerate(json.load(sys.stdin))], sys.stdout)
