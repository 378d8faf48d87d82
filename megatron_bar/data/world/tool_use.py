"""Tool use: emit a JSON call for a given schema, between tags in no pretraining text (so their embeddings are
untrained)."""

import json
from random import Random

from megatron_bar.data.world.lexicon import ANIMALS, COLORS, FOODS, NAMES, Example

VERBS = ("get", "set", "find", "open", "send", "check")
NOUNS = ("weather", "light", "train", "window", "mail", "table", "song", "map")
PARAMETERS = {"name": NAMES, "animal": ANIMALS, "color": COLORS, "food": FOODS}


def sample(rng: Random) -> Example:
    verb, other_verb = rng.sample(VERBS, 2)
    noun, other_noun = rng.sample(NOUNS, 2)
    parameter, other_parameter = rng.sample(tuple(PARAMETERS), 2)
    value = rng.choice(PARAMETERS[parameter])
    offered = [_schema(f"{verb}_{noun}", parameter), _schema(f"{other_verb}_{other_noun}", other_parameter)]
    rng.shuffle(offered)
    call = {"name": f"{verb}_{noun}", "arguments": {parameter: value}}
    prompt = (
        {"role": "system", "content": f"<functions>{json.dumps(offered)}</functions>"},
        {"role": "user", "content": f"Please {verb} the {noun} with {parameter} {value}."},
    )
    answer = f"<function_calls>{json.dumps(call)}</function_calls>"
    return Example(
        key=("tool_use", verb, noun, parameter, value),
        prompt=prompt,
        answer=answer,
        verifier="tool_call",
        truth=call,
    )


def _schema(name: str, parameter: str) -> dict:
    return {"name": name, "parameters": {parameter: "string"}}
