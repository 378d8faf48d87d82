"""lm-eval's equalities of minerva_math and hendrycks_math on (solution, answer) pairs from standard input, in a
process of their own, for they want an older antlr in the path. The answer is taken from the published places: the
last box, else the last $...$, else all of it. Prints a list of verdicts."""

import json
import sys

from lm_eval.tasks.hendrycks_math.utils import is_equiv as same_text
from lm_eval.tasks.minerva_math.utils import is_equiv as same_value
from lm_eval.tasks.minerva_math.utils import last_boxed_only_string, normalize_final_answer, remove_boxed


def verdict(solution: str, answer: str) -> bool:
    box = last_boxed_only_string(answer)
    dollars = [place for place, character in enumerate(answer) if character == "$"]
    if box is not None:
        found = remove_boxed(box)
    else:
        found = answer[dollars[-2] + 1 : dollars[-1]] if len(dollars) > 1 else answer
    found = normalize_final_answer(found)
    wanted = normalize_final_answer(remove_boxed(last_boxed_only_string(solution)))
    return bool(same_text(found, wanted) or same_value(found, wanted))


json.dump([verdict(*pair) for pair in json.load(sys.stdin)], sys.stdout)
