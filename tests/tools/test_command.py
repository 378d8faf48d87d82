"""`bar` and the scripts of the checkout: one parser each, and help at once, in the words of the call."""

import json
import re
import shlex
import signal
import subprocess
import sys

import pytest
from scripts import ENV, ROOT, refused, run_here

from megatron_bar import __version__
from megatron_bar.cli import Call
from megatron_bar.tools import COMMANDS, TASKS, main, module_of

SCRIPTS = {name: f"tools/{file}.py" for name, file in COMMANDS.items()} | {"run": "examples/pretrain_bar.py"}


@pytest.fixture
def bar(monkeypatch, capsys):
    """Returns (status, stdout, stderr) of `bar` with these arguments."""
    handler = signal.getsignal(signal.SIGTERM)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["/somewhere/bin/bar", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        code = ended.value.code
        return (1, out, f"{err}{code}\n") if isinstance(code, str) else (code or 0, out, err)

    yield call
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_alone_it_lists_every_command_by_task(bar, arguments):
    status, out, err = bar(*arguments)
    assert (status, err) == (0, "")
    usage, *tasks = out.removesuffix("\n").split("\n\n")
    assert usage.startswith("usage: bar COMMAND ...\n")
    assert [task.splitlines()[0] for task in tasks] == list(TASKS)
    for task, commands in zip(tasks, TASKS.values(), strict=True):
        lines = [line.split(maxsplit=1) for line in task.splitlines()[1:]]
        assert [name for name, _ in lines] == list(commands)
        for name, sentence in lines:
            said = " ".join(module_of(name).__doc__.split())
            assert said.startswith(f"{sentence}.") and re.match(r"[A-Z][a-z]+s ", sentence), sentence
    assert max(map(len, out.splitlines())) <= 120


def test_every_file_of_a_command_is_listed():
    found = {path.stem for path in (ROOT / "megatron_bar/tools").glob("*.py")} - {"__init__"}
    assert sorted(COMMANDS.values()) == sorted(found)
    assert {ROOT / script for script in SCRIPTS.values()} == {
        *(ROOT / "tools").glob("*.py"),
        ROOT / "examples/pretrain_bar.py",
    }


def test_another_word_is_one_line_that_lists_the_commands(bar):
    line = refused(bar("nonsense", "--help"))
    assert line == f"error: command expected one of {', '.join(COMMANDS)}, got 'nonsense'\n"
    assert bar("--version") == (0, f"megatron_bar {__version__}\n", "")


def examples(text: str, *starts: str) -> list[list[str]]:
    """Returns the arguments of every example in a help text, up to two spaces or <, behind which are none."""
    _, _, shown = re.split(r"^(examples?:)\s+", text, flags=re.MULTILINE)
    found = []
    for line in shown.splitlines():
        start = next(start for start in starts if line.strip().startswith(start))
        arguments = line.strip().removeprefix(start).strip()
        found.append(shlex.split(re.split(r"\s{2,}|<", arguments)[0]))
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_examples_as_it_was_called_and_they_parse(bar, monkeypatch, capsys, name):
    script = SCRIPTS[name]
    as_command = bar(name, "--help")
    as_script = run_here(monkeypatch, capsys.readouterr, ROOT / script, "--help")
    torchrun = "torchrun --nproc-per-node [0-9]"
    for (status, out, err), program, started in (
        (as_command, f"bar {name}", f"-m megatron_bar {name}"),
        (as_script, f"python {script}", script),
    ):
        assert (status, err) == (0, "")
        assert out.startswith(f"usage: {program} ")
        under_torchrun = [found[0] for found in re.finditer(f"{torchrun} {started}", out)]
        for arguments in examples(out, program, *under_torchrun):
            module_of(name).parse(Call(program=program, script=started, arguments=arguments))
    assert "{" not in as_command[1].rpartition("example")[2]


def test_several_processes_are_an_example_of_run(bar):
    assert "torchrun --nproc-per-node 2 -m megatron_bar run tiny --out runs/tiny" in bar("run", "--help")[1]


ALL_HELP = """
import contextlib, io, json, sys
from megatron_bar.tools import COMMANDS, main

for arguments in ([], *([name, "--help"] for name in COMMANDS)):
    sys.argv = ["bar", *arguments]
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main()
print(json.dumps(sorted(sys.modules)))
"""


def test_help_imports_nothing_heavy():
    done = subprocess.run(
        [sys.executable, "-c", ALL_HELP], capture_output=True, text=True, env=ENV, check=True
    )
    loaded = set(json.loads(done.stdout))
    assert "megatron_bar.tools.traffic" in loaded
    assert not loaded & {"torch", "numpy", "transformers", "megatron", "safetensors", "rich", "pyarrow"}
