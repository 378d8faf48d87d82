"""HumanEval+ and MBPP+ (EvalPlus, Liu et al. 2023, arXiv 2305.01210), graded in the sandbox of the code
verifier.

An item passes when the answer's program and then all of EvalPlus's tests run to their end. As in EvalPlus the
tests run in the program's own interpreter; a secret printed after the last of them keeps an early exit from
counting as passed. The sandbox holds the standard library alone: the tests' numpy is stood in for by the
little of it that they use, and an answer that needs the real one fails.
"""

import secrets

from megatron_bar.verifiers.code import program_of
from megatron_bar.verifiers.sandbox import sandbox

LIMITS = sandbox.Limits(wall_s=60.0, cpu_s=30, memory_bytes=2 << 30)
"""Limits of one item: EvalPlus has hundreds of inputs to it, large ones among them, and allows 4 GiB."""
NUMPY = """
def _stand_in():
    import sys, types
    def close(one, other, rtol, atol):
        if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
            return len(one) == len(other) and all(close(a, b, rtol, atol) for a, b in zip(one, other))
        if isinstance(one, (list, tuple)) or isinstance(other, (list, tuple)):
            many, single = (one, other) if isinstance(one, (list, tuple)) else (other, one)
            return all(close(a, single, rtol, atol) for a in many)
        return one == other or abs(one - other) <= atol + rtol * abs(other) < float("inf")
    numpy = types.ModuleType("numpy")
    numpy.allclose = lambda a, b, rtol=1e-05, atol=1e-08: bool(close(a, b, rtol, atol))
    numpy.ndarray = numpy.float64 = numpy.float32 = type("ndarray", (), {})
    sys.modules["numpy"] = numpy
_stand_in()
"""


def passes(program: str, tests: str) -> bool:
    """Returns whether ``program`` and then ``tests`` run to their end in the sandbox."""
    secret = secrets.token_hex(16)
    script = f"{NUMPY}\n{program}\n{tests}\nprint()\nprint({secret!r})\n"
    outcome = sandbox.run(script, limits=LIMITS)
    ended = not outcome.stopped and outcome.exit_code == 0
    return ended and outcome.stdout.rstrip().endswith(b"\n" + secret.encode())


def humaneval_plus(doc: dict, answer: str) -> bool:
    """Returns whether an answer to ``doc``, a row of evalplus/humanevalplus, passes its tests."""
    prompt = doc["prompt"]
    name = doc["entry_point"]
    given = prompt[: prompt.index(f"def {name}(")]  # imports and helpers, which an answer need not repeat
    return passes(f"{given}\n{program_of(answer)}", f"{doc['test']}\ncheck({name})")


def mbpp_plus(doc: dict, answer: str) -> bool:
    """Returns whether an answer to ``doc``, a row of evalplus/mbppplus, passes its tests."""
    return passes(program_of(answer), doc["test"])
