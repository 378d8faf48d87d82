"""Olmo's templates write what the published ones write, and a quick look at a chat finds what laying it out finds.

The published texts are not here: `PUBLISHED` holds hashes of what they make, through transformers, of the chats of
`made` (open-instruct's ``olmo`` at commit e6c3044; the template of Olmo 3's instruct tokenizer). What each does with
the parts of a chat is also written down by hand.
"""

import random
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.templates import NAMES, ROLES, TEMPLATES
from megatron_bar.data.tokenizer import load_tokenizer, train_tokenizer
from megatron_bar.errors import BarError

END = "<|endoftext|>"
NONE = "You do not currently have access to any functions. <functions></functions>"
OLMO_2 = (
    "You are OLMo, a helpful function-calling AI assistant built by Ai2. Your date cutoff is November 2024, and "
    "your model weights are available at https://huggingface.co/allenai. "
)
OLMO_3 = "You are a helpful function-calling AI assistant. "
PUBLISHED = {
    ("olmo", False): "d7840df054e44a76f920bd7b8fbba225866afc2610ab53da7c4652d7065cf22e",
    ("olmo", True): "80d7ee9ba3c8cab135ed26ea80af8d40bdbc0dd441e232fefd21350563275693",
    ("olmo123", False): "29232b9399853be75fe146721a59a8c92af4c42797700b9af4f31cebe8a1ad8e",
    ("olmo123", True): "f787071a33ca08aa2df1f6b935f1add73883577ac8dafafe3371b5ad1cd43b4f",
}
TEXTS = ["", "Hi", "a\nb ", " <functions>[]</functions>", "{{ x }}", "größer 😀", "<|im_end|>"]
TOOLS = [
    None,
    None,
    [],
    [{"name": "clock", "parameters": {}}],
    [{"type": "function", "function": {"name": "<ü'>"}}],
]
CALLS = [("f", {}), ("g.h", {"a": 1, "b": ["x", None, "<'&ü"]})]


def made(name: str) -> list[tuple[list[dict], list | None]]:
    """Five hundred chats of all that the template knows, in any order, and their tools."""
    rng = random.Random(name)
    chats = []
    for _ in range(500):
        messages = []
        for _ in range(rng.randint(1, 6)):
            message = {"role": rng.choice(ROLES[name]), "content": rng.choice(TEXTS)}
            if message["role"] == "system" or (name, message["role"]) == ("olmo", "user"):
                message |= rng.choice([{}, {"functions": "[f]"}, {"functions": ""}])
            if message["role"] == "assistant":
                called = rng.choice([{}, {}, {"function_calls": "f(1)\ng()"}])
                if name == "olmo123" and rng.random() < 0.3:
                    calls = [{"function": {"name": n, "arguments": a}} for n, a in CALLS[: rng.randint(1, 2)]]
                    called = {"tool_calls": calls}
                message |= called
                if called and rng.random() < 0.5:
                    del message["content"]
            messages.append(message)
        chats.append((messages, rng.choice(TOOLS) if name == "olmo123" else None))
    return chats


def written(template: str, messages: list[dict], tools=None, *, prompt: bool = False) -> str:
    options = {"tools": tools, "chat_template": template, "add_generation_prompt": prompt}
    return render_jinja_template([messages], **options, bos_token=END, eos_token=END)[0][0]


@pytest.mark.parametrize("name, prompt", PUBLISHED)
def test_what_is_written_is_what_the_published_template_writes(name, prompt):
    texts = (written(TEMPLATES[name], *chat, prompt=prompt) for chat in made(name))
    assert blake3("\0".join(texts).encode()).hexdigest() == PUBLISHED[name, prompt]


def turn(role: str, content: str | None, **more) -> dict:
    return {"role": role, "content": content, **more}


ASKED = turn("user", "Rain?")
IN = "<|im_start|>{}\n{}<|im_end|>\n".format
BY_HAND = [
    ("olmo", [ASKED, turn("assistant", "Yes.")], None, IN("system", OLMO_2 + NONE)),
    ("olmo123", [ASKED, turn("assistant", "Yes.")], None, IN("system", OLMO_3 + NONE)),
    ("olmo", [turn("system", "S."), ASKED, turn("assistant", "Yes.")], None, IN("system", f"S. {NONE}")),
    ("olmo123", [turn("system", "S."), ASKED, turn("assistant", "Yes.")], None, IN("system", "S.")),
    *(
        (
            name,
            [turn("system", "S.", functions="[f]"), ASKED, turn("assistant", "Yes.")],
            None,
            IN("system", "S. <functions>[f]</functions>"),
        )
        for name in ("olmo", "olmo123")
    ),
    (
        "olmo123",
        [turn("system", "S."), ASKED, turn("assistant", "Yes.")],
        [{"name": "f"}],
        IN("system", 'S.<functions>[{"name": "f"}]</functions>'),
    ),
]


@pytest.mark.parametrize("name, messages, tools, system", BY_HAND)
def test_system_texts_by_hand(name, messages, tools, system):
    asked = IN("user", "Rain?")
    assert written(TEMPLATES[name], messages, tools) == f"{system}{asked}<|im_start|>assistant\nYes.{END}"
    assert (
        written(TEMPLATES[name], messages[:-1], tools, prompt=True)
        == f"{system}{asked}<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("name", ["olmo", "olmo123"])
def test_only_the_last_answer_ends_the_text(name):
    calling = turn("assistant", None, function_calls="f(1)")
    messages = [
        turn("system", "S.", functions="[f]"),
        ASKED,
        calling,
        turn("environment", "rain"),
        turn("assistant", "Y"),
    ]
    middle = IN("assistant", "<function_calls>f(1)</function_calls>") + IN("environment", "rain")
    assert written(TEMPLATES[name], messages).endswith(f"{middle}<|im_start|>assistant\nY{END}")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    train_tokenizer(["one two three"] * 9, folder, vocab_size=300)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in ("<|im_start|>", "<|im_end|>")]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATES["chatml"])
    return load_tokenizer(Path(folder))


WORDS = st.sampled_from(["", " ", "a", "b\n", "<|im_end|>", "é"])
CONTENT = st.one_of(
    WORDS, st.none(), st.lists(st.builds(lambda t: {"type": "text", "text": t}, WORDS), max_size=2)
)
USUAL = st.sampled_from(
    [
        turn("user", "q"),
        turn("assistant", "a"),
        turn("user", "r"),
        turn("assistant", "b"),
        turn("system", "s"),
    ]
)
ODD = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "user", "assistant", "assistant", "tool", "environment"])},
    optional={
        "content": CONTENT,
        "functions": st.sampled_from([None, "", "[f]", [{"name": "f"}]]),
        "function_calls": st.sampled_from(
            [None, "", "f()", ["f()", {"name": "g", "arguments": {"x": 1}}], []]
        ),
        "tool_calls": st.sampled_from(
            [None, [], [{"name": "f", "arguments": {}}], [{"function": {"name": 1}}]]
        ),
        "thinking": st.sampled_from([None, "", "hm"]),
    },
)


CHAT = st.lists(USUAL, min_size=2, max_size=5) | st.lists(USUAL | ODD, max_size=5)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=200, deadline=None)
@given(chats=st.lists(st.tuples(CHAT, st.booleans()), min_size=1, max_size=6))
def test_a_look_refuses_what_laying_out_refuses(text, name, chats):
    """With the same words; a look remembers the shapes of chats before."""
    looks = ChatFormat(text, name)
    for messages, last_turn in chats:
        more = {"last_turn": last_turn, "where": "x.jsonl:3"}
        assert said(looks.check, messages, more) == said(ChatFormat(text, name).render, messages, more)


def said(look, messages: list[dict], more: dict) -> str | None:
    try:
        look(messages, **more)
    except BarError as error:
        return str(error)
    return None
