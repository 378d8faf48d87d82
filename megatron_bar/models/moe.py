"""The anchored MoE layer: FlexOlmo's router, and a path for "every expert is active" that moves no token twice.

Source: transformers models/flex_olmo (routing), OLMo-core's router z-loss, Megatron-Core's MoELayer (experts, dispatcher).
BAR runs with all experts active (as published), where a dispatcher only copies: here every rank gathers the tokens
of its expert group once, adds up what its experts make of them, and scatters the sums back. For top_k < E Megatron's
all-to-all dispatcher is used as it is.
"""

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.mappings import (
    gather_from_sequence_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


class Router(torch.nn.Module):
    """Softmax over all experts in fp32, then top-k, renormalised or not as ``norm_topk_prob`` says."""

    def __init__(self, *, config: TransformerConfig, pg_collection, is_mtp_layer: bool = False, norm_topk_prob: bool):
        super().__init__()
        self.top_k, self.norm_topk_prob = config.moe_router_topk, norm_topk_prob
        shape = (config.num_moe_experts, config.hidden_size)
        self.weight = torch.nn.Parameter(torch.empty(shape, dtype=config.params_dtype, device=torch.cuda.current_device()))
        if config.perform_initialization:
            config.init_method(self.weight)
        self.weight.sequence_parallel = config.sequence_parallel
        self.z_loss = 0.0
        """Weight of sum over tokens of logsumexp(logits)^2 in the loss; the trainer sets it for every step."""
        self.disabled: tuple[int, ...] = ()
        """Experts that no token goes to: their probability is 0, and the softmax is over the others."""
        self.watch = None
        """Called with (layer number, probabilities ``[t, E]``) while someone measures the routing, else None."""
        self.layer_number = None

    def set_layer_number(self, layer_number: int) -> None:
        self.layer_number = layer_number

    def forward(self, x: Tensor, padding_mask=None) -> tuple[Tensor, Tensor]:
        """``[..., h]`` -> weights ``[t, E]`` in fp32, 0 where not selected, and the selection ``[t, E]``."""
        logits = F.linear(x, self.weight).flatten(0, -2).float()
        if self.disabled:
            logits[:, list(self.disabled)] = float("-inf")
        probs = torch.softmax(logits, dim=-1)
        if self.z_loss and self.training and torch.is_grad_enabled():
            probs = MoEAuxLossAutoScaler.apply(probs, self.z_loss * logits.logsumexp(-1).square().sum())
        if self.watch is not None:
            self.watch(self.layer_number, probs.detach())
        selected = torch.ones_like(probs, dtype=torch.bool)
        if self.top_k < probs.shape[-1]:
            # By the logits: a probability may round to 0, which is what a disabled expert has.
            top = logits.detach().topk(self.top_k, dim=-1).indices
            selected = torch.zeros_like(selected).scatter(-1, top, True)
            probs = probs.masked_fill(~selected, 0.0)
        if self.norm_topk_prob:
            probs = probs / probs.sum(-1, keepdim=True)
        return probs, selected


class AnchoredMoE(MoELayer):
    """Megatron's MoE layer with FlexOlmo's router and the all-experts path."""

    def __init__(self, *args, pg_collection, **kwargs):
        super().__init__(*args, pg_collection=pg_collection, **kwargs)
        self.expert_group = pg_collection.tp_ep
        """The ranks that together hold every expert whole: expert parallel x expert tensor parallel."""

    def forward(self, hidden_states: Tensor, intermediate_tensors=None, padding_mask=None) -> tuple[Tensor, None]:
        if self.config.moe_router_topk < self.config.num_moe_experts:
            return super().forward(hidden_states, intermediate_tensors, padding_mask)
        probs, _ = self.router(hidden_states)
        x, weights = hidden_states.flatten(0, 1), probs.to(hidden_states.dtype)
        group = self.expert_group
        if group.size() > 1:
            x, weights = (gather_from_sequence_parallel_region(t, group=group) for t in (x, weights))
        out = None
        for index, expert in zip(self.local_expert_indices, self.experts.local_experts, strict=True):
            gate, up = F.linear(x, expert.linear_fc1.weight).chunk(2, dim=-1)
            # The weight goes into the narrower product, so the sum over experts needs no pass of its own.
            part = F.linear(F.silu(gate) * up * weights[:, index, None], expert.linear_fc2.weight)
            out = part if out is None else out + part
        if group.size() > 1:
            out = reduce_scatter_to_sequence_parallel_region(out, group=group)
        return out.view_as(hidden_states), None
