"""RoPE as config.json says it: plain, or with Llama 3's scaled frequencies.

Source: transformers modeling_rope_utils.py (``default`` and ``llama3``).
"""

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from megatron_bar.errors import BarError


@dataclass(frozen=True, kw_only=True)
class Llama3Rope:
    """Llama 3.1's scaling: long waves are stretched by ``factor``, short ones stay, between lies a blend."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int
    """Positions of the model before it was stretched; bounds of the waves are this over the two factors."""

    def __post_init__(self):
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:
                raise BarError(f"config: rope_scaling: {name} must be a positive number, got {value!r}")
        if type(self.original_max_position_embeddings) is not int or self.factor < 1:
            raise BarError(
                "config: rope_scaling: original_max_position_embeddings must be an integer, factor at "
                f"least 1, got {self.original_max_position_embeddings!r} and {self.factor!r}"
            )
        if self.low_freq_factor >= self.high_freq_factor:
            raise BarError(
                f"config: rope_scaling: low_freq_factor must be below {self.high_freq_factor}, "
                f"got {self.low_freq_factor}"
            )


def read_rope(config: dict, source: str, kinds: tuple[str, ...]) -> tuple[float, Llama3Rope | None]:
    """Returns theta and scaling. Versions of transformers read different ones of three places, so all that
    say it must agree; ``kinds``: what the family's classes have."""
    thetas = {"rope_theta": config.get("rope_theta")}
    scalings = {}
    for key in ("rope_parameters", "rope_scaling"):
        rope = {} if config.get(key) is None else config[key]
        kind = _kind(rope)
        if kind not in kinds:
            wanted = " or ".join("plain RoPE" if name == "default" else f"{name}'s" for name in kinds)
            raise BarError(f"{source}: {key} must be {wanted}, got {rope!r}")
        thetas[f"{key}.rope_theta"] = rope.get("rope_theta")
        if rope:
            scalings[key] = _scaling(rope, f"{source}: {key}") if kind == "llama3" else None
    found = {key: theta for key, theta in thetas.items() if theta is not None}
    if not found:
        why = "readers have different defaults, so it is never guessed"
        raise BarError(f"{source}: rope_theta is missing: expected a number, got none ({why})")
    return _the_same(found, source), _the_same(scalings, source) if scalings else None


def _kind(rope: object) -> str | None:
    """The one kind that an entry says, with nothing but what belongs to it; None where it says more."""
    if not isinstance(rope, dict):
        return None
    said = [rope[name] for name in ("rope_type", "type") if name in rope] or ["default"]
    fields = Llama3Rope.__dataclass_fields__ if said[0] == "llama3" else ()
    part = rope.get("partial_rotary_factor", 1)
    plain = part == 1 and part is not True
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *fields}
    others = any(value is not None for name, value in rope.items() if name not in known)
    one = isinstance(said[0], str) and said.count(said[0]) == len(said)
    return said[0] if one and plain and not others else None


def _scaling(rope: dict, where: str) -> Llama3Rope:
    names = Llama3Rope.__dataclass_fields__
    if missing := [name for name in names if rope.get(name) is None]:
        raise BarError(f"{where}: {missing[0]} is missing: expected a number, got none")
    return Llama3Rope(**{name: rope[name] for name in names})


def _the_same(found: dict, source: str):
    (first, wanted), *others = found.items()
    for key, other in others:
        if other != wanted:
            raise BarError(f"{source}: {key} must be {wanted!r} as {first} says, got {other!r}")
    return wanted


def rope_entries(theta: float, scaling: Llama3Rope | None) -> dict:
    """Returns the entries of config.json, in the places where the versions of transformers look."""
    if scaling is None:
        return {"rope_theta": theta, "rope_parameters": {"rope_type": "default", "rope_theta": theta}}
    scaled = {"rope_type": "llama3"} | asdict(scaling)
    return {"rope_theta": theta, "rope_parameters": scaled | {"rope_theta": theta}, "rope_scaling": scaled}


def inverse_frequencies(theta: float, scaling: Llama3Rope | None, width: int, device: torch.device) -> Tensor:
    """Returns ``[width / 2]`` in fp32: by how much an angle grows from position to position, as transformers
    computes it, every operation in fp32."""
    pairs = torch.arange(0, width, 2, dtype=torch.float, device=device)
    plain = 1.0 / (theta ** (pairs / width))
    if scaling is None:
        return plain
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    positions = scaling.original_max_position_embeddings
    wave = 2 * math.pi / plain
    scaled = torch.where(wave > positions / low, plain / scaling.factor, plain)
    smooth = (positions / wave - low) / (high - low)
    blend = (1 - smooth) * scaled / scaling.factor + smooth * scaled
    between = (wave >= positions / high) & (wave <= positions / low)
    return torch.where(between, blend, scaled)
