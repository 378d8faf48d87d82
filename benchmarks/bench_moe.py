"""The MoE layer, forward and backward, against its bare matrix products and against Megatron's all-to-all
path.

Hidden 512, FFN 1376, 1,024 tokens, all of 2 or 5 experts active, the anchor frozen as in every stage of an
expert, one process, all cores; alternated, medians. The bare products are those that the layer needs, each
once, on tensors that are there; the reference path is Megatron's MoELayer with the same router and experts.
Results are checked for equality first.
"""

from functools import partial
from statistics import median

from side_by_side import alternate, figure, over

HIDDEN, FFN, TOKENS, PAIRS = 512, 1376, 1024, 15
RATE = {"float32": 0.95, "bfloat16": 0.90}
RATE_AMX = 0.80
"""In bfloat16 where products are as fast as AMX's: what is left beside them weighs more."""


def main() -> None:
    import torch

    from megatron_bar.parallel import cpu
    from megatron_bar.parallel.state import ParallelConfig, distributed, set_layout

    with distributed():
        for experts in (2, 5):
            for dtype in RATE:
                shape = model_shape(experts, dtype)
                set_layout(ParallelConfig(), shape, seed=0)
                layer = build(shape, ParallelConfig())
                x = torch.randn(
                    TOKENS, 1, HIDDEN, dtype=getattr(torch, dtype), device=cpu.device(), requires_grad=True
                )
                compare(layer, x)
                bare = products(experts, x.dtype)
                seconds = alternate(
                    {"ours": partial(ours, layer, x), "alltoall": partial(alltoall, layer, x), "bare": bare},
                    PAIRS,
                )
                print(
                    f"{experts} experts, {dtype}: "
                    + ", ".join(f"{n} {1e3 * median(s):.1f} ms" for n, s in seconds.items())
                )
                name = f"moe_{experts}_experts_{dtype}"
                amx = dtype == "bfloat16" and torch.cpu._is_amx_tile_supported()
                rate = RATE_AMX if amx else RATE[dtype]
                figure(f"{name}_rate_of_bare_products", over(seconds["bare"], seconds["ours"]), rate)
                figure(f"{name}_over_alltoall", over(seconds["alltoall"], seconds["ours"]), 1)


def model_shape(experts: int, dtype: str, layers: int = 1):
    from megatron_bar.weights.hf_config import ModelConfig

    dense = ModelConfig(
        vocab_size=2048,
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_layers=layers,
        num_heads=8,
        num_kv_heads=8,
        max_positions=512,
        rope_theta=500_000.0,
        rms_norm_eps=1e-6,
        dtype=dtype,
    )
    return dense.with_experts(experts)


def build(shape, layout):
    """The layer of a one-layer model, its weights small and random, its anchor frozen."""
    import torch

    from megatron_bar.models.build import build_model

    torch.manual_seed(0)
    layer = build_model(shape, layout).decoder.layers[0].mlp
    with torch.no_grad():
        for param in layer.parameters():
            param.normal_(std=0.05)
    for index, expert in zip(layer.local_expert_indices, layer.experts.local_experts, strict=True):
        for param in expert.parameters():
            param.requires_grad_(index > 0)
    return layer


def products(experts: int, dtype):
    """The matrix products of one pass forward and backward: gate and up, down, and what their gradients
    take."""
    import torch

    from megatron_bar.parallel import cpu

    sizes = {
        "x": (TOKENS, HIDDEN),
        "inner": (TOKENS, 2 * FFN),
        "act": (TOKENS, FFN),
        "fc1": (2 * FFN, HIDDEN),
        "fc2": (HIDDEN, FFN),
    }
    made = [
        {name: torch.randn(size, dtype=dtype, device=cpu.device()) for name, size in sizes.items()}
        for _ in range(experts)
    ]

    def run() -> None:
        for index, t in enumerate(made):
            t["x"] @ t["fc1"].t()
            t["act"] @ t["fc2"].t()
            t["x"] @ t["fc2"]
            t["inner"] @ t["fc1"]
            if index:
                t["inner"].t() @ t["x"]
                t["x"].t() @ t["act"]

    return run


def passes(layer, x, forward) -> list:
    out = forward(x)[0]
    out.backward(out.detach())
    return [out.detach(), x.grad, *(param.grad for param in layer.parameters() if param.requires_grad)]


def ours(layer, x) -> list:
    clear(layer, x)
    return passes(layer, x, layer)


def alltoall(layer, x) -> list:
    from megatron.core.transformer.moe.moe_layer import MoELayer

    clear(layer, x)
    return passes(layer, x, lambda tokens: MoELayer.forward(layer, tokens))


def clear(layer, x) -> None:
    x.grad = None
    for param in layer.parameters():
        param.grad = None


def compare(layer, x) -> None:
    """Same output and gradients both ways: within 1e-5 of the largest value in fp32, within 2 % in bf16."""
    import torch

    limit = 1e-5 if x.dtype is torch.float32 else 2e-2
    first = [t.clone() for t in ours(layer, x)]
    for a, b in zip(first, alltoall(layer, x), strict=True):
        worst = float((a.float() - b.float()).abs().max() / b.float().abs().max())
        assert worst <= limit, worst


if __name__ == "__main__":
    main()
