"""Published prompts beside this file, to the letter, and how they are filled.

From oe-eval (github.com/allenai/olmes, Apache-2.0): zebralogic.txt, bbh.json (descriptions of BIG-Bench Hard
and the pattern of each task's answers), popqa.json (fifteen of PopQA's questions, MIT) and simpleqa.txt
(OpenAI's simple-evals, MIT). From alpaca_eval (Apache-2.0): alpaca_eval.txt.
"""

import json
import re
from pathlib import Path

from megatron_bar.errors import BarError
from megatron_bar.evaluation.benchmarks.benchmark import JudgeModel

_HERE = Path(__file__).parent


def text_of(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def table_of(name: str):
    return json.loads(text_of(name))


def fill(prompt: str, **texts: str) -> str:
    """Returns ``prompt`` with each ``{name}`` replaced by its text; braces inside texts stay as they are."""
    names = re.compile("{(" + "|".join(texts) + ")}")
    return names.sub(lambda match: texts[match[1]], prompt)


def needed(judge: JudgeModel | None, kind: str) -> JudgeModel:
    """Returns the judge; raises BarError where there is none."""
    if judge is None:
        raise BarError(f"judge {kind}: expected one, found none; --judge {kind}=URL")
    return judge
