"""generate.py as a process of its own: prompts from a pipe and from a terminal; what it says is transformers'
greedy answer."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from functools import partial
from shutil import copytree

import pytest
import torch
from folders import edit_json, save_hf
from hypothesis import given
from hypothesis import strategies as st
from scripts import ENV, ROOT, refused

from megatron_bar.data.tokenizer import train_tokenizer
from megatron_bar.evaluation.conversation import TextStream

TEXT = "one plus two is red, größer als 你好, wie 🙂 und ½. " * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = save_hf(
        tmp_path_factory.mktemp("chat") / "hf", experts=2, vocab_size=300, seed=6, max_position_embeddings=256
    )
    train_tokenizer([TEXT], path, vocab_size=300)
    edit_json(path / "config.json", eos_token_id=None)
    return path


def by_transformers(folder, prompts: list[str], new: int) -> list[str]:
    """The conversation as transformers holds it."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    chat, answers = [], []
    for prompt in prompts:
        chat.append({"role": "user", "content": prompt})
        ids = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        out = model.generate(
            ids, max_new_tokens=new, do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=0
        )
        answers.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
        chat.append({"role": "assistant", "content": answers[-1]})
    return answers


def piped(folder, text: bytes, *arguments, launcher=()) -> tuple[int, str, str]:
    command = [sys.executable, *launcher, ROOT / "tools" / "generate.py", folder, *map(str, arguments)]
    done = subprocess.run(command, input=text, capture_output=True, env=ENV, timeout=600, check=False)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_a_pipe_is_a_conversation(folder):
    first, second = by_transformers(folder, ["one plus", "größer"], 6)
    again = by_transformers(folder, ["größer"], 6)[0]
    status, out, err = piped(
        folder, "one plus\n\ngrößer\n/reset\ngrößer\n/quit\nred\n".encode(), "--max-new-tokens", 6
    )
    assert (status, out) == (0, f"{first}\n{second}\n{again}\n"), err


def test_where_nobody_reads_on_it_ends_without_a_word(folder):
    command = [sys.executable, ROOT / "tools" / "generate.py", folder, "--max-new-tokens", "200"]
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, **streams, env=ENV) as tool:
        tool.stdin.write(b"one plus\ntwo\nred\n")
        tool.stdin.close()
        assert tool.stdout.read(1)
        tool.stdout.close()
        assert (tool.stderr.read(), tool.wait()) == (b"", 1)


def test_two_ranks_say_the_same(folder):
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2")
    status, out, err = piped(folder, b"one plus\n", "--max-new-tokens", 6, "--tensor", 2, launcher=launcher)
    assert (status, out) == (0, by_transformers(folder, ["one plus"], 6)[0] + "\n"), err


def test_a_terminal(folder):
    """Ctrl-C at the prompt and in an answer, and Ctrl-D: the answer ends, the program with status 0."""
    main, side = pty.openpty()
    command = [sys.executable, ROOT / "tools" / "generate.py", folder, "--max-new-tokens", "200"]
    # Tests that a shell has put into the background ignore SIGINT, and hand that on.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    streams = {"stdin": side, "stdout": side, "stderr": side}
    child = subprocess.Popen(
        command, **streams, env=ENV | {"TERM": "dumb"}, start_new_session=True, preexec_fn=heed
    )
    os.close(side)
    seen = ""

    def wait_for(pattern: str, *, interrupting: bool = False) -> None:
        nonlocal seen
        until = time.monotonic() + 300
        while not (found := re.search(pattern, seen)):
            assert time.monotonic() < until, seen
            if select.select([main], [], [], 5)[0]:
                seen += os.read(main, 4096).decode(errors="replace")
            elif interrupting:
                child.send_signal(signal.SIGINT)
        seen = seen[found.end() :]

    wait_for("> ")
    child.send_signal(signal.SIGINT)
    # A signal between readline's prompt and its wait for a key is noticed with the next key or signal: press
    # again, as people do.
    wait_for("/quit or Ctrl-D ends\r\n> ", interrupting=True)
    os.write(main, b"one plus\n")
    wait_for("one plus\r\n.")
    child.send_signal(signal.SIGINT)
    wait_for("\r\n> ")
    os.write(main, b"red " * 200 + b"\n")
    wait_for(r"error: the conversation expected below 256 tokens .*; /reset begins anew\r\n> ")
    os.write(main, b"\x04")
    assert child.wait(60) == 0
    os.close(main)


def test_mistakes(folder, tmp_path, inline):
    bare, no_template = tmp_path / "bare", tmp_path / "no_template"
    copytree(folder, bare)
    (bare / "tokenizer.json").unlink()
    copytree(folder, no_template)
    edit_json(no_template / "tokenizer_config.json", chat_template=None)
    for arguments, message in [
        ((tmp_path,), r"config\.json: not found"),
        ((bare,), "no tokenizer"),
        ((no_template,), "expected a tokenizer with a chat template"),
    ]:
        assert re.search(message, refused(inline("generate", *arguments, "--prompt", "one")))


@pytest.fixture(scope="module")
def tokenizer(folder):
    from megatron_bar.data.tokenizer import load_tokenizer

    return load_tokenizer(folder)


@given(st.lists(st.integers(0, 299), max_size=40))
def test_pieces_add_up_to_the_text(tokenizer, ids):
    stream = TextStream(tokenizer)
    pieces = [stream.add(token) for token in ids]
    assert "".join(pieces) + stream.end() == tokenizer.decode(ids)


def test_no_piece_holds_part_of_a_character(tokenizer):
    stream = TextStream(tokenizer)
    text = "ü你🙂½x" + "🦜"
    ids = tokenizer.encode_text(text)
    assert len(ids) > len(text), "else no token is part of a character"
    pieces = [stream.add(token) for token in ids]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert torch.tensor(ids).max() < 300
