"""The only file that knows Megatron's GPTModel: from a config to this rank's part of a model.

``model(ids, positions, labels=labels)`` is the one forward pass of every stage: next-token loss, SFT loss,
GRPO's log-probabilities and router training are reductions of the ``nll`` it returns.

Legend: b batch, s sequence, h hidden, v vocabulary columns of this rank. Megatron's layers are sequence
first.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.mappings import (
    gather_from_sequence_parallel_region,
    gather_from_tensor_model_parallel_region,
)
from torch import Tensor

from megatron_bar.conversion.ops import WeightOp
from megatron_bar.conversion.parameters import VOCABULARY_UNIT, weight_ops
from megatron_bar.models.attention import Kernels, KVCache, Sequences, rope_of
from megatron_bar.models.block import block_spec, global_name, megatron_config
from megatron_bar.models.cross_entropy import token_nll
from megatron_bar.models.kernels import few_sizes
from megatron_bar.models.moe import Router, Routing
from megatron_bar.parallel.state import ParallelConfig, padded_vocab_size
from megatron_bar.weights.hf_config import ModelConfig


def learnt_places(labels: Tensor) -> Tensor:
    """Returns the places of labels ``[b, s]`` that are not below 0 in the flat ``[s * b]``, int64, with some
    others behind them: so that there are few numbers of them, and never none, on any rank."""
    unlearnt = labels.t().flatten() < 0
    count = len(unlearnt) - int(unlearnt.sum())
    return unlearnt.int().argsort(stable=True)[: few_sizes(max(count, 1))]


class LanguageModel(GPTModel):
    """This rank's layers of a model, dense or a mixture, on this rank's device."""

    def __init__(self, shape: ModelConfig, layout: ParallelConfig, *, recompute: bool, attention: Kernels):
        megatron = megatron_config(shape, layout, recompute=recompute)
        spec = block_spec(shape, megatron, shape.num_layers // layout.pipeline, attention=attention)
        super().__init__(
            config=megatron,
            transformer_layer_spec=spec,
            vocab_size=padded_vocab_size(shape.vocab_size, layout.tensor, VOCABULARY_UNIT[shape.dtype]),
            max_sequence_length=shape.max_positions,
            pre_process=parallel_state.is_pipeline_first_stage(),
            post_process=parallel_state.is_pipeline_last_stage(),
            position_embedding_type="none",  # RoPE belongs to the attention core, which knows the positions
            pg_collection=ProcessGroupCollection.use_mpu_process_groups(),
        )
        if self.post_process:
            # It gets all positions, of which some are picked, and sums the ranks' gradients of them.
            self.output_layer.sequence_parallel = False
        self.shape = shape
        self.rope = rope_of(shape)
        self.layout = layout
        self.attention = attention
        # Counted on this rank: its cache has rows for its own layers alone.
        for index, layer in enumerate(self.decoder.layers):
            layer.self_attention.core_attention.layer = index
        self.routing = Routing(active=shape.active)
        self.route(self.routing)
        if self.pre_process:
            self.embedding.register_forward_hook(_canonical)
        if self.pre_process and recompute:
            # An activation checkpoint whose input needs no gradient gives none to the layers inside it: with
            # a frozen embedding the experts of the first layers would silently stay as they are.
            self.embedding.register_forward_hook(
                lambda _, __, out: (
                    out.requires_grad_() if torch.is_grad_enabled() and not out.requires_grad else out
                )
            )

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        *,
        labels: Tensor | None = None,
        learnt: Tensor | None = None,
        documents: Tensor | None = None,
        cache: KVCache | None = None,
        slots: Tensor | None = None,
        reach: int | None = None,
        keep: Tensor | None = None,
        temperature: float = 1.0,
    ) -> tuple[Tensor, Tensor] | Tensor:
        """Passes over ``ids`` ``[b, s]`` (int64) at ``positions`` ``[b, s]``.

        With ``labels`` ``[b, s]`` (the token each position should predict; negative: no loss there) it
        returns ``(nll, lse)``, both ``[b, s]`` fp32, of the distribution at ``temperature``; without, the
        logits ``[b, s, vocab_size]``, gathered over TP, without the padding. Pipeline ranks before the last
        return hidden states for the next one instead. ``learnt``: places in the flat ``[s * b]`` of the
        labels that matter (see `learnt_places`): the head sees these alone, elsewhere both values are 0.

        ``documents`` ``[b, s]``: ids of packed documents; attention stays inside each. ``cache``, ``slots``,
        ``reach``: see `Sequences`; ``keep`` then picks the positions of the flat batch whose logits are
        wanted.
        """
        seqs = Sequences(positions=positions, documents=documents, cache=cache, slots=slots, reach=reach)
        seqs.prepare(rope=self.rope, kernels=self.attention, dtype=self.config.params_dtype)
        return super().forward(
            ids,
            positions,
            None,
            packed_seq_params=seqs,  # which Megatron hands to the attention core as it is
            output_processor=self._nll if labels is not None else self._logits,
            output_processor_context=keep if labels is None else (labels, learnt, temperature),
        )

    # Megatron calls these two with what its decoder leaves: keywords of its choice, hidden states ``[s, b,
    # h]``.
    def _nll(
        self, *, hidden_states: Tensor, context: tuple[Tensor, Tensor | None, float], **_
    ) -> tuple[Tensor, Tensor]:
        labels_bs, learnt, temperature = context
        hidden_sbh = self._whole(hidden_states)
        wanted_bs = labels_bs
        if learnt is not None:  # as rows of a batch of one
            hidden_sbh = hidden_sbh.flatten(0, 1)[learnt, None]
            wanted_bs = labels_bs.t().flatten()[None, learnt]
        logits_sbv, _ = self.output_layer(hidden_sbh)
        logits_sbv = logits_sbv if temperature == 1 else logits_sbv / temperature
        found = token_nll(
            logits_sbv, wanted_bs, vocab_size=self.shape.vocab_size, group=self.pg_collection.tp
        )
        if learnt is None:
            return found
        b, s = labels_bs.shape
        nll_bs, lse_bs = (
            value.new_zeros(s * b).index_copy(0, learnt, value[0]).view(s, b).t() for value in found
        )
        return nll_bs, lse_bs

    def _logits(self, *, hidden_states: Tensor, context: Tensor | None, **_) -> Tensor:
        hidden_sbh = self._whole(hidden_states)
        if context is not None:  # before the head: of a prompt only the last token's logits are wanted
            hidden_sbh = hidden_sbh[context]
        logits_sbv = F.linear(hidden_sbh, self.output_layer.weight)
        logits = gather_from_tensor_model_parallel_region(logits_sbv, group=self.pg_collection.tp)
        return logits.transpose(0, 1)[..., : self.shape.vocab_size]

    def _whole(self, hidden_sbh: Tensor) -> Tensor:
        """Returns the hidden states of all positions, which tensor ranks may have shared out."""
        if not self.config.sequence_parallel:
            return hidden_sbh
        # All ranks go on with the same, so that each takes its part of one gradient.
        return gather_from_sequence_parallel_region(
            hidden_sbh, tensor_parallel_output_grad=False, group=self.pg_collection.tp
        )

    def new_cache(self, *, rows: int, max_length: int, dtype: torch.dtype | None = None) -> KVCache:
        """Returns an empty cache for the layers of this rank, of the model's dtype unless another is
        named."""
        return KVCache(
            layers=len(self.decoder.layers),
            rows=rows,
            heads=self.shape.num_kv_heads // self.layout.tensor,
            max_length=max_length,
            width=self.shape.head_dim,
            dtype=dtype or self.config.params_dtype,
        )

    def parameters_with_ops(self) -> Iterator[tuple[str, torch.nn.Parameter, WeightOp]]:
        """Yields this rank's parameters: name, parameter, and how it is cut from the folder's tensors."""
        first_layer = self.decoder.layers[0].layer_number - 1
        # A rank counts its layers and experts from 0; the folder counts those of the whole model.
        spread, _ = self.layout.expert_sizes(self.shape)
        first_expert = parallel_state.get_expert_model_parallel_rank() * (self.shape.num_experts // spread)
        ops = weight_ops(self.shape)
        for name, param in self.named_parameters():
            yield name, param, ops[global_name(name, first_layer=first_layer, first_expert=first_expert)]

    def route(self, routing: Routing) -> None:
        """Makes ``routing`` that of every router from the next pass on; a dense model has none to tell.

        Whole experts on ranks of their own, which Megatron's dispatcher serves, stay with the number of
        active ones that they were built with.
        """
        assert len(routing.active) == self.shape.num_layers, (routing.active, self.shape.num_layers)
        assert self.config.expert_model_parallel_size == 1 or routing.active == self.shape.active
        self.routing = routing
        for router in self.routers():
            router.routing = routing

    def routers(self) -> list[Router]:
        """Returns the routers of this rank's layers; none in a dense model."""
        return [layer.mlp.router for layer in self.decoder.layers] if self.shape.num_experts else []


@contextmanager
def evaluating(model: LanguageModel) -> Iterator[None]:
    """Puts the model into evaluation mode for the life of the block, and back."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def inputs_of_layers(model: LanguageModel) -> Iterator[list[Tensor]]:
    """Gathers, for the life of the block, what each of this rank's layers is given: hidden states ``[s, b,
    h]``, of which tensor ranks may have a part each."""
    found: list[Tensor] = []

    def keep(layer: torch.nn.Module, args: tuple, named: dict) -> None:
        found.append(args[0] if args else named["hidden_states"])

    hooks = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in model.decoder.layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def from_layer(model: LanguageModel, number: int, hidden_sbh: Tensor) -> Iterator[None]:
    """Lets passes begin, for the life of the block, at the layer ``number``, which is given ``hidden_sbh``.
    Of a model that is on one pipeline rank."""
    layers = model.decoder.layers
    model.decoder.layers = layers[number:]
    hook = model.embedding.register_forward_hook(lambda *_: hidden_sbh)
    try:
        yield
    finally:
        model.decoder.layers = layers
        hook.remove()


def _canonical(module: torch.nn.Module, given: tuple, hidden_sbh: Tensor) -> Tensor:
    """Returns the same values with the strides of a fresh tensor.

    Of one sequence a transposed tensor counts as contiguous, and torch then multiplies it with a matrix token
    by token (`torch.matmul` folds tokens into one product by their strides).
    """
    return hidden_sbh.flatten(0, 1).unflatten(0, hidden_sbh.shape[:2])


def build_model(
    shape: ModelConfig, layout: ParallelConfig, *, recompute: bool = False, attention: Kernels = "torch"
) -> LanguageModel:
    """Returns this rank's part of the model, its weights not yet set (see shards.load_folder)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LanguageModel(shape, layout, recompute=recompute, attention=attention)
