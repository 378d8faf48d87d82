"""Entries of a config.json to be read with care: what is refused, and what stands in several places."""

from megatron_bar.errors import BarError
from megatron_bar.weights.families import FAMILY_OF, UNSAYABLE
from megatron_bar.weights.family import Family, Form


def read_family(config: dict, source: str) -> tuple[Family, Form]:
    """Returns the family and the class that ``config`` is of; raises unless this project computes such a
    model, and names the entry."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILY_OF:
        why = f": {UNSAYABLE[model_type]}" if isinstance(model_type, str) and model_type in UNSAYABLE else ""
        raise BarError(
            f"{source}: model_type must be one of {', '.join(sorted(FAMILY_OF))}, got {model_type!r}{why}"
        )
    family = FAMILY_OF[model_type]
    form = family.mixture if model_type == family.mixture.model_type else family.dense
    for key, wanted in form.fields.items():
        if config.get(key, wanted) not in (wanted, None) and not _is_idle(key, config, form):
            raise BarError(f"{source}: {key} must be {wanted!r} in a {model_type}, got {config[key]!r}")
    part = config.get("partial_rotary_factor")
    if part is not None and (part != 1 or part is True):
        raise BarError(f"{source}: partial_rotary_factor must be 1, got {part!r}")
    kinds, layers = config.get("layer_types"), config.get("num_hidden_layers")
    if kinds is not None and (type(layers) is not int or kinds != ["full_attention"] * layers):
        raise BarError(
            f"{source}: layer_types must be full_attention in each of {layers} layers, got {kinds!r}"
        )
    return family, form


def _is_idle(key: str, config: dict, form: Form) -> bool:
    """Whether an entry has no effect: a window that the class lets be switched off, or as wide as the
    positions."""
    width, positions = config[key], config.get("max_position_embeddings")
    if key != "sliding_window" or type(width) is not int or width < 0:
        return False
    off = "use_sliding_window" in form.fields and config.get("use_sliding_window") is False
    return off or (type(positions) is int and width >= positions)


def is_tied(config: dict, source: str) -> bool:
    """Returns whether the head's weights are those of the embedding.

    A missing entry is False, whatever a class has as its default: then the folder has a head.
    """
    tied = config.get("tie_word_embeddings")
    if tied not in (True, False, None):
        raise BarError(f"{source}: tie_word_embeddings must be true or false, got {tied!r}")
    return bool(tied)


def number_of_experts(config: dict, form: Form, source: str) -> int:
    """Returns it from whichever of the entries there are; 0 in a dense model."""
    found = {key: config[key] for key in form.experts if config.get(key) is not None}
    if form.experts and not found:
        raise BarError(f"{source}: {form.experts[0]} is missing: expected a value, got none")
    for key, value in found.items():
        first = next(iter(found))
        if type(value) is not int or value != found[first] or value == 0:
            wanted = "an integer from 2" if key == first else f"{found[first]!r} as {first} says"
            raise BarError(f"{source}: {key} must be {wanted}, got {value!r}")
    return next(iter(found.values()), 0)


def head_dim(config: dict, family: Family, source: str) -> int | None:
    """Returns the width of a head that config.json says, None where it follows from the hidden size."""
    given = config.get("head_dim")
    if given is None and family.head_dim == "needed":
        raise BarError(
            f"{source}: head_dim is missing: expected a number, got none (readers' defaults differ)"
        )
    return given


def experts_per_layer(config: dict, source: str) -> tuple[int, ...]:
    """Returns the active experts of every layer where the layers differ, else an empty tuple."""
    layers = config.get("num_experts_per_layer")
    layers = [] if layers is None else layers
    if not isinstance(layers, list):
        raise BarError(f"{source}: num_experts_per_layer must be a list of numbers, got {layers!r}")
    return tuple(layers)
