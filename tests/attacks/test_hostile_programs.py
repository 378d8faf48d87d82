"""Model-written programs against the machine and the run (programs.py): every call that they try is refused, and
whatever they waste is bounded. ``pytest -s`` prints the figures."""

import os
import platform
import resource
import time
from pathlib import Path

import pytest
from programs import CALLS, HONEST, LIBC, WASTERS

from megatron_bar.verifiers import verify_many
from megatron_bar.verifiers.code import LIMITS
from megatron_bar.verifiers.sandbox import calls, sandbox

TASK = ["assert attack(1) == 42"]
STDIN = {"stdin_tests": [[str(number), str(number + 41)] for number in range(20)]}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the calls have the numbers of x86_64")
@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_refused(name):
    outcome = sandbox.run(f"{LIBC}\nattempt(lambda: {CALLS[name]})\nprint('done')", limits=LIMITS)
    assert outcome.stdout in (b"done\n", b""), outcome
    assert b"got through" not in outcome.stdout


def test_calls_that_are_allowed_get_through():
    """The attempts would say so if the kernel did what they ask."""
    acts = ["call(39)", "__import__('fcntl').fcntl(0, 1)", "os.kill(os.getpid(), 0)", "os.pipe()"]
    for act in acts:
        assert b"got through" in sandbox.run(f"{LIBC}\nattempt(lambda: {act})").stdout


@pytest.mark.skipif(platform.machine() != "x86_64", reason="counts calls of x86_64")
def test_no_call_is_answered_that_is_not_listed():
    """Every number is tried, with arguments that are wrong, so that none does anything: refused calls say
    EPERM whatever their arguments. The kernel keeps two for its own probes, outside of filters: they end a
    program that calls them."""
    listed = {int(entry.split()[1]) for entry in calls.ALLOWED.split(",") if entry.split()[1] != "-"}
    by_argument = {numbers[0] for *numbers, _ in calls.BY_ARGUMENT.values()}
    told = {numbers[0] for *numbers, _ in calls.REFUSED_AS.values()}
    program = f"""{LIBC}
answered = []
for number in range(0, 600):
    if number in {sorted(listed | by_argument | told | {335, 336})!r}: continue
    try:
        call(number, -1, -1, -1, -1, -1, -1)
        answered.append(number)
    except OSError as error:
        if error.errno != 1: answered.append(number)
print(answered)
"""
    assert sandbox.run(program).stdout == b"[]\n"


@pytest.mark.parametrize("name", WASTERS)
def test_what_a_program_wastes_is_bounded(name):
    """The processor time of the whole tree, and what the kernel keeps afterwards."""
    kept = slab()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    body = WASTERS[name].replace("\n", "\n    ")
    whole = f"import os, sys, time\ndef attack(x):\n    {body}\n    return 0"
    scores = verify_many(
        [("code", whole, TASK), ("code", f"import os, sys, time\n{WASTERS[name]}\nprint(0)", STDIN)]
    )
    wall = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 2
    left = (slab() - kept) / 2**20
    print(f"\n{name}: {used:.2f} s of processor time and {wall / 2:.2f} s each, {left:.0f} MiB left", end=" ")
    assert scores == [0, 0]
    assert left < 32
    assert processes() == []


def slab() -> int:
    """Bytes of the kernel's own memory."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["Slab"].split()[0]) * 1024


def processes() -> list[str]:
    mark = f"\0{os.getpid()}\0".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if b"import jail" in line and mark in line:
            found.append(folder.name)
    return found


def test_right_answers_beside_hostile_ones_keep_their_scores():
    hogs = [
        f"import os, sys, time\n{WASTERS[name]}"
        for name in ("threads that work", "memory", "signals unheard")
    ]
    right = "def attack(x): return sum(range(10 ** 6)) * 0 + 42"
    answers = [*hogs, right] * 6
    scores = verify_many([("code", answer, TASK) for answer in answers])
    assert scores == [0, 0, 0, 1] * 6


def test_a_program_cannot_speak_for_the_launcher():
    """What is told on the status pipe decides between a score and an error of the machine."""
    program = f"{LIBC}\nfor fd in range(3, 1024):\n    try: os.write(fd, b'refused: by the program')\n    except OSError: pass"
    assert sandbox.run(program).exit_code == 0
    assert verify_many([("code", program, TASK), ("code", program, STDIN)]) == [0, 0]


@pytest.mark.parametrize("name", HONEST)
def test_honest_programs_do_not_notice(name):
    program, wanted = HONEST[name]
    outcome = sandbox.run(program, stdin=b"1 2", limits=LIMITS)
    assert (outcome.stdout.decode(), outcome.exit_code) == (wanted, 0), outcome.stderr


def test_as_much_is_printed_as_is_expected():
    wanted = "x" * (3 << 20)
    assert verify_many([("code", f"print('x' * {len(wanted)})", {"stdin_tests": [["", wanted]]})]) == [1]
    assert verify_many([("code", f"print('x' * {3 * len(wanted)})", {"stdin_tests": [["", wanted]]})]) == [0]
