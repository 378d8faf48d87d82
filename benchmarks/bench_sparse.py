"""2 of 5 active experts against all 5: what they save, and what a dense router gradient costs.

Hidden 512, FFN 1376, 4 layers, vocabulary 2,048, fp32, one process, all cores; alternated, medians.

forward   4 x 256 tokens without gradients
sampler   128 prompts of 32 tokens, 128 answers of 64 tokens, one slot each
training  a router step (4 x 256 tokens): with 5 active; 2, by our path and by Megatron's all-to-all; 2 with a dense gradient

One forward of the experts, the bound for what the dense gradient costs more, is 5/3 of the difference of the
forward passes with 5 and with 2 active.
"""

import random
from dataclasses import replace
from functools import partial
from statistics import median

from bench_moe import model_shape
from bench_step import LAYERS, LENGTH, ROWS, Step
from side_by_side import alternate, figure, over

FEW, ALL, PAIRS = 2, 5, 7
PROMPTS, PROMPT, NEW = 128, 32, 64


def main() -> None:
    import torch

    from megatron_bar.models.sampler import Sampler
    from megatron_bar.parallel.state import distributed

    with distributed():
        shape = model_shape(ALL, "float32", LAYERS)
        step = Step(shape, frozen=lambda name: ".gate." not in name)
        model = step.model
        positions = torch.arange(LENGTH).expand(ROWS, LENGTH)
        rng = random.Random(0)
        prompts = [[rng.randrange(shape.vocab_size) for _ in range(PROMPT)] for _ in range(PROMPTS)]
        sampler = Sampler(model, eos_ids=set(), pad_id=0)

        def with_active(active: int, work, *, dense: bool = False, forward=None):
            def run():
                model.route(replace(model.routing, active=(active,) * LAYERS, dense_gradient=dense))
                for layer in model.decoder.layers:
                    layer.mlp.forward = (
                        partial(forward, layer.mlp) if forward else type(layer.mlp).forward.__get__(layer.mlp)
                    )
                return work()

            return run

        @torch.no_grad()
        def forward():
            return model(step.ids, positions, labels=step.labels)

        def sample():
            return sampler.generate(prompts, max_new_tokens=NEW, slots=PROMPTS)

        passes = alternate({str(k): with_active(k, forward) for k in (FEW, ALL)}, PAIRS)
        told("forward", passes, ROWS * LENGTH)
        figure("forward_2_of_5_over_5_experts", over(passes[str(ALL)], passes[str(FEW)]), 1.5)
        answers = alternate({str(k): with_active(k, sample) for k in (FEW, ALL)}, PAIRS)
        told("sampler", answers, PROMPTS * NEW)
        figure("sampler_2_of_5_over_5_experts", over(answers[str(ALL)], answers[str(FEW)]), 1.5)

        from megatron.core.transformer.moe.moe_layer import MoELayer

        trained = alternate(
            {
                "5": with_active(ALL, step),
                "2": with_active(FEW, step),
                "2 by all-to-all": with_active(FEW, step, forward=dispatched(MoELayer)),
                "2, dense gradient": with_active(FEW, step, dense=True),
            },
            PAIRS,
        )
        told("router step", trained, ROWS * LENGTH)
        figure("router_step_2_of_5_over_5_experts", over(trained["5"], trained["2"]), 1.5)
        figure("router_step_2_of_5_over_alltoall", over(trained["2 by all-to-all"], trained["2"]), 1)
        extra = [a - b for a, b in zip(trained["2, dense gradient"], trained["2"], strict=True)]
        experts = (median(passes[str(ALL)]) - median(passes[str(FEW)])) * ALL / (ALL - FEW)
        figure(
            "dense_router_gradient_of_one_forward_of_the_experts", median(extra) / experts, 1, at_most=True
        )
        figure(
            "dense_router_gradient_step_of_selected",
            over(trained["2, dense gradient"], trained["2"]),
            1.6,
            at_most=True,
        )


def dispatched(layer_class):
    """Megatron's path; it takes the number of chosen experts from the config."""

    def forward(self, hidden_states, intermediate_tensors=None, padding_mask=None):
        kept, self.config.moe_router_topk = self.config.moe_router_topk, FEW
        try:
            return layer_class.forward(self, hidden_states, intermediate_tensors, padding_mask)
        finally:
            self.config.moe_router_topk = kept

    return forward


def told(what: str, seconds: dict[str, list[float]], tokens: int) -> None:
    print(
        f"{what}: "
        + ", ".join(
            f"{name} active {tokens / median(times):,.0f} tokens/s" for name, times in seconds.items()
        )
    )


if __name__ == "__main__":
    main()
