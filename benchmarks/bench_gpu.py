"""On one GPU: training steps of the published shapes, model FLOP/s over the rate of a bare bf16 product on the same device.

    python benchmarks/bench_gpu.py [--layers 32]

SFT of a 2x7B model (one row of 4,096, anchor frozen) and router training of a 5x7B model (one row of 2,048), random weights,
bf16, activations recomputed. What the passes compute is counted by training/flops.py, so what is computed again does not count.
By default as many of the 32 layers as the device's memory holds. Without a GPU it says so and measures nothing.
"""

import argparse
from dataclasses import replace
from statistics import median

from bench_step import Step
from side_by_side import alternate, figure

from megatron_bar.recipes.olmo2_7b import SHAPE
from megatron_bar.weights.groups import POLICIES

STEPS = 7
BYTES_PER_TRAINED, BYTES_PER_FROZEN, ROOM = 18, 2, 0.85


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, help="of the model (default: what fits)")
    args = parser.parse_args()
    import torch

    from megatron_bar.parallel.state import distributed

    if not torch.cuda.is_available():
        print("no CUDA device: nothing measured")
        return
    rate = product_rate()
    print(f"{torch.cuda.get_device_name()}: bare bf16 product {rate / 1e12:.0f} TFLOP/s")
    with distributed():
        for experts, policy, length, target in ((2, "sft", 4096, 0.5), (5, "route", 2048, None)):
            layers = args.layers or fitting(experts, policy)
            share, gigabytes = measure(experts, policy, length, layers, rate)
            print(f"{experts}x7B {policy}, {layers} layers: {100 * share:.0f} % of that, peak {gigabytes:.1f} GB")
            if target:
                figure(f"gpu_{experts}x7b_{policy}_share_of_product_rate", share, target)
            else:
                figure(f"gpu_{experts}x7b_{policy}_layers_that_fit", layers, SHAPE.num_layers)


def product_rate(size: int = 8192) -> float:
    import torch

    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device="cuda") for _ in range(2))

    def product():
        a @ b
        torch.cuda.synchronize()

    return 2 * size**3 / median(alternate({"product": product}, 20)["product"])


def fitting(experts: int, policy: str) -> int:
    """Layers of the model whose weights, gradients and optimizer take at most that share of the device's memory."""
    import torch

    from megatron_bar.training.freeze import table

    memory = torch.cuda.get_device_properties(0).total_memory
    for layers in range(SHAPE.num_layers, 0, -1):
        shape = replace(SHAPE, num_layers=layers).with_experts(experts)
        counts = table(shape, POLICIES[policy])
        if sum(n * (BYTES_PER_TRAINED if trains else BYTES_PER_FROZEN) for _, n, trains in counts) <= ROOM * memory:
            return layers
    return 1


def measure(experts: int, policy: str, length: int, layers: int, rate: float) -> tuple[float, float]:
    import torch

    from megatron_bar.training import flops

    shape = replace(SHAPE, num_layers=layers, max_positions=length).with_experts(experts)
    trains = POLICIES[policy].trainable
    torch.cuda.reset_peak_memory_stats()
    step = Step(shape, frozen=lambda name: not trains(name), rows=1, length=length, recompute=True)
    seconds = median(alternate({"step": step}, STEPS)["step"])
    work = {"tokens": length, "pairs": length * (length + 1) // 2}
    done = flops.forward(shape)(**work) + flops.backward(shape, POLICIES[policy])(**work)
    peak = torch.cuda.max_memory_allocated() / 1e9
    del step
    torch.cuda.empty_cache()
    return done / seconds / rate, peak


if __name__ == "__main__":
    main()
