"""Entries of a config.json to be read with care: what is refused, and what stands in several places."""

from megatron_bar.errors import BarError

DENSE = "olmo2"
MOE = "flex_olmo"
ARCHITECTURES = {DENSE: "Olmo2ForCausalLM", MOE: "FlexOlmoForCausalLM"}
_REFUSED = {
    "tie_word_embeddings": (False, "tied embeddings are not supported"),
    "attention_bias": (False, "attention biases are not supported"),
    "hidden_act": ("silu", "only SwiGLU with silu is supported"),
    "attention_dropout": (0, "attention dropout is not supported"),
}
"""The only value of each key that this project computes, and what to say of another."""


def require_supported(config: dict, source: str) -> None:
    """Raises unless this project computes such a model, and names the entry."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise BarError(f"{source}: model_type must be one of {', '.join(ARCHITECTURES)}, got {model_type!r}")
    for key, (wanted, why) in _REFUSED.items():
        if config.get(key, wanted) not in (wanted, None):
            raise BarError(f"{source}: {key} must be {wanted!r}, got {config[key]!r}: {why}")


def experts_per_layer(config: dict, source: str) -> tuple[int, ...]:
    """Returns the active experts of every layer where the layers differ, else an empty tuple."""
    layers = config.get("num_experts_per_layer") or []
    if not isinstance(layers, list):
        raise BarError(f"{source}: num_experts_per_layer must be a list of numbers, got {layers!r}")
    return tuple(layers)


def rope_theta(config: dict, source: str) -> float:
    """Returns the theta of plain RoPE. Versions of transformers read different ones of three places, so all
    that say it must agree."""
    found = {"rope_theta": config.get("rope_theta")}
    for key in ("rope_parameters", "rope_scaling"):
        rope = {} if config.get(key) is None else config[key]
        names = ("rope_type", "type")
        if not isinstance(rope, dict) or any(rope.get(name, "default") != "default" for name in names):
            raise BarError(f"{source}: {key} must be plain RoPE, got {rope!r}")
        found[f"{key}.rope_theta"] = rope.get("rope_theta")
    thetas = {key: theta for key, theta in found.items() if theta is not None}
    if not thetas:
        why = "defaults differ between OLMo 2 and FlexOlmo, so it is never guessed"
        raise BarError(f"{source}: rope_theta is missing: expected a number, got none ({why})")
    (first, theta), *others = thetas.items()
    for key, other in others:
        if other != theta:
            raise BarError(f"{source}: {key} must be {theta!r} as {first} says, got {other!r}")
    return theta
