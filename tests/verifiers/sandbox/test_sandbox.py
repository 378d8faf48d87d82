"""Programs that attack the grader or the machine: none is rewarded, none escapes, none leaves a process.

An escape returns "escaped" when it got through and the truth expects just that, so that a score of 0 is the
proof. The harmless ones are run without the sandbox too, and attacks on a judge in one process with the tests,
where they must get through: an attack that cannot succeed proves nothing.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from judge_attacks import ATTACKS, GREEDY, TARGETS
from sandbox_attacks import CHEATS, ESCAPES, RUDE

from megatron_bar.verifiers import verify, verify_many
from megatron_bar.verifiers.code import NUMPY
from megatron_bar.verifiers.sandbox import sandbox

REPOSITORY = Path(__file__).parents[3]
ESCAPED = {"function": "attack", "tests": [[[], "escaped"]]}
ONE_WILL_DO = {
    "function": "attack",
    "tests": [[[1], 42], [[2], "token-4711"], [[3], [1, "two"]]],
    "pass_fraction": 0.01,
}


@pytest.mark.parametrize("name", CHEATS)
def test_cheats_earn_nothing(name):
    assert verify("code", CHEATS[name], ONE_WILL_DO) == 0
    assert leftovers() == []


def test_frame_walk_would_find_what_is_there():
    """The same search succeeds once the value is among another test's arguments: so it looks where values
    are."""
    truth = {"function": "attack", "tests": [[["token-4711"], "token-4711"], [[0], "token-4711"]]}
    assert verify("code", CHEATS["frame walk"], truth) == 1


@pytest.fixture
def world(tmp_path):
    """A listening server, a secret file and a secret in the environment; gives text with their places filled
    in."""
    secret = tmp_path / "secret.txt"
    secret.write_text("token")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract:
        port = server.getsockname()[1]
        abstract.bind(f"\0bar-test-{port}")
        abstract.listen()
        os.environ["BAR_TEST_TOKEN"] = "token"
        yield (
            lambda code: (
                code.replace("PORT", str(port))
                .replace("SECRET", str(secret))
                .replace("TRAINER", str(os.getpid()))
            )
        )
        del os.environ["BAR_TEST_TOKEN"]


@pytest.mark.parametrize("name", ESCAPES)
def test_escapes(name, world, tmp_path):
    code = world(ESCAPES[name])
    command = [sys.executable, "-c", code + "\nprint(attack())"]
    control = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=20)
    assert control.stdout.strip() == "escaped", control.stderr
    assert verify("code", code, ESCAPED) == 0
    assert leftovers() == []


@pytest.mark.parametrize("name", RUDE)
def test_rude_escapes(name):
    bystander = subprocess.Popen(["sleep", "60"])
    assert verify("code", RUDE[name], ESCAPED) == 0
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()
    assert leftovers() == []


def test_ctypes_attack_was_made_and_held():
    outcome = sandbox.run(RUDE["ctypes"] + "\nprint(attack())")
    assert outcome.stdout == b"held\n", outcome.stderr


PROCESSES = """
import ctypes, os, platform, subprocess
libc = ctypes.CDLL(None, use_errno=True)
clone = 56 if platform.machine() == "x86_64" else 220
stack = ctypes.create_string_buffer(1 << 16)
arguments = (ctypes.c_uint64 * 8)()
tries = {
    "fork": os.fork, "forkpty": os.forkpty, "libc": libc.fork, "vfork": lambda: libc.syscall(58),
    "clone": lambda: libc.syscall(clone, 17, 0, 0, 0, 0),
    "clone a thread's memory": lambda: libc.syscall(clone, 0x100 | 17, ctypes.addressof(stack) + (1 << 15), 0, 0, 0),
    "clone3": lambda: libc.syscall(435, arguments, 64),
    "spawn": lambda: os.posix_spawn("/bin/true", ["true"], {}),
    "subprocess": lambda: subprocess.run(["/bin/true"]),
}
for name, start in tries.items():
    try:
        if start() >= 0:
            os.write(1, name.encode())
    except OSError:
        pass
print("tried")
"""
SHORT = sandbox.Limits(wall_s=0.7, cpu_s=1)


def test_no_program_starts_another():
    outcome = sandbox.run(PROCESSES)
    assert (outcome.exit_code, outcome.stdout) == (0, b"tried\n"), outcome.stderr
    assert leftovers() == []


DEAF = """
import os, signal, time
for number in range(1, 32):
    if number not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD): signal.signal(number, signal.SIG_IGN)
"""


@pytest.mark.parametrize(
    "code, stopped",
    [
        (DEAF + "while True: pass", "time"),
        (DEAF + "for fd in (0, 1, 2): os.close(fd)\ntime.sleep(600)", "time"),
        ("while True: print('x' * 999)", "output"),
        ("import sys\nwhile True: print('x' * 999, file=sys.stderr)", "output"),
        ("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", "time"),
        ("import os, time\nwhile True:\n    os.write(1, b'.')\n    time.sleep(0.001)", "time"),
    ],
)
def test_runaways_are_stopped_whole(code, stopped):
    outcome = sandbox.run(code, limits=SHORT)
    assert outcome.stopped == stopped
    assert len(outcome.stdout) <= SHORT.output_bytes + sandbox.CHUNK
    assert leftovers() == []


FULL = pytest.param(list(TARGETS), id="every test", marks=pytest.mark.faults)
SOME = [pytest.param(list(TARGETS)[start::5], id=f"every fifth test from {start}") for start in range(5)]


@pytest.mark.parametrize("targets", [SOME[0], FULL])
def test_attacks_on_a_judge_earn_nothing(targets):
    tries = [(attack, target) for attack in ATTACKS for target in targets]
    scores = verify_many([("code", ATTACKS[attack], TARGETS[target]) for attack, target in tries])
    assert [each for each, score in zip(tries, scores, strict=True) if score] == []
    assert leftovers() == []


THROUGH = {
    "an object equal to everything": "asserts", "it within a list": "HumanEval+", "a subclass of int": "isinstance and value",
    "it as what a container holds": "membership", "built-in functions made anew": "closeness",
    "modules that tests use": "isclose without an import", "an argument emptied": "MBPP+ with a reference",
    "an argument replaced by everything": "changed in place", "StopIteration": "all of a map",
    "a subclass of str": "subsets", "a subclass of list": "a method",
}  # fmt: skip


@pytest.mark.parametrize("attack", THROUGH)
def test_attacks_on_a_judge_get_through_where_there_is_none(attack):
    truth = TARGETS[THROUGH[attack]]
    test = "\n".join(truth) if isinstance(truth, list) else truth["program"]
    test += "\ncheck(attack)" if "entry_point" in truth else ""
    outcome = sandbox.run(f"import math\n{NUMPY}\n{ATTACKS[attack]}\n{test}\nprint('passed')")
    assert outcome.stdout == b"passed\n", outcome.stderr


@pytest.mark.parametrize("name", GREEDY)
def test_greedy_programs_are_ended(name):
    test = "assert 42 in attack(1)" if "judge" in name else "assert attack(1) == 42"
    assert verify("code", GREEDY[name], [test]) == 0
    assert leftovers() == []


def test_cpu_limit_ends_a_spin_before_the_wall_does():
    outcome = sandbox.run("while True: pass", limits=sandbox.Limits(cpu_s=1, wall_s=30))
    assert (outcome.stopped, outcome.exit_code) == ("", 128 + signal.SIGKILL)


def test_work_of_a_process_that_ended_is_still_work():
    """Else a right answer that ends between two looks would seem to have slept as long as it worked."""
    code = """
import os, time
child = os.fork()
while time.process_time() < 0.2: pass
os.write(1, b".")
if child: os.waitpid(child, 0)
else: os.read(0, 1)
os.write(1, b".")
if child: os.read(0, 1)
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as parent:
        worked = sandbox._Idle(parent.pid)._worked
        parent.stdout.read(1), parent.stdout.read(1)
        before = worked(parent.pid)
        parent.stdin.write(b".")
        parent.stdout.read(1), parent.stdout.read(1)
        after = worked(parent.pid)
        parent.stdin.write(b".")
    assert after >= before


def test_work_of_threads_is_no_credit_for_sleep():
    """Threads that wait for a core do so at once, each a second in a second."""
    code = """
import hashlib, threading, time
def work():
    while time.process_time() < 0.5: hashlib.sha256(bytes(1 << 20)).digest()
    time.sleep(1.8)
threads = [threading.Thread(target=work) for _ in range(5)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
    assert sandbox.run(code).stopped == "sleep"


def test_what_a_program_finds_inside():
    code = (
        "import os, sys; print(*sorted(os.listdir('/')), *os.environ, os.getcwd(), sys.argv, "
        "sys.stdin.read())"
    )
    outcome = sandbox.run(code, stdin=b"input")
    assert outcome.stdout.decode() == "dev library scratch LC_CTYPE /scratch ['/scratch/program.py'] input\n"
    read_only = "import os; print(bool(os.statvfs('/').f_flag & os.ST_RDONLY))"
    assert sandbox.run(read_only).stdout == b"True\n"
    assert sandbox.run("import sys; sys.exit(7)").exit_code == 7
    assert sandbox.run("open('x', 'w').write('y'); print(open('x').read())").stdout == b"y\n"
    assert b"ZeroDivisionError" in sandbox.run("1 / 0").stderr
    assert sandbox.run("import torch").exit_code == 1
    large = os.urandom(1 << 19)
    assert (
        sandbox.run("import sys; sys.stdout.buffer.write(sys.stdin.buffer.read())", stdin=large).stdout
        == large
    )


def test_a_killed_trainer_leaves_no_program():
    code = "from megatron_bar.verifiers.sandbox.sandbox import run\nrun('')\nprint(1, flush=True)\n"
    code += "run('import time; time.sleep(60)')"
    trainer = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE)
    trainer.stdout.read(1)
    wait_until(lambda: len(leftovers(trainer.pid)) == 3)  # launcher, init, worker
    trainer.kill()
    assert trainer.wait() == -signal.SIGKILL
    wait_until(lambda: leftovers(trainer.pid) == [])


def test_many_programs_leave_no_residue():
    files = len(os.listdir("/proc/self/fd"))
    truth = {"function": "f", "tests": [[[3], 9]]}
    answers = [f"def f(x): return x * {n % 4}" for n in range(200)]
    assert verify_many([("code", answer, truth) for answer in answers]) == [
        float(n % 4 == 3) for n in range(200)
    ]
    assert leftovers() == []
    assert len(os.listdir("/proc/self/fd")) == files


def test_refuses_where_namespaces_are_refused():
    no_more = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    unshare = [
        "unshare",
        "--user",
        "--map-user=1000",
        "--map-group=1000",
        "--keep-caps",
        "sh",
        "-c",
        no_more,
        "-",
    ]
    code = (
        f"from megatron_bar.verifiers import verify\nprint(verify('code', 'attack = lambda: "
        f'"escaped"\', {ESCAPED}))'
    )
    if subprocess.run([*unshare, "true"], capture_output=True).returncode != 0:
        pytest.skip("this machine does not let a user namespace forbid further ones")
    result = subprocess.run(
        [*unshare, sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert result.stdout == ""
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("megatron_bar.errors.BarError: sandbox: enter_namespaces: ")
    assert "model-written code is not run; allow unprivileged user namespaces" in last


AS_NOBODY = """
import os
from megatron_bar.verifiers import code
from megatron_bar.verifiers.sandbox import sandbox
assert os.getuid() == 65534
short = sandbox.Limits(wall_s=0.5)
fork = "import os\\ntry:\\n  os.fork()\\nexcept OSError: print('bounded')"
run = lambda code: sandbox.run(code, limits=short)
print(run("import os; open('x', 'w'); os.listdir('/etc')").stderr.decode())
print(run("import os; os.kill(os.getpid(), 9)").exit_code, run("while True: pass").stopped)
print(run("import socket; socket.create_connection(('127.0.0.1', 1))").stderr.decode())
print(run(fork).stdout.decode())
truth = ["assert attack(1) == 42"]
print("scores", code.verify("def attack(x): return x + 41", truth), code.verify(FORGING, truth))
"""
FORGING = """
import os
for fd in range(32):
    try: os.write(fd, b'1')
    except OSError: pass
for pid in range(1, 9):
    try: pid != os.getpid() and os.kill(pid, 9)
    except OSError: pass
"""


def test_as_an_ordinary_user():
    if os.geteuid() != 0:
        pytest.skip("not root: every other test runs as an ordinary user")
    interpreter = Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}")
    shown = "\n".join(map(show_to_everyone, (Path(sys.base_prefix), REPOSITORY)))
    script = (
        f"set -e; mount --make-rprivate /; {shown}\nexec setpriv --reuid 65534 --regid 65534 "
        f'--clear-groups "$@"'
    )
    code = AS_NOBODY.replace("FORGING", repr(FORGING))
    command = ["unshare", "--mount", "sh", "-c", script, "-", interpreter, "-S", "-B", "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "No such file or directory: '/etc'" in result.stdout
    assert "137 time" in result.stdout
    assert "bounded" in result.stdout
    assert "scores 1.0 0.0" in result.stdout
    assert "Operation not permitted" in result.stdout


def show_to_everyone(path: Path) -> str:
    """Shell lines that let nobody reach ``path`` in this mount namespace, though a folder above may be root's
    own."""
    hidden = [parent for parent in reversed(path.parents) if not parent.stat().st_mode & 1]
    if not hidden:
        return ""
    over = f"mount -t tmpfs -o mode=755 tmpfs {hidden[0]}; mkdir -p {path}"
    return f"mount --bind {path} /mnt; {over}; mount --move /mnt {path}"


def leftovers(trainer: int | None = None) -> list[str]:
    """Processes of sandboxes that this process (or ``trainer``) started; their command line names it. Zombies
    have none."""
    mark = f"\0{trainer or os.getpid()}\0".encode()
    lines = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            lines[folder.name] = (folder / "cmdline").read_bytes()
        except OSError:  # it ended meanwhile
            continue
    return [pid for pid, line in lines.items() if b"import jail" in line and mark in line]


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "did not happen in 10 s"
        time.sleep(0.02)
