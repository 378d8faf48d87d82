"""The chat templates that have a name here, in Jinja, and the roles that each writes.

tulu: OLMo 2's and Tulu 3's. chatml: ChatML with tools, without words of its own. olmo: what the authors' SFT
was laid out by (open-instruct's ``olmo``), with a default system text, and end-of-text behind the last
answer. olmo123: no name of open-instruct's, so that the RLVR and DPO which ask for it fall through to the
tokenizer's own template; this is the one of Olmo 3's instruct tokenizer. The last two are written anew, and
write byte for byte what the published ones do (tests/data/test_templates.py).
"""

from typing import Literal, get_args

Name = Literal["tulu", "chatml", "olmo", "olmo123", "own"]
"""own: the template in the tokenizer's folder."""
NAMES: tuple[str, ...] = get_args(Name)

TULU = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<|assistant|>\\n' + message['content'] + eos_token }}"
    "{% if not loop.last %}{{ '\\n' }}{% endif %}"
    "{% else %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
_CALLS = (
    "{% if message['function_calls'] is string %}"
    "{{ '<function_calls>' + message['function_calls'] + '</function_calls>' }}"
    "{% elif message['tool_calls'] %}{{ '<function_calls>' }}{% for call in message['tool_calls'] %}"
    "{% set function = call['function'] or call %}{{ function['name'] + '(' }}"
    "{% for name, value in function['arguments'].items() %}{{ name + '=' + (value | tojson) }}"
    "{% if not loop.last %}{{ ', ' }}{% endif %}{% endfor %}{{ ')' }}"
    "{% if not loop.last %}{{ '\\n' }}{% endif %}"
    "{% endfor %}{{ '</function_calls>' }}{% endif %}"
)
CHATML = (
    "{% if tools and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\n<functions>' + (tools | tojson) + '</functions><|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}"
    "{% set role = 'environment' if message['role'] == 'tool' else message['role'] %}"
    "{{ '<|im_start|>' + role + '\\n' + (message['content'] or '') }}"
    "{% if role == 'system' and loop.first and tools %}"
    "{{ ' <functions>' + (tools | tojson) + '</functions>' }}"
    "{% elif message['functions'] %}{{ ' <functions>' + message['functions'] + '</functions>' }}{% endif %}"
    + _CALLS
    + "{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""Tools in <functions>, calls in <function_calls>, results in a turn of the environment."""
_NO_FUNCTIONS = "You do not currently have access to any functions. <functions></functions>"
_FUNCTIONS = "'<functions>' + message['functions'] + '</functions>'"
_HAS_FUNCTIONS = "message['functions'] is string"
_DEFAULT = "{% if not messages | selectattr('role', 'equalto', 'system') | list %}{{ '<|im_start|>system\\n"
_CLOSE = "{{ eos_token if role == 'assistant' and loop.last else '<|im_end|>\\n' }}{% endfor %}"
_OPEN = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
OLMO = (
    _DEFAULT
    + "You are OLMo, a helpful function-calling AI assistant built by Ai2. Your date cutoff is November "
    "2024, and your model weights are available at https://huggingface.co/allenai. "
    + _NO_FUNCTIONS
    + "<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}{% set role = message['role'] %}"
    "{{ '<|im_start|>' + role + '\\n' + (message['content'] or '') }}"
    + f"{{% if role == 'system' %}}{{{{ ' ' + ({_FUNCTIONS} if {_HAS_FUNCTIONS} else '{_NO_FUNCTIONS}') }}}}"
    + f"{{% elif role == 'user' and {_HAS_FUNCTIONS} %}}{{{{ '\\n' + {_FUNCTIONS} }}}}"
    "{% elif role == 'assistant' and message['function_calls'] is string %}"
    "{{ '<function_calls>' + message['function_calls'] + '</function_calls>' }}{% endif %}" + _CLOSE + _OPEN
)
OLMO123 = (
    _DEFAULT
    + "You are a helpful function-calling AI assistant. ' }}"
    + f"{{% if not tools %}}{{{{ '{_NO_FUNCTIONS}' }}}}{{% else %}}"
    "{{ 'You are provided with function signatures within <functions></functions> XML tags. You may call one "
    "or more functions to assist with the user query. Output any function calls within "
    "<function_calls></function_calls> XML tags. Do not make assumptions about what values to plug into "
    "functions.<functions>' + (tools | tojson) + '</functions>' }}{% endif %}{{ '<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}"
    "{% set role = 'environment' if message['role'] == 'tool' else message['role'] %}"
    "{{ '<|im_start|>' + role + '\\n' + (message['content'] or '') }}"
    "{% if role == 'system' and tools is not none %}{{ '<functions>' + (tools | tojson) + '</functions>' }}"
    + f"{{% elif role == 'system' and {_HAS_FUNCTIONS} %}}{{{{ ' ' + {_FUNCTIONS} }}}}"
    + "{% elif role == 'assistant' %}"
    + _CALLS
    + "{% endif %}"
    + _CLOSE
    + _OPEN
)
TEMPLATES = {"tulu": TULU, "chatml": CHATML, "olmo": OLMO, "olmo123": OLMO123}
ROLES = {
    "tulu": ("system", "user", "assistant"),
    "chatml": ("system", "user", "assistant", "tool", "environment"),
    "olmo": ("system", "user", "assistant", "environment"),
    "olmo123": ("system", "user", "assistant", "tool", "environment"),
    "own": ("system", "developer", "user", "assistant", "tool", "environment"),
}
"""Roles that a template writes; one that it does not know would vanish without a word."""
