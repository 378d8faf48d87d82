"""The anchored MoE layer: FlexOlmo's router, and a path that moves no token twice where every rank has a part
of every expert.

Source: transformers models/flex_olmo (routing), OLMo-core's router z-loss, Megatron-Core's MoELayer (experts,
dispatcher). BAR runs with all experts active (as published), where a dispatcher only copies: here every rank
gathers the tokens of its expert group once, adds up what its experts make of them, each of those that chose
it, and scatters the sums back. Only whole experts on ranks of their own (fewer active ones, see
`ParallelConfig`) have their tokens sent to them, by Megatron's all-to-all dispatcher as it is.

Legend: s sequence, b batch, t = s * b tokens, r those of them that chose an expert, h hidden, e experts, f an
expert's FFN columns on this rank, g = 2f gate and up, 1 a single column.
"""

from collections.abc import Callable
from dataclasses import dataclass

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

Watch = Callable[[int, Tensor], None]
"""Function of a layer's number, from 1, and the probabilities ``[t, e]`` of the tokens on this rank."""


@dataclass(frozen=True, kw_only=True)
class Routing:
    """How the routers of a model choose experts, and what they tell of it; set by `LanguageModel.route`."""

    active: tuple[int, ...]
    """Experts of a token in each layer of the whole model."""
    disabled: tuple[int, ...] = ()
    """Experts that no token goes to: their probability is 0, and the softmax is over the others."""
    dense_gradient: bool = False
    """Whether experts that a token did not choose give the router a gradient, too."""
    z_loss: float = 0.0
    """Weight of the sum over tokens of logsumexp(logits)^2 in the loss; set for every training step."""
    watch: Watch | None = None
    """Function that measures the routing. CUDA graphs leave host code out: none is recorded meanwhile."""


class Router(torch.nn.Module):
    """Softmax over all experts in fp32, then top-k, renormalised or not as ``norm_topk_prob`` says."""

    def __init__(
        self, *, config: TransformerConfig, pg_collection, is_mtp_layer: bool = False, norm_topk_prob: bool
    ):
        super().__init__()
        self.norm_topk_prob = norm_topk_prob
        shape_eh = (config.num_moe_experts, config.hidden_size)
        device = torch.cuda.current_device()
        self.weight = torch.nn.Parameter(torch.empty(shape_eh, dtype=config.params_dtype, device=device))
        if config.perform_initialization:
            config.init_method(self.weight)
        # Each tensor rank routes its part of the sequence; Megatron sums the gradients of what is so marked.
        self.weight.sequence_parallel = config.sequence_parallel
        self.layer_number: int | None = None
        self.routing = Routing(active=(config.moe_router_topk,) * config.num_layers)

    def set_layer_number(self, layer_number: int) -> None:
        """Takes the layer's number in the whole model, from 1; Megatron calls it."""
        self.layer_number = layer_number

    @property
    def top_k(self) -> int:
        """Experts of a token in this layer."""
        return self.routing.active[self.layer_number - 1]

    @property
    def gradient_is_dense(self) -> bool:
        """Whether this pass needs the outputs of experts that were not chosen."""
        dense = self.routing.dense_gradient and self.top_k < len(self.weight)
        return dense and self.training and torch.is_grad_enabled()

    def forward(self, x: Tensor, padding_mask=None) -> tuple[Tensor, Tensor]:
        """Returns the experts' weights ``[t, e]`` in fp32, 0 where not selected, and the selection, for x
        ``[..., h]``.

        With a dense gradient the weight of an expert that is not selected is p - p, of which one is a
        constant: 0, and so without a part in the output, but its gradient is p's (straight-through, Bengio et
        al., arXiv 1308.3432).
        """
        routing = self.routing
        # The product in the weights' dtype, all that follows in fp32, as transformers does.
        logits_te = F.linear(x, self.weight).flatten(0, -2).float()
        for expert in routing.disabled:
            logits_te[:, expert] = float("-inf")
        probs_te = torch.softmax(logits_te, dim=-1)
        if routing.z_loss and self.training and torch.is_grad_enabled():
            # Not part of the loss that is shown: the scaler adds its gradient on the way back through probs.
            z_loss = routing.z_loss * logits_te.logsumexp(-1).square().sum()
            probs_te = MoEAuxLossAutoScaler.apply(probs_te, z_loss)
        if routing.watch is not None:
            routing.watch(self.layer_number, probs_te.detach())
        selected_te = torch.ones_like(probs_te, dtype=torch.bool)
        if self.top_k < probs_te.shape[-1]:
            # By the logits: a probability may round to 0, which is what a disabled expert has.
            top = logits_te.detach().topk(self.top_k, dim=-1).indices
            selected_te = torch.zeros_like(selected_te).scatter(-1, top, True)
            others = probs_te - probs_te.detach() if self.gradient_is_dense else 0.0
            probs_te = torch.where(selected_te, probs_te, others)
        if self.norm_topk_prob:
            probs_te = probs_te / probs_te.sum(-1, keepdim=True)
        return probs_te, selected_te


class WeightedFFN(torch.autograd.Function):
    """``total + weight * down(silu(gate x) * up x)``: one expert's share, added to those of the experts
    before it.

    Of the activations only ``x``, both halves of the first product and the output stay for the backward pass;
    the rest is made again. A frozen matrix costs no product there. With ``rows_r`` only those tokens have
    this expert: the others' weights are 0.
    """

    @staticmethod
    def forward(
        ctx,
        x_th: Tensor,
        gate_up_gh: Tensor,
        down_hf: Tensor,
        weight_t1: Tensor,
        total_th: Tensor | None,
        rows_r: Tensor | None = None,
        dense: bool = False,
    ) -> Tensor:
        """Returns the new total ``[t, h]``; ``total_th`` is overwritten.

        ``rows_r``: int64, None: all tokens. ``dense``: the weights of the other tokens get their gradients
        nevertheless; it costs their forward products, and nothing in the backward pass.
        """
        ctx.dense = dense = dense or rows_r is None
        inner = (x_th if dense else x_th[rows_r]) @ gate_up_gh.t()
        out = fused.swiglu(inner) @ down_hf.t()
        # x is one tensor for all experts, so it is kept once.
        # A dense pass computes all tokens; backwards the matrices see those of rows_r alone.
        kept = inner[rows_r] if dense and rows_r is not None else inner
        ctx.save_for_backward(
            x_th, gate_up_gh, down_hf, weight_t1, kept, out if ctx.needs_input_grad[3] else None, rows_r
        )
        if total_th is not None:
            ctx.mark_dirty(total_th)
        if dense:
            return out * weight_t1 if total_th is None else total_th.addcmul_(out, weight_t1)
        total_th = torch.zeros_like(x_th) if total_th is None else total_th
        return total_th.index_add_(0, rows_r, out * weight_t1[rows_r])

    @staticmethod
    def backward(ctx, grad_th: Tensor) -> tuple[Tensor | None, ...]:
        """Returns a gradient for every argument of `forward` that needs one."""
        x, gate_up_gh, down_hf, weight, inner, out, rows_r = ctx.saved_tensors
        needs_x, needs_gate_up, needs_down, needs_weight, needs_total, *_ = ctx.needs_input_grad
        grad = grad_th
        grad_x = grad_gate_up = grad_down = grad_weight = None
        if needs_weight and ctx.dense:
            grad_weight = (grad * out).sum(-1, keepdim=True)
        if rows_r is not None:  # from here on all tensors are of the tokens that have this expert
            zeros_th = torch.zeros_like(x)
            grad, weight, x = (whole[rows_r] for whole in (grad, weight, x))
            if needs_weight and not ctx.dense:
                grad_weight = zeros_th[:, :1].index_copy(0, rows_r, (grad * out).sum(-1, keepdim=True))
        if needs_x or needs_gate_up or needs_down:
            grad_out = grad * weight
            act = None
            if needs_x or needs_gate_up:
                # Nobody else holds the product, so the gradient of the activations may take its memory.
                grad_inner, act = fused.swiglu_backward(
                    grad_out @ down_hf, inner, overwrite=True, keep_act=needs_down
                )
                grad_x = grad_inner @ gate_up_gh if needs_x else None
                grad_gate_up = grad_inner.t() @ x if needs_gate_up else None
            if needs_down:
                grad_down = grad_out.t() @ (fused.swiglu(inner) if act is None else act)
        if grad_x is not None and rows_r is not None:
            grad_x = zeros_th.index_copy_(0, rows_r, grad_x)
        return grad_x, grad_gate_up, grad_down, grad_weight, grad_th if needs_total else None, None, None


class AnchoredMoE(MoELayer):
    """Megatron's MoE layer with FlexOlmo's router and the path for experts of which every rank has a part."""

    def __init__(self, *args, pg_collection, **kwargs):
        super().__init__(*args, pg_collection=pg_collection, **kwargs)
        self.expert_group = pg_collection.tp_ep
        """The ranks that together hold every expert whole: expert parallel x expert tensor parallel."""

    def forward(
        self, hidden_states: Tensor, intermediate_tensors=None, padding_mask=None
    ) -> tuple[Tensor, None]:
        """Returns the layer's output for ``hidden_states``, both ``[s, b, h]``, and no bias."""
        if self.config.expert_model_parallel_size > 1:  # whole experts: their tokens are sent to them
            out = super().forward(hidden_states, intermediate_tensors, padding_mask)
            self._let_go_of_graph()
            return out
        probs_te, selected_te = self.router(hidden_states)
        x_th = hidden_states.flatten(0, 1)
        weights_te = probs_te.to(x_th.dtype)
        few = self._experts_are_few(x_th)
        if few:
            for expert in self.router.routing.disabled:
                selected_te[:, expert] = False
        group = self.expert_group
        if group.size() > 1:
            x_th, weights_te = (
                gather_from_sequence_parallel_region(part, group=group) for part in (x_th, weights_te)
            )
            if few:
                selected_te = gather_from_sequence_parallel_region(selected_te.byte(), group=group)
        # One buffer for the sum, to which each expert adds its share in place.
        total_th = None
        weights_t1 = weights_te.split(1, dim=-1)
        for index, expert in enumerate(self.experts.local_experts):
            rows_r = selected_te[:, index].nonzero().squeeze(1) if few else None
            matrices = (expert.linear_fc1.weight, expert.linear_fc2.weight)
            dense = self.router.gradient_is_dense
            total_th = WeightedFFN.apply(x_th, *matrices, weights_t1[index], total_th, rows_r, dense)
        if group.size() > 1:
            total_th = reduce_scatter_to_sequence_parallel_region(total_th, group=group)
        return total_th.view_as(hidden_states), None

    def _let_go_of_graph(self) -> None:
        """Cuts what Megatron's dispatcher keeps of a pass from its graph, whose hooks hold the model where
        the garbage collector does not see it."""
        for name, value in vars(self.token_dispatcher).items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                setattr(self.token_dispatcher, name, value.detach())

    def _experts_are_few(self, x_th: Tensor) -> bool:
        """Whether each expert looks up its own tokens, since it does not have all of them."""
        if x_th.is_cuda and torch.cuda.is_current_stream_capturing():
            # To look for an expert's tokens is to wait for the GPU; the weight of the others is 0.
            return False
        return self.router.top_k < len(self.router.weight) or bool(self.router.routing.disabled)
