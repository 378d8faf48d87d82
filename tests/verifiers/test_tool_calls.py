"""Tool calls as chat templates render them, and calls in other spellings beside the right ones."""

import json
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from megatron_bar.data.chat import TEMPLATES, _call_lines
from megatron_bar.verifiers import verify

ANSWER = "{% for message in messages %}{% if message['role'] == 'assistant' %}"
EACH = "{% for call in message['tool_calls'] %}{% set function = call['function'] %}"
END = "{% endfor %}"
OTHERS = {
    "hermes": f"{ANSWER}{EACH}"
    "<tool_call>\n{{ {'name': function['name'], 'arguments': function['arguments']} | tojson }}\n</tool_call>\n"
    f"{END}{{% endif %}}{END}",
    "llama": f"{ANSWER}<|python_tag|>{EACH}"
    "{{ {'name': function['name'], 'parameters': function['arguments']} | tojson }}{{ '; ' }}"
    f"{END}{{% endif %}}{END}",
    "mistral": f"{ANSWER}[TOOL_CALLS] [{EACH}"
    "{{ {'name': function['name'], 'arguments': function['arguments'], 'id': 'a1b2c3d4e'} | tojson }}"
    "{{ '' if loop.last else ', ' }}"
    f"{END}]{{% endif %}}{END}",
    "openai": f"{ANSWER}{EACH}"
    "{{ {'id': 'call_1', 'type': 'function', 'function': {'name': function['name'], 'arguments': "
    "function['arguments'] | tojson}} | tojson }}\n"
    f"{END}{{% endif %}}{END}",
    "fence": f"{ANSWER}Let me look.\n\n```json\n{EACH}"
    "{{ {'name': function['name'], 'arguments': function['arguments']} | tojson }}\n"
    f"{END}```{{% endif %}}{END}",
}
"""Layouts of well-known tokenizers, and what models write without one."""
LAYOUTS = OTHERS | {name: template for name, template in TEMPLATES.items() if "function_calls" in template}

NAMES = st.text(string.ascii_letters + string.digits + "_-.", min_size=1, max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
    | st.sampled_from(
        ["</function_calls>", "<function_calls>", "```", "f(x=1)", '{"name": "f", "arguments": {}}', "</tool_call>"]
        + ['"', "'", "\\", "\\n", "\n", "\u2028", "<think>", "a\tb", "{", "]", "x=1, y=2", "\\u0041", "'''", '"""']
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
CALLS = st.lists(
    st.fixed_dictionaries({"name": NAMES, "arguments": st.dictionaries(NAMES, VALUES, max_size=4)}),
    min_size=1,
    max_size=4,
)
PROSE = st.sampled_from(
    ["", "Let me look that up.", "I'll call it now (see below):", "Sure - 3 < 4, of course(s)!"]
)


def rendered(template: str, calls: list[dict], said: str = "") -> str:
    given = {"tool_calls": [{"function": call} for call in calls]}
    if "tool_calls" not in template:  # it takes them as text alone
        given = {"function_calls": _call_lines(calls, "")}
    messages = [{"role": "user", "content": "Look."}, {"role": "assistant", "content": said, **given}]
    texts = []
    for part, prompt in ((messages, False), (messages[:1], True)):
        (text,), _ = render_jinja_template(
            conversations=[part],
            chat_template=template,
            add_generation_prompt=prompt,
            eos_token="<|endoftext|>",
        )
        texts.append(text)
    return (
        texts[0]
        .removeprefix(texts[1])
        .removesuffix("\n")
        .removesuffix("<|im_end|>")
        .removesuffix("<|endoftext|>")
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_call_as_a_template_renders_it(layout):
    @settings(max_examples=150, deadline=None)
    @given(CALLS, PROSE, st.randoms(use_true_random=False))
    def right(calls, said, draw):
        answer = rendered(LAYOUTS[layout], calls, said)
        truth = json.loads(json.dumps(calls))
        draw.shuffle(truth)
        assert verify("tool_call", answer, truth) == 1, answer
        assert verify("tool_call", answer, [*truth, {"name": "g", "arguments": {}}]) == 0
        truth[0]["arguments"]["another"] = 1
        assert verify("tool_call", answer, truth) == 0

    right()


@given(CALLS)
def test_any_call_with_values_of_python(calls):
    """As Olmo's data have them: text of the column function_calls."""
    spelled = "\n".join(
        f"{call['name']}({', '.join(f'{name}={value!r}' for name, value in call['arguments'].items())})"
        for call in calls
    )
    assert verify("tool_call", f"<function_calls>{spelled}</function_calls>", calls) == 1, spelled
    assert verify("tool_call", f"[{spelled}]".replace(")\n", "), "), calls) == 1


ONE = {"name": "f", "arguments": {"x": 1}}
RIGHT = (
    "f(x=1)", "`f(x=1)`", '{"name": "f", "arguments": {"x": 1}}', "<function_calls>f(x=1)</function_calls>",
    '<tool_call>\n{"name": "f", "parameters": {"x": 1}}\n</tool_call>', "Now:\n```python\nf(x=1)\n```",
    "<function_calls>[f( x = 1, )]", '[TOOL_CALLS] [{"name": "f", "arguments": {"x": 1.0}, "id": "a1b2c3d4e"}]',
    "{'name': 'f', 'arguments': {'x': 0x1}}", "<function_calls>\r\nf(\r\n  x=1\r\n)\r\n</function_calls>",
    "<think>g(y=1)? No.</think><function_calls>f(x=1)</function_calls>",
    'I use `f()` and no other function(s): {"name": "f", "arguments": "{\\"x\\": 1}"}',
)  # fmt: skip
OTHER = (
    "g(y=1)", "g(1)", "g()", "g (y=1)", "g(\ny=1)", "`g(y=1)`", "await g(y=1)", "x = g(y=1)", "print(g(y=1))",
    "tools.g(y=1)", "[g(y=1)]", "f(x=2)", "f(x=1)", "\nf()\n", '{"name": "g", "arguments": {"y": 1}}',
    "{'name': 'g', 'arguments': {}}", '{"name": "g", "parameters": {"y": 1}}', '{"tool": "g", "y": 1}',
    '{"type": "function", "function": {"name": "g", "arguments": "{}"}}', '["g", {"y": 1}]', "g{y: 1}",
    '<tool_call>{"name": "g", "arguments": {}}</tool_call>', "<tool_call>g(y=1)</tool_call>", "```python\ng(y=1)\n```",
    '```json\n{"name": "g", "arguments": {}}\n```', '<invoke name="g"><parameter name="y">1</parameter></invoke>',
    "<function=g><parameter=y>1</parameter></function>", '<function=g>{"y": 1}</function>', "<g>\n<y>1</y>\n</g>",
    '<tool name="g" y="1"/>', "<tool_use><name>g</name></tool_use>", "<|tool_call|>g(y=1)", "\nAction: g\nAction Input: 1",
    '\nAction: g\nAction Input: {"y": 1}', "\nname: g\narguments:\n  y: 1", "g\uff08y=1\uff09", "g\u200b(y=1)",
    'to=functions.g {"y": 1}', "<function_calls>g(y=1)</function_calls>", '"name": "g", "arguments": 1',
)  # fmt: skip


@pytest.mark.parametrize("right", RIGHT)
def test_another_call_in_any_spelling_is_seen(right):
    assert verify("tool_call", right, ONE) == 1
    unseen = [
        answer
        for other in OTHER
        for answer in (f"{right}\n{other}", f"{right} {other}", f"{other}\n{right}")
        if verify("tool_call", answer, ONE) != 0
    ]
    assert unseen == []


@pytest.mark.parametrize(
    "answer",
    [
        "f(x=1",
        "f(x=1))",
        'f(x="1)',
        "f(x=1 y=2)",
        "f x=1",
        '{"name": "f" "arguments": {"x": 1}}',
        "f(=1)",
        "f(x=)",
    ]
    + [
        "f(x=TRUE)",
        "f(x=1j)",
        "f(x=1_)",
        "f(x={1})",
        "f(x=y)",
        'f(x=f"1")',
        "f(**{'x': 1})",
        "(x=1)",
        "f(x==1)",
    ],
)
def test_calls_that_cannot_be_read(answer):
    for truth in (ONE, {"name": "f", "arguments": {"x": True}}, {"name": "f", "arguments": {}}):
        assert verify("tool_call", answer, truth) == 0


@pytest.mark.parametrize(
    "spelled, value",
    [
        (r'"a\/b \ud83d\ude00 \u00e9"', "a/b \U0001f600 \u00e9"), (r"'it\'s \x41\101 \d'", "it's AA \\d"),
        ("'''a\n\"b\"'''", 'a\n"b"'), ('"""a\n\'b\'"""', "a\n'b'"), (r'"\'"', "'"), ("''", ""), ("(1)", 1),
        ("(1,)", [1]), ("()", []), ("-1_000", -1000), ("+.5e-1", 0.05), ("1e+22", 1e22), ("0xff", 255),
        ("[1, (2, 3),]", [1, [2, 3]]), ("{'a': None,}", {"a": None}), ('{"a" : [ ] }', {"a": []}),
    ],
)  # fmt: skip
def test_values_of_both_languages(spelled, value):
    truth = {"name": "f", "arguments": {"x": value}}
    assert verify("tool_call", f"<function_calls>f(x={spelled})</function_calls>", truth) == 1
    assert verify("tool_call", f"f(x={spelled})", truth | {"arguments": {"x": [value]}}) == 0
