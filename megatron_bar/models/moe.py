"""The anchored MoE layer: FlexOlmo's router, and a path that moves no token twice where every rank has a part of every expert.

Source: transformers models/flex_olmo (routing), OLMo-core's router z-loss, Megatron-Core's MoELayer (experts, dispatcher).
BAR runs with all experts active (as published), where a dispatcher only copies: here every rank gathers the tokens
of its expert group once, adds up what its experts make of them, each of those that chose it, and scatters the sums back. Only
whole experts on ranks of their own (fewer active ones, see `ParallelConfig`) have their tokens sent to them, by Megatron's
all-to-all dispatcher as it is.
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

from megatron_bar.models import kernels as fused


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
        self.dense_gradient = False
        """Whether an expert that a token did not choose tells the router, in training, what it would have made of it."""
        self.disabled: tuple[int, ...] = ()
        """Experts that no token goes to: their probability is 0, and the softmax is over the others."""
        self.watch = None
        """Called with (layer number, probabilities ``[t, E]``) while someone measures the routing, else None."""
        self.layer_number = None

    def set_layer_number(self, layer_number: int) -> None:
        self.layer_number = layer_number

    @property
    def gradient_is_dense(self) -> bool:
        return self.dense_gradient and self.training and torch.is_grad_enabled() and self.top_k < len(self.weight)

    def forward(self, x: Tensor, padding_mask=None) -> tuple[Tensor, Tensor]:
        """``[..., h]`` -> weights ``[t, E]`` in fp32, 0 where not selected, and the selection ``[t, E]``.

        With a dense gradient the weight of an expert that is not selected is p - p, of which one is a constant: 0, and so without
        a part in the output, but its gradient is p's (a straight-through estimate, Bengio et al., arXiv 1308.3432).
        """
        logits = F.linear(x, self.weight).flatten(0, -2).float()
        for expert in self.disabled:
            logits[:, expert] = float("-inf")
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
            probs = torch.where(selected, probs, probs - probs.detach() if self.gradient_is_dense else 0.0)
        if self.norm_topk_prob:
            probs = probs / probs.sum(-1, keepdim=True)
        return probs, selected


class WeightedFFN(torch.autograd.Function):
    """``total + weight * down(silu(gate x) * up x)``: one expert's share, added to those of the experts before it.

    Of the activations only ``x``, both halves of the first product and the output stay for the backward pass; the rest is made
    again. A frozen matrix costs no product there. With ``rows`` only those tokens have this expert: the others' weights are 0.
    """

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        gate_up: Tensor,
        down: Tensor,
        weight: Tensor,
        total: Tensor | None,
        rows: Tensor | None = None,
        dense: bool = False,
    ) -> Tensor:
        """x ``[t, h]``, gate_up ``[2f, h]``, down ``[h, f]``, weight ``[t, 1]`` -> ``[t, h]``; ``total`` is overwritten.

        ``rows``: int64 ``[r]``, None: all. ``dense``: the weights of the other tokens get their gradients nevertheless; it costs
        their forward products, and nothing in the backward pass.
        """
        ctx.dense = dense = dense or rows is None
        inner = (x if dense else x[rows]) @ gate_up.t()
        out = fused.swiglu(inner) @ down.t()
        kept = inner[rows] if dense and rows is not None else inner
        ctx.save_for_backward(x, gate_up, down, weight, kept, out if ctx.needs_input_grad[3] else None, rows)
        if total is not None:
            ctx.mark_dirty(total)
        if dense:
            return out * weight if total is None else total.addcmul_(out, weight)
        return (torch.zeros_like(x) if total is None else total).index_add_(0, rows, out * weight[rows])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gate_up, down, weight, inner, out, rows = ctx.saved_tensors
        needs_x, needs_gate_up, needs_down, needs_weight, needs_total, *_ = ctx.needs_input_grad
        grad_total = grad if needs_total else None
        grad_x = grad_gate_up = grad_down = grad_weight = None
        if needs_weight and ctx.dense:
            grad_weight = (grad * out).sum(-1, keepdim=True)
        if rows is not None:
            everywhere, (grad, weight, x) = torch.zeros_like(x), (t[rows] for t in (grad, weight, x))
            if needs_weight and not ctx.dense:
                grad_weight = everywhere[:, :1].index_copy(0, rows, (grad * out).sum(-1, keepdim=True))
        if needs_x or needs_gate_up or needs_down:
            grad_out, act = grad * weight, None
            if needs_x or needs_gate_up:
                grad_inner, act = fused.swiglu_backward(grad_out @ down, inner, overwrite=True, keep_act=needs_down)
                grad_x = grad_inner @ gate_up if needs_x else None
                grad_gate_up = grad_inner.t() @ x if needs_gate_up else None
            if needs_down:
                grad_down = grad_out.t() @ (fused.swiglu(inner) if act is None else act)
        if grad_x is not None and rows is not None:
            grad_x = everywhere.index_copy_(0, rows, grad_x)
        return grad_x, grad_gate_up, grad_down, grad_weight, grad_total, None, None


class AnchoredMoE(MoELayer):
    """Megatron's MoE layer with FlexOlmo's router and the path for experts of which every rank has a part."""

    def __init__(self, *args, pg_collection, **kwargs):
        super().__init__(*args, pg_collection=pg_collection, **kwargs)
        self.expert_group = pg_collection.tp_ep
        """The ranks that together hold every expert whole: expert parallel x expert tensor parallel."""

    def forward(self, hidden_states: Tensor, intermediate_tensors=None, padding_mask=None) -> tuple[Tensor, None]:
        if self.config.expert_model_parallel_size > 1:
            return super().forward(hidden_states, intermediate_tensors, padding_mask)
        router = self.router
        probs, selected = router(hidden_states)
        x = hidden_states.flatten(0, 1)
        weights = probs.to(x.dtype)
        few = router.top_k < weights.shape[-1] or bool(router.disabled)
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            few = False  # to look for an expert's tokens is to wait for the GPU; of the others the weight is 0
        for expert in router.disabled:
            selected[:, expert] = False
        group = self.expert_group
        if group.size() > 1:
            x, weights = (gather_from_sequence_parallel_region(t, group=group) for t in (x, weights))
            selected = gather_from_sequence_parallel_region(selected.byte(), group=group) if few else selected
        out, shares = None, weights.split(1, dim=-1)
        for index, expert in enumerate(self.experts.local_experts):
            rows = selected[:, index].nonzero().squeeze(1) if few else None
            matrices = expert.linear_fc1.weight, expert.linear_fc2.weight
            out = WeightedFFN.apply(x, *matrices, shares[index], out, rows, router.gradient_is_dense)
        if group.size() > 1:
            out = reduce_scatter_to_sequence_parallel_region(out, group=group)
        return out.view_as(hidden_states), None
