"""The shape of a model: config.json of OLMo 2 and FlexOlmo, and the tensors that follow from it.

Field names and tensor names are those of transformers (models/olmo2, models/flex_olmo).
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_bar.errors import BarError
from megatron_bar.weights.hf_fields import (
    ARCHITECTURES,
    DENSE,
    MOE,
    experts_per_layer,
    require_supported,
    rope_theta,
)
from megatron_bar.weights.json_file import read_object

DTYPES = ("float32", "bfloat16", "float16")
_LARGEST = {
    "vocab_size": 2**31,
    "hidden_size": 2**20,
    "intermediate_size": 2**24,
    "num_layers": 2**10,
    "num_heads": 2**16,
    "num_kv_heads": 2**16,
    "max_positions": 2**31,
}
"""Bounds far above any model: what exceeds one is a mistake, and found before memory is asked for."""
_MOST_EXPERTS = 2**10

type Active = int | tuple[int, ...]
"""How many experts a token uses: in every layer alike, or layer by layer from the first."""
_FLOAT32_MAX = 3.4e38


def is_token_id(value: object, vocab_size: int) -> bool:
    return type(value) is int and 0 <= value < vocab_size


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything config.json says that changes a number. Dense OLMo 2 has ``num_experts == 0``."""

    vocab_size: int
    """True vocabulary, without any padding for tensor parallelism."""
    hidden_size: int
    intermediate_size: int
    """Width of one (expert's) SwiGLU FFN."""
    num_layers: int
    num_heads: int
    num_kv_heads: int
    max_positions: int
    rope_theta: float
    rms_norm_eps: float
    num_experts: int = 0
    experts_per_token: int = 0
    """Experts per token as config.json says: of all layers or, where they differ, of the layer with most."""
    experts_per_layer: tuple[int, ...] = ()
    """Experts per token of every layer where they differ, else empty; unknown to transformers and vLLM."""
    norm_topk_prob: bool = False
    """Whether the selected experts' probabilities are renormalised to sum to one."""
    initializer_range: float = 0.02
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    dtype: str = "float32"

    def __post_init__(self):
        for name, largest in _LARGEST.items():
            value = vars(self)[name]
            if type(value) is not int or not 1 <= value <= largest:
                raise BarError(f"config: {name} must be an integer from 1 to {largest}, got {value!r}")
        for name in ("rope_theta", "rms_norm_eps", "initializer_range"):
            value = vars(self)[name]
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _FLOAT32_MAX:
                raise BarError(f"config: {name} must be a positive number that float32 holds, got {value!r}")
        if self.hidden_size % self.num_heads:
            raise BarError(
                f"config: hidden_size {self.hidden_size} is not divisible "
                f"by num_attention_heads {self.num_heads}"
            )
        if self.head_dim % 2:
            raise BarError(
                f"config: the head width {self.head_dim} (hidden_size / num_attention_heads) "
                "must be even for RoPE"
            )
        if self.num_heads % self.num_kv_heads:
            raise BarError(
                f"config: num_attention_heads {self.num_heads} is not divisible "
                f"by num_key_value_heads {self.num_kv_heads}"
            )
        if self.dtype not in DTYPES:
            raise BarError(f"config: dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        self._check_experts()
        self._check_token_ids()

    def _check_experts(self):
        for name in ("num_experts", "experts_per_token"):
            value = vars(self)[name]
            if isinstance(value, bool) or not isinstance(value, int):
                raise BarError(f"config: {name} must be an integer, got {value!r}")
        if self.num_experts:
            if not 2 <= self.num_experts <= _MOST_EXPERTS:
                raise BarError(
                    f"config: num_experts must be from 2 to {_MOST_EXPERTS}, got {self.num_experts}"
                )
            if not 1 <= self.experts_per_token <= self.num_experts:
                raise BarError(
                    f"config: num_experts_per_tok must be between 1 and num_experts {self.num_experts}, "
                    f"got {self.experts_per_token}"
                )
        layers = self.experts_per_layer
        if layers and (len(layers) != self.num_layers or any(type(k) is not int or k < 1 for k in layers)):
            raise BarError(
                f"config: num_experts_per_layer must be {self.num_layers} numbers from 1, got {list(layers)}"
            )
        if layers and max(layers) != self.experts_per_token:
            raise BarError(
                f"config: num_experts_per_tok must be {max(layers)}, the most of num_experts_per_layer, "
                f"got {self.experts_per_token}"
            )
        if not isinstance(self.norm_topk_prob, bool):
            raise BarError(f"config: norm_topk_prob must be true or false, got {self.norm_topk_prob!r}")

    def _check_token_ids(self):
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            value = vars(self)[name]
            several = name == "eos_token_id" and isinstance(value, tuple)
            ids = value if several else () if value is None else (value,)
            if not all(is_token_id(item, self.vocab_size) for item in ids):
                raise BarError(
                    f"config: {name} must be below vocab_size {self.vocab_size} or null, got {value!r}"
                )

    @property
    def family(self) -> str:
        return MOE if self.num_experts else DENSE

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def least_tensors(self) -> int:
        """A bound below the number of tensors, known before all their names are made."""
        return self.num_layers * max(1, self.num_experts)

    @property
    def layers_in_words(self) -> str:
        experts = f" of {self.num_experts} experts" if self.num_experts > 0 else ""
        return f"{self.num_layers} layers{experts}"

    def with_experts(self, num_experts: int) -> "ModelConfig":
        """Returns the same backbone with ``num_experts`` FFNs per layer, all active (FlexOlmo; BAR section
        2)."""
        return replace(self, num_experts=num_experts, experts_per_token=num_experts, experts_per_layer=())

    @property
    def active(self) -> tuple[int, ...]:
        """Experts that a token uses, layer by layer."""
        return self.experts_per_layer or (self.experts_per_token,) * self.num_layers

    def with_active(self, active: Active) -> "ModelConfig":
        """Returns the same model with so many experts per token; refuses what it cannot do."""
        layers = active if isinstance(active, tuple) else (active,) * self.num_layers
        if not self.num_experts:
            raise BarError(f"active experts expected none of a dense model, got {show_active(active)}")
        if len(layers) != self.num_layers:
            raise BarError(
                f"active experts expected one number or {self.num_layers}, one per layer, got {len(layers)}"
            )
        if wrong := [k for k in layers if type(k) is not int or not 1 <= k <= self.num_experts]:
            raise BarError(f"active experts expected from 1 to {self.num_experts}, got {wrong[0]}")
        per_layer = layers if len(set(layers)) > 1 else ()
        return replace(self, experts_per_token=max(layers), experts_per_layer=per_layer)

    @classmethod
    def from_hf(cls, config: dict, *, source: str = "config.json") -> "ModelConfig":
        """Reads the dictionary of a config.json; refuses by name what this project does not compute."""
        require_supported(config, source)
        moe = config["model_type"] == MOE

        def need(key):
            if config.get(key) is None:
                raise BarError(f"{source}: {key} is missing: expected a value, got none")
            return config[key]

        experts = need("num_experts") if moe else 0
        if moe and experts == 0:
            raise BarError(f"{source}: num_experts must be from 2 to {_MOST_EXPERTS}, got 0")
        heads = need("num_attention_heads")
        kv_heads = config.get("num_key_value_heads")
        norm_topk_prob = config.get("norm_topk_prob")
        eos = config.get("eos_token_id")
        theta = rope_theta(config, source)
        try:
            parsed = cls(
                vocab_size=need("vocab_size"),
                hidden_size=need("hidden_size"),
                intermediate_size=need("intermediate_size"),
                num_layers=need("num_hidden_layers"),
                num_heads=heads,
                num_kv_heads=heads if kv_heads is None else kv_heads,
                max_positions=need("max_position_embeddings"),
                rope_theta=theta,
                rms_norm_eps=need("rms_norm_eps"),
                num_experts=experts,
                experts_per_token=need("num_experts_per_tok") if moe else 0,
                experts_per_layer=experts_per_layer(config, source),
                norm_topk_prob=False if norm_topk_prob is None else norm_topk_prob,
                initializer_range=config.get("initializer_range", 0.02),
                pad_token_id=config.get("pad_token_id"),
                bos_token_id=config.get("bos_token_id"),
                eos_token_id=tuple(eos) if isinstance(eos, list) else eos,
                dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32"),
            )
        except BarError as error:
            raise BarError(f"{source}: {str(error).removeprefix('config: ')}") from None
        if config.get("head_dim") not in (None, parsed.head_dim):
            raise BarError(
                f"{source}: head_dim must be hidden_size / num_attention_heads = {parsed.head_dim}, "
                f"got {config['head_dim']!r}"
            )
        return parsed

    def to_hf(self) -> dict:
        """Returns the dictionary written as config.json; read alike by transformers 4.57, 5 and vLLM."""
        eos = self.eos_token_id
        config = {
            "architectures": [ARCHITECTURES[self.family]],
            "model_type": self.family,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "max_position_embeddings": self.max_positions,
            "rope_theta": self.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "rms_norm_eps": self.rms_norm_eps,
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "tie_word_embeddings": False,
            "initializer_range": self.initializer_range,
            "pad_token_id": self.pad_token_id,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": list(eos) if isinstance(eos, tuple) else eos,
            "dtype": self.dtype,
            "torch_dtype": self.dtype,
        }
        if self.num_experts:
            config |= {
                "num_experts": self.num_experts,
                "num_experts_per_tok": self.experts_per_token,
                "norm_topk_prob": self.norm_topk_prob,
                "output_router_logits": False,
            }
            if self.experts_per_layer:
                config["num_experts_per_layer"] = list(self.experts_per_layer)
        return config


def show_active(active: Active) -> str:
    """Returns it as the tools read it: ``2``, or ``5,2,2``."""
    return ",".join(map(str, active)) if isinstance(active, tuple) else str(active)


def read_config(folder: Path | str) -> ModelConfig:
    """Returns the config of a Hugging Face folder; raises one line that says what is wrong with it."""
    path = Path(folder) / "config.json"
    return ModelConfig.from_hf(read_object(path, expected="a Hugging Face model folder"), source=str(path))


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor of the folder by name, in file order.

    FlexOlmo's per-expert names are the ones on disk (transformers 5 fuses them only in memory).
    """
    h = config.hidden_size
    f = config.intermediate_size
    q = config.hidden_size
    kv = config.num_kv_heads * config.head_dim
    attention = {
        "q_proj": (q, h),
        "k_proj": (kv, h),
        "v_proj": (kv, h),
        "o_proj": (h, q),
        "q_norm": (q,),
        "k_norm": (kv,),
    }
    ffn = {"gate_proj": (f, h), "up_proj": (f, h), "down_proj": (h, f)}
    shapes = {"model.embed_tokens.weight": (config.vocab_size, h)}
    for n in range(config.num_layers):
        layer = f"model.layers.{n}"
        shapes |= {f"{layer}.self_attn.{p}.weight": s for p, s in attention.items()}
        shapes[f"{layer}.post_attention_layernorm.weight"] = (h,)
        if config.num_experts:
            shapes[f"{layer}.mlp.gate.weight"] = (config.num_experts, h)
            for e in range(config.num_experts):
                shapes |= {f"{layer}.mlp.experts.{e}.{p}.weight": s for p, s in ffn.items()}
        else:
            shapes |= {f"{layer}.mlp.{p}.weight": s for p, s in ffn.items()}
        shapes[f"{layer}.post_feedforward_layernorm.weight"] = (h,)
    return shapes | {"model.norm.weight": (h,), "lm_head.weight": (config.vocab_size, h)}


def num_parameters(config: ModelConfig) -> int:
    """Counts all parameters (as published: 7,298,011,136 dense, 11,626,795,008 for 2x7B)."""
    return sum(math.prod(shape) for shape in tensor_shapes(config).values())
