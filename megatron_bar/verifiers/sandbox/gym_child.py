"""The child's half of the reasoning-gym verifier: its data sets' own scorers, in forks that the kernel ends
(fork_server.py)."""

import functools

from fork_server import serve
from reasoning_gym import get_score_answer_fn

scorer = functools.cache(get_score_answer_fn)
"""Some data sets take a second to load."""


def prepare(dataset: str, answer: str, entry: dict):
    score = scorer(dataset)
    return lambda: float(score(answer, entry))


def main():
    serve(prepare)
