"""What differs between the dense models that BAR branches, as a value: the classes that say such a model and
its mixture, their entries in config.json, names on disk, and the block.

Inside this project every family has the same names, those of `tensor_shapes`; only where a file is read or
written are they another's (`Form.file_name`). A family's own file holds its value: weights/families.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

HIDDEN = 0
"""In the shape of a constant: the model's hidden size."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a class of transformers says a model: the dense one of a family, or its mixture."""

    model_type: str
    architecture: str
    fields: Mapping[str, object] = field(default_factory=dict)
    """Entries of config.json, each with the only value that is computed here; they are written as they
    are."""
    experts: tuple[str, ...] = ()
    """Entries that say how many experts there are: readers know one or another, so all are written."""
    width: str = "intermediate_size"
    """Entry that says how wide an FFN or an expert is."""
    renormalises: bool = False
    """Whether the class renormalises the chosen probabilities in any case; else ``norm_topk_prob`` says
    it."""
    tensor_within_experts: bool = False
    """Whether vLLM's class (0.32) refuses a tensor parallelism above the number of experts."""
    renames: Mapping[str, str] = field(default_factory=dict)
    """Parts of a tensor's name here, and what stands for them in a file."""
    zeros: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Tensors of every layer, by what follows its name, that this class has and the block has not: zeros,
    which leave it as it is. They are written, checked where they are read, and otherwise unknown here."""

    def file_name(self, name: str) -> str:
        """Returns what the tensor ``name`` is called in a file."""
        for ours, theirs in self.renames.items():
            name = name.replace(f".{ours}.", f".{theirs}.")
        return name

    def our_name(self, name: str) -> str:
        """Returns what the tensor that a file calls ``name`` is called here."""
        for ours, theirs in self.renames.items():
            name = name.replace(f".{theirs}.", f".{ours}.")
        return name


@dataclass(frozen=True, kw_only=True)
class Family:
    """A kind of dense decoder with RMSNorm, RoPE and SwiGLU, and the mixture whose blocks are the same."""

    name: str
    dense: Form
    mixture: Form
    norms: Literal["before", "after"]
    """Where norms stand: before attention and FFN, or behind them, on what is added."""
    casts_first: bool
    """Whether what norms and RoPE multiply is cast to the model's dtype before (Llama), or behind (OLMo
    2)."""
    qk_norm: Literal["none", "head", "width"]
    """Which values of queries and of keys are normalised together: those of a head, or of all heads."""
    qkv_bias: bool = False
    head_dim: Literal["derived", "optional", "needed"]
    """Whether config.json says a head's width. needed: its readers disagree on what it is otherwise."""
    ropes: tuple[str, ...] = ("default",)
    """Kinds of RoPE that both classes have."""

    @property
    def renormalised_start(self) -> bool:
        """Whether a mixture starts renormalised. Behind a block a norm cancels the sum of the chosen
        probabilities; with norms before it nothing does, and fewer than all experts would shrink the FFN."""
        return self.norms == "before"

    def form(self, num_experts: int) -> Form:
        """Returns the class for so many experts; 0: dense."""
        return self.mixture if num_experts else self.dense
