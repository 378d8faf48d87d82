"""Floating-point operations of a model's passes, by formula.

A product of a vector with a matrix of n entries takes 2 n; a backward pass takes the same for the gradient of
its input, where something below it trains, and the same for the gradient of the matrix, where it trains
itself. Attention takes 4 times the width of all query heads for each pair of tokens of which one attends to
the other, and twice that backwards.
Sources: PaLM (arXiv 2204.02311), appendix B; Megatron-LM, `num_floating_point_operations`, which likewise
counts the causal half of the pairs; here only pairs within a document count. The freeze is this project's.
Left out: norms, activations, softmax, RoPE, the optimizer, the rows that pad the vocabulary, and what is
recomputed. With fewer than all experts active each expert is taken to get its equal share of the tokens.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from megatron_bar.weights.groups import FreezePolicy, ParamGroup
from megatron_bar.weights.hf_config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Flops:
    """What one pass takes."""

    token: float
    """Operations for every token."""
    pair: float
    """Operations for every pair of tokens of which one attends to the other."""
    head: float
    """Operations for every token whose distribution is computed."""

    def __call__(self, *, tokens: int, pairs: int, heads: int | None = None) -> float:
        """Returns the operations of a pass; ``heads``: tokens whose distribution is computed; None: all."""
        return self.token * tokens + self.pair * pairs + self.head * (tokens if heads is None else heads)


@dataclass(frozen=True, kw_only=True)
class _Product:
    """One matrix product of the forward pass, or a layer's attention."""

    part: str
    flops: float
    input_needs: bool
    """Whether its input's gradient is wanted."""
    trains: bool = False

    @property
    def backward(self) -> float:
        """Operations of its backward pass."""
        factor = 2 if self.part == "pair" else 1
        return self.flops * (factor * self.input_needs + self.trains)


def _products(config: ModelConfig, trains: frozenset[ParamGroup]) -> Iterator[_Product]:
    """From the embedding up; each knows whether something below it trains."""
    h = config.hidden_size
    q = config.query_size
    kv = config.key_value_size
    before = config.block.norms == "before"
    group = ParamGroup
    attention = group.ATTENTION in trains
    norm = group.BLOCK_NORM in trains
    needs = group.EMBEDDING in trains
    for _ in range(config.num_layers):
        needs = needs or (norm and before)
        yield _Product(part="token", flops=2 * h * (q + 2 * kv), input_needs=needs, trains=attention)
        needs = needs or attention
        yield _Product(part="pair", flops=4 * q, input_needs=needs)
        yield _Product(part="token", flops=2 * h * q, input_needs=needs, trains=attention)
        needs = needs or norm
        yield from _ffn(config, trains, needs)
        needs = needs or norm or not trains.isdisjoint(_FFN)
    needs = needs or group.FINAL_NORM in trains
    yield _Product(
        part="head", flops=2 * h * config.vocab_size, input_needs=needs, trains=group.LM_HEAD in trains
    )


_FFN = {ParamGroup.FFN, ParamGroup.ANCHOR_EXPERT, ParamGroup.DOMAIN_EXPERT, ParamGroup.ROUTER}


def _ffn(config: ModelConfig, trains: frozenset[ParamGroup], needs: bool) -> Iterator[_Product]:
    size = config.hidden_size * config.intermediate_size
    experts = config.num_experts
    router = ParamGroup.ROUTER in trains
    if experts:
        yield _Product(part="token", flops=2 * config.hidden_size * experts, input_needs=needs, trains=router)
    ffns = (
        {ParamGroup.ANCHOR_EXPERT: 1, ParamGroup.DOMAIN_EXPERT: experts - 1}
        if experts
        else {ParamGroup.FFN: 1}
    )
    active = sum(config.active) / (experts * config.num_layers) if experts else 1  # of the layers' mean
    for group, count in ffns.items():
        share = 2 * size * count * active  # the product down; gate and up are twice that
        own = group in trains
        yield _Product(part="token", flops=2 * share, input_needs=needs, trains=own)
        # The router's gradient is taken from what comes out of the product down, which is kept.
        yield _Product(part="token", flops=share, input_needs=needs or own, trains=own)


def _sum(products: Iterable[_Product], cost: Callable[[_Product], float]) -> Flops:
    total = {"token": 0.0, "pair": 0.0, "head": 0.0}
    for product in products:
        total[product.part] += cost(product)
    return Flops(**total)


def forward(config: ModelConfig) -> Flops:
    """Returns what a forward pass takes."""
    return _sum(_products(config, frozenset()), lambda product: product.flops)


def backward(config: ModelConfig, policy: FreezePolicy) -> Flops:
    """Returns what a backward pass takes where ``policy`` says what trains."""
    return _sum(_products(config, policy.trains), lambda product: product.backward)
