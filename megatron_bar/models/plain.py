"""The pass of a model that this rank has whole, over plain tensors: how the sampler goes through it on a CPU.

The arithmetic is that of `LanguageModel.forward`, by the same routers, norms, rotation and activation; left
out is what cuts a pass over ranks or leaves gradients, the products go by oneDNN (`kernels.Matrix`), and
single tokens attend in fp32, which the cache has in any case. A prompt attends to itself, without the cache;
a single token to the part of the cache that is filled, of the rows at work alone. tests/models/test_plain.py
compares the two.

Legend: r rows (sequences), s new tokens of each, t = r * s tokens, m length attended to, h hidden, n query
heads, k key and value heads, d head width, f FFN columns, e experts, c choices of an expert by a token, v
vocabulary, 1 a single column.
"""

from itertools import accumulate

import torch
import torch.nn.functional as F
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from megatron_bar.models import kernels
from megatron_bar.models.attention import KVCache, rotate
from megatron_bar.models.build import LanguageModel
from megatron_bar.models.moe import AnchoredMoE

GROUPS = 4
"""Groups of the cache's rows, each of which is attended to as far as its own longest answer goes."""
LOOK_UP = 30_000_000
"""Products of a token and a weight in the time that it takes to look up who chose which expert."""
FEWEST = 16
"""Tokens of a pass from which on the choice between experts is made; memory, not time, is spared below."""


class PlainModel:
    """A model whose weights lie as the CPU's products want them. It serves until they or the routing change;
    they are copied.

    ``max_length``: above all positions. ``look_up``: experts that were not chosen are left out of a pass
    where that spares more products of a token and a weight.
    """

    def __init__(self, model: LanguageModel, max_length: int, *, look_up: int = LOOK_UP):
        shape = model.shape
        turn = model.rope.turn(torch.arange(max_length)[None])
        self.cosines_md, self.sines_md = (x_11md[0, 0] for x_11md in turn)
        self.embedding_vh = model.embedding.word_embeddings.weight.detach()
        self.layers = [_Layer(layer, look_up) for layer in model.decoder.layers]
        self.norm = model.decoder.final_layernorm
        self.head = kernels.Matrix(model.output_layer.weight[: shape.vocab_size])

    def read(self, ids_rs: Tensor, lengths_r: Tensor, slots_r: Tensor, cache: KVCache) -> Tensor:
        """Reads prompts from their beginning into ``slots_r`` of the cache -> logits ``[r, v]`` of the last
        token of each, the ``lengths_r``-th."""
        rows, length = ids_rs.shape
        turn = self.cosines_md[:length], self.sines_md[:length]
        attention = _OfPrompts(cache, turn, rows, slots_r)
        x_th = self._through_layers(ids_rs, attention)
        return self._logits(x_th[torch.arange(rows) * length + lengths_r - 1])

    def go_on(self, ids_r: Tensor, positions_r: Tensor, cache: KVCache) -> Tensor:
        """Reads one more token into each of the first r rows of the cache -> its logits ``[r, v]``."""
        # One index for both, and with dimensions for heads and new tokens.
        turn = self.cosines_md[positions_r, None, None], self.sines_md[positions_r, None, None]
        attention = _OfTokens(cache, turn, positions_r)
        return self._logits(self._through_layers(ids_r, attention))

    def _through_layers(self, ids: Tensor, attention: "_OfPrompts | _OfTokens") -> Tensor:
        x_th = F.embedding(ids.flatten(), self.embedding_vh)
        for number, layer in enumerate(self.layers):
            x_th = layer(x_th, number, attention)
        return x_th

    def _logits(self, x_rh: Tensor) -> Tensor:
        return self.head(self.norm(x_rh)).float()


class _Layer:
    """A layer: attention and FFN, with norms before them or behind; the other ones leave things as they
    are."""

    def __init__(self, layer: TransformerLayer, look_up: int):
        self.query_key_value = _QueryKeyValue(layer.self_attention)
        self.projection = kernels.Matrix(layer.self_attention.linear_proj.weight)
        self.before_attention = layer.input_layernorm
        self.behind_attention = layer.self_attn_bda.norm
        self.ffn = _ffn_of(layer.mlp, look_up)
        self.before_ffn = layer.pre_mlp_layernorm
        self.behind_ffn = layer.mlp_bda.norm

    def __call__(self, x_th: Tensor, number: int, attention: "_OfPrompts | _OfTokens") -> Tensor:
        attended = attention(number, *self.query_key_value(self.before_attention(x_th)))
        x_th = x_th + self.behind_attention(self.projection(attended))
        return x_th + self.behind_ffn(self.ffn(self.before_ffn(x_th)))


class _QueryKeyValue:
    """Normalised queries ``[t, n, d]`` and keys, and values ``[t, k, d]``, of ``[t, h]``."""

    def __init__(self, attention: SelfAttention):
        config = attention.config
        self.width = config.kv_channels
        key_heads = config.num_query_groups
        self.heads = (config.num_attention_heads, key_heads, key_heads)
        self.matrix = kernels.Matrix(self._side_by_side(attention.linear_qkv.weight, key_heads))
        bias = attention.linear_qkv.bias
        self.bias = None if bias is None else self._side_by_side(bias.detach(), key_heads)
        self.query_norm = attention.q_layernorm or torch.nn.Identity()
        self.key_norm = attention.k_layernorm or torch.nn.Identity()

    def _side_by_side(self, fused: Tensor, key_heads: int) -> Tensor:
        """All queries, then all keys, then all values. Megatron's rows: for each group its queries, its key
        and its value."""
        grouped = fused.unflatten(0, (key_heads, -1, self.width))
        parts = grouped.split([grouped.shape[1] - 2, 1, 1], dim=1)
        return torch.cat([part.flatten(0, 2) for part in parts])

    def __call__(self, x_th: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fused = self.matrix(x_th)
        if self.bias is not None:
            fused = fused + self.bias
        parts = fused.unflatten(-1, (-1, self.width)).split(self.heads, dim=1)
        query_tnd, key_tkd, value_tkd = parts
        # The norms are of Megatron's four dimensions.
        return self.query_norm(query_tnd[:, None])[:, 0], self.key_norm(key_tkd[:, None])[:, 0], value_tkd


def _ffn_of(mlp: torch.nn.Module, look_up: int) -> "_FFN | _AllExperts | _ChosenExperts | _EitherExperts":
    if not isinstance(mlp, AnchoredMoE):
        return _FFN(mlp)
    experts = mlp.experts.local_experts
    used = min(mlp.router.top_k, len(experts) - len(mlp.router.routing.disabled))
    spared = (len(experts) - used) * sum(param.numel() for param in experts[0].parameters())
    if not spared:
        return _AllExperts(mlp)
    return _ChosenExperts(mlp) if spared * FEWEST > look_up else _EitherExperts(mlp, look_up // spared)


class _FFN:
    """``down(silu(gate x) * up x)``, of a dense block or of an expert."""

    def __init__(self, mlp: torch.nn.Module):
        self.gate_up = kernels.Matrix(mlp.linear_fc1.weight)
        self.down = kernels.Matrix(mlp.linear_fc2.weight)

    def __call__(self, x_th: Tensor) -> Tensor:
        return self.down(kernels.swiglu(self.gate_up(x_th)))


class _AllExperts:
    """The sum of what all experts make of a token, by the router's weights: as one FFN of all their columns,
    each expert's activations times its weight."""

    def __init__(self, moe: AnchoredMoE):
        self.router = moe.router
        experts = moe.experts.local_experts
        gates, ups = zip(*(expert.linear_fc1.weight.chunk(2) for expert in experts), strict=True)
        self.gate_up = kernels.Matrix(torch.cat([*gates, *ups]))
        self.down = kernels.Matrix(torch.cat([expert.linear_fc2.weight for expert in experts], dim=1))

    def __call__(self, x_th: Tensor) -> Tensor:
        weights_te1 = self.router(x_th)[0].to(x_th.dtype)[:, :, None]
        act = kernels.swiglu(self.gate_up(x_th))
        act.unflatten(1, (weights_te1.shape[1], -1)).mul_(weights_te1)
        return self.down(act)


class _ChosenExperts:
    """The same of the experts that have a weight, each of which sees the tokens that chose it."""

    def __init__(self, moe: AnchoredMoE):
        self.router = moe.router
        self.ffns = [_FFN(expert) for expert in moe.experts.local_experts]

    def __call__(self, x_th: Tensor) -> Tensor:
        weights_te = self.router(x_th)[0].to(x_th.dtype)
        expert_c, token_c = weights_te.t().nonzero().unbind(-1)
        counts = (weights_te != 0).sum(0).tolist()
        # For each expert its tokens, with some of the next one's or, behind the last, of any: few sizes.
        x_ch = x_th[F.pad(token_c, (0, max(counts) // 8))]
        parts = zip(self.ffns, accumulate([0, *counts]), counts, strict=False)
        out_ch = torch.cat([f(x_ch[start : start + kernels.few_sizes(n)])[:n] for f, start, n in parts if n])
        return torch.zeros_like(x_th).index_add_(0, token_c, out_ch * weights_te[token_c, expert_c, None])


class _EitherExperts:
    """All experts for passes of few tokens, the chosen ones for those of more than ``tokens``: small experts,
    whose weights are copied for both."""

    def __init__(self, moe: AnchoredMoE, tokens: int):
        self.tokens = tokens
        self.all = _AllExperts(moe)
        self.chosen = _ChosenExperts(moe)

    def __call__(self, x_th: Tensor) -> Tensor:
        return (self.chosen if len(x_th) > self.tokens else self.all)(x_th)


class _OfPrompts:
    """Attention of whole prompts, each to itself; their keys and values go to rows of the cache."""

    def __init__(self, cache: KVCache, turn: tuple[Tensor, Tensor], rows: int, slots_r: Tensor):
        self.cache = cache
        self.slots_r = slots_r
        self.rows_and_length = (rows, len(turn[0]))
        self.turn = turn

    def __call__(self, layer: int, *query_key_value: Tensor) -> Tensor:
        """Attends: query ``[t, n, d]``, key and value ``[t, k, d]`` -> ``[t, n * d]``."""
        query, key, value = (x.unflatten(0, self.rows_and_length).transpose(1, 2) for x in query_key_value)
        query, key = (rotate(x, *self.turn, 1) for x in (query, key))
        length = self.rows_and_length[1]
        for buffer, new in ((self.cache.keys[layer], key), (self.cache.values[layer], value)):
            buffer[self.slots_r, :, :length] = new.float()
        gqa = key.shape[1] != query.shape[1]
        out_rnsd = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=gqa)
        return out_rnsd.transpose(1, 2).flatten(2).flatten(0, 1)


class _OfTokens:
    """Attention of one new token in each of the first rows of the cache to those before it."""

    def __init__(self, cache: KVCache, turn: tuple[Tensor, Tensor], positions_r: Tensor):
        self.cache = cache
        self.turn = turn
        heads, length = cache.keys.shape[2:4]
        bounds = range(0, len(positions_r), group_size(cache.rows))
        parts = positions_r.split(group_size(cache.rows))
        self.groups = [self._group(start, part_r) for start, part_r in zip(bounds, parts, strict=True)]
        rows_rk = torch.arange(0, len(positions_r) * heads * length, length).view(-1, heads)
        self.places = (rows_rk + positions_r[:, None]).flatten()
        """Of the new keys in a layer of the cache, as ``[rows * heads * length, d]``."""

    def _group(self, start: int, positions_r: Tensor) -> tuple[slice, int, Tensor]:
        """Returns rows, the length that they attend to, and what keeps them from places to come."""
        reach = int(positions_r.max()) + 1
        to_come_rm = torch.arange(reach) > positions_r[:, None]
        bias_rm = torch.zeros(to_come_rm.shape)
        bias_rm.masked_fill_(to_come_rm, -torch.inf)
        return slice(start, start + len(positions_r)), reach, bias_rm[:, None, None]

    def __call__(self, layer: int, query_tnd: Tensor, key_tkd: Tensor, value_tkd: Tensor) -> Tensor:
        """Attends as `_OfPrompts` does."""
        query, key = (rotate(x[:, :, None], *self.turn, 1) for x in (query_tnd, key_tkd))
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        for buffer, new in ((keys, key), (values, value_tkd)):
            buffer.flatten(0, 2).index_copy_(0, self.places, new.reshape(-1, new.shape[-1]).float())
        out = [
            _attend(query[rows], keys[rows, :, :reach], values[rows, :, :reach], bias_r11m).flatten(1)
            for rows, reach, bias_r11m in self.groups
        ]
        return torch.cat(out)


def group_size(rows: int) -> int:
    """Rows of a cache of ``rows`` that a new token attends to together. The longest of them is read by all,
    so those of alike lengths should lie together."""
    return -(-rows // GROUPS)


def _attend(query_rn1d: Tensor, key_rkmd: Tensor, value_rkmd: Tensor, bias_r11m: Tensor) -> Tensor:
    # Of single queries torch's kernel makes a small product each, slowly in 16 bit; these are batches of
    # them, in the cache's fp32.
    heads = key_rkmd.shape[1]
    query_rkgd = query_rn1d.unflatten(1, (heads, -1)).squeeze(-2).float() * query_rn1d.shape[-1] ** -0.5
    scores_rkgm = torch.matmul(query_rkgd, key_rkmd.transpose(-1, -2)).add_(bias_r11m)
    return torch.matmul(scores_rkgm.softmax(-1), value_rkmd).to(query_rn1d.dtype)
