"""The shape of a model: its config.json, and the tensors that follow from it.

Tensor names are the ones that every family has inside this project: transformers' dense names, and FlexOlmo's
of experts; `Form.file_name` says what they are called in a file.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_bar.errors import BarError
from megatron_bar.weights.families import FAMILIES, FAMILY_OF
from megatron_bar.weights.family import HIDDEN, Family, Form
from megatron_bar.weights.hf_fields import (
    experts_per_layer,
    head_dim,
    is_tied,
    number_of_experts,
    read_family,
)
from megatron_bar.weights.json_file import read_object
from megatron_bar.weights.regular import require_inside
from megatron_bar.weights.rope import Llama3Rope, read_rope, rope_entries

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
_MOST_FFNS = 2**16
"""Experts of all layers together."""
ROUTER = ".mlp.gate.weight"
"""What follows a layer's name in that of its router."""

type Active = int | tuple[int, ...]
"""How many experts a token uses: in every layer alike, or layer by layer from the first."""
_FLOAT32_MAX = 3.4e38


def is_token_id(value: object, vocab_size: int) -> bool:
    return type(value) is int and 0 <= value < vocab_size


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything config.json says that changes a number. A dense model has ``num_experts == 0``."""

    family: str = "olmo2"
    """Name of its `Family`."""
    vocab_size: int
    """True vocabulary, without any padding for tensor parallelism."""
    hidden_size: int
    intermediate_size: int
    """Width of one (expert's) SwiGLU FFN."""
    num_layers: int
    num_heads: int
    num_kv_heads: int
    own_head_dim: int | None = None
    """Width of a head where it is not hidden_size / num_heads."""
    max_positions: int
    rope_theta: float
    rope_scaling: Llama3Rope | None = None
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
        if self.family not in FAMILIES:
            raise BarError(f"config: family must be one of {', '.join(FAMILIES)}, got {self.family!r}")
        for name, largest in _LARGEST.items():
            value = vars(self)[name]
            if type(value) is not int or not 1 <= value <= largest:
                raise BarError(f"config: {name} must be an integer from 1 to {largest}, got {value!r}")
        for name in ("rope_theta", "rms_norm_eps", "initializer_range"):
            value = vars(self)[name]
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _FLOAT32_MAX:
                raise BarError(f"config: {name} must be a positive number that float32 holds, got {value!r}")
        self._check_heads()
        if self.dtype not in DTYPES:
            raise BarError(f"config: dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.rope_scaling is not None and "llama3" not in self.block.ropes:
            raise BarError(
                f"config: rope_scaling must be null in family {self.family}, got {self.rope_scaling}"
            )
        self._check_experts()
        self._check_token_ids()

    def _check_heads(self):
        own = self.own_head_dim
        if own is not None and (type(own) is not int or not 1 <= own <= _LARGEST["hidden_size"]):
            raise BarError(f"config: head_dim must be an integer from 1, got {own!r}")
        if own is None and self.hidden_size % self.num_heads:
            raise BarError(
                f"config: hidden_size {self.hidden_size} is not divisible "
                f"by num_attention_heads {self.num_heads}"
            )
        if own is not None and own * self.num_heads == self.hidden_size:  # one way to say it
            object.__setattr__(self, "own_head_dim", None)
        elif own is not None and self.block.head_dim == "derived":
            raise BarError(
                f"config: head_dim must be hidden_size / num_attention_heads = "
                f"{self.hidden_size / self.num_heads:g} in family {self.family}, got {own!r}"
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
            if self.num_layers * self.num_experts > _MOST_FFNS:
                got = self.layers_in_words
                raise BarError(f"config: num_experts must be at most {_MOST_FFNS} in all layers, got {got}")
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
        if self.form.renormalises and not self.norm_topk_prob:
            raise BarError(
                f"config: norm_topk_prob must be true: {self.form.architecture} renormalises, got False"
            )

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
    def block(self) -> Family:
        """What the blocks are, and how classes of transformers say it."""
        return FAMILIES[self.family]

    @property
    def form(self) -> Form:
        """The class that a folder of it is of."""
        return self.block.form(self.num_experts)

    @property
    def model_type(self) -> str:
        return self.form.model_type

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.own_head_dim or self.hidden_size // self.num_heads

    @property
    def query_size(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Width of all key heads together, and of all value heads."""
        return self.num_kv_heads * self.head_dim

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
        2); of a dense one, the probabilities are renormalised where the family needs it."""
        return replace(
            self,
            family=FAMILY_OF[self.block.mixture.model_type].name,  # as a reader of the folder will find it
            num_experts=num_experts,
            experts_per_token=num_experts,
            experts_per_layer=(),
            norm_topk_prob=self.norm_topk_prob if self.num_experts else self.block.renormalised_start,
        )

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
        family, form = read_family(config, source)
        is_tied(config, source)

        def need(key):
            if config.get(key) is None:
                raise BarError(f"{source}: {key} is missing: expected a value, got none")
            return config[key]

        experts = number_of_experts(config, form, source)
        heads = need("num_attention_heads")
        kv_heads = config.get("num_key_value_heads")
        norm_topk_prob = config.get("norm_topk_prob")
        eos = config.get("eos_token_id")
        try:
            theta, scaling = read_rope(config, source, family.ropes)
            return cls(
                family=family.name,
                vocab_size=need("vocab_size"),
                hidden_size=need("hidden_size"),
                intermediate_size=need(form.width),
                num_layers=need("num_hidden_layers"),
                num_heads=heads,
                num_kv_heads=heads if kv_heads is None else kv_heads,
                own_head_dim=head_dim(config, family, source),
                max_positions=need("max_position_embeddings"),
                rope_theta=theta,
                rope_scaling=scaling,
                rms_norm_eps=need("rms_norm_eps"),
                num_experts=experts,
                experts_per_token=need("num_experts_per_tok") if experts else 0,
                experts_per_layer=experts_per_layer(config, source),
                norm_topk_prob=form.renormalises if norm_topk_prob is None else norm_topk_prob,
                initializer_range=config.get("initializer_range", 0.02),
                pad_token_id=config.get("pad_token_id"),
                bos_token_id=config.get("bos_token_id"),
                eos_token_id=tuple(eos) if isinstance(eos, list) else eos,
                dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32"),
            )
        except BarError as error:
            said = str(error).removeprefix(f"{source}: ").removeprefix("config: ")
            raise BarError(f"{source}: {said}") from None

    def to_hf(self) -> dict:
        """Returns the dictionary written as config.json; read alike by transformers 4.57, 5 and vLLM."""
        eos = self.eos_token_id
        form = self.form
        config = {
            "architectures": [form.architecture],
            "model_type": form.model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "max_position_embeddings": self.max_positions,
            **rope_entries(self.rope_theta, self.rope_scaling),
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": False,
            "initializer_range": self.initializer_range,
            "pad_token_id": self.pad_token_id,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": list(eos) if isinstance(eos, tuple) else eos,
            "dtype": self.dtype,
            "torch_dtype": self.dtype,
            **form.fields,
        }
        if self.block.head_dim != "derived":
            config["head_dim"] = self.head_dim
        if self.num_experts:
            config |= dict.fromkeys(form.experts, self.num_experts)
            config |= {
                form.width: self.intermediate_size,
                "num_experts_per_tok": self.experts_per_token,
                "norm_topk_prob": self.norm_topk_prob,
            }
            if self.experts_per_layer:
                config["num_experts_per_layer"] = list(self.experts_per_layer)
        return config


def show_active(active: Active) -> str:
    """Returns it as the tools read it: ``2``, or ``5,2,2``."""
    return ",".join(map(str, active)) if isinstance(active, tuple) else str(active)


def read_config(folder: Path | str) -> ModelConfig:
    """Returns the config of a Hugging Face folder; raises one line that says what is wrong with it."""
    return read_config_and_tie(folder)[0]


def read_config_and_tie(folder: Path | str) -> tuple[ModelConfig, bool]:
    """Returns the config, as `read_config` does, and whether the head's weights are the embedding's."""
    path = Path(folder) / "config.json"
    require_inside(path)
    config = read_object(path, expected="a Hugging Face model folder")
    return ModelConfig.from_hf(config, source=str(path)), is_tied(config, str(path))


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor of the model by its name in this project, in file order.

    Experts have names of their own, as on disk (transformers 5 fuses them only in memory).
    """
    h = config.hidden_size
    f = config.intermediate_size
    before = config.block.norms == "before"
    ffn = {"gate_proj": (f, h), "up_proj": (f, h), "down_proj": (h, f)}
    shapes = {"model.embed_tokens.weight": (config.vocab_size, h)}
    for n in range(config.num_layers):
        layer = f"model.layers.{n}"
        if before:
            shapes[f"{layer}.input_layernorm.weight"] = (h,)
        shapes |= {f"{layer}.self_attn.{p}": s for p, s in _attention_shapes(config).items()}
        shapes[f"{layer}.post_attention_layernorm.weight"] = (h,)
        if config.num_experts:
            shapes[f"{layer}{ROUTER}"] = (config.num_experts, h)
            for e in range(config.num_experts):
                shapes |= {f"{layer}.mlp.experts.{e}.{p}.weight": s for p, s in ffn.items()}
        else:
            shapes |= {f"{layer}.mlp.{p}.weight": s for p, s in ffn.items()}
        if not before:
            shapes[f"{layer}.post_feedforward_layernorm.weight"] = (h,)
    return shapes | {"model.norm.weight": (h,), "lm_head.weight": (config.vocab_size, h)}


def _attention_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    h = config.hidden_size
    q = config.query_size
    kv = config.key_value_size
    shapes = {"q_proj.weight": (q, h), "k_proj.weight": (kv, h), "v_proj.weight": (kv, h)}
    if config.block.qkv_bias:
        shapes |= {"q_proj.bias": (q,), "k_proj.bias": (kv,), "v_proj.bias": (kv,)}
    shapes["o_proj.weight"] = (h, q)
    if config.block.qk_norm == "width":
        shapes |= {"q_norm.weight": (q,), "k_norm.weight": (kv,)}
    elif config.block.qk_norm == "head":
        shapes |= {"q_norm.weight": (config.head_dim,), "k_norm.weight": (config.head_dim,)}
    return shapes


def zeros_beside(config: ModelConfig, name: str) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the zeros that stand beside tensor ``name`` in a folder, by their names there: a
    layer's beside its router (`Form.zeros`)."""
    layer = name.removesuffix(ROUTER)
    if layer == name:
        return {}
    h = config.hidden_size
    return {
        f"{layer}.{zero}": tuple(h if size == HIDDEN else size for size in shape)
        for zero, shape in config.form.zeros.items()
    }


def num_parameters(config: ModelConfig) -> int:
    """Counts all parameters (as published: 7,298,011,136 dense, 11,626,795,008 for 2x7B)."""
    return sum(math.prod(shape) for shape in tensor_shapes(config).values())
