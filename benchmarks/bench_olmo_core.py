"""A training step of dense OLMo 2 against ai2-olmo-core's, the code it was trained with.

Hidden 512, FFN 1376, 4 layers, vocabulary 2,048, one batch of 4 x 256 tokens, everything trains, one process,
all cores, fp32 and bf16; alternated, medians. The same weights, converted by its own code; its attention and
loss as it chooses them here, torch's fused AdamW with the same clipping. In bf16 both keep weights and
optimizer in fp32, as its FSDP does: here by torch's autocast. First losses are compared before anything is
timed.

Its mixture of experts is tried too: it gathers and scatters tokens with Triton kernels, which want a GPU.

`make bench` installs ai2-olmo-core into .venv-bench, beside what .venv has; without it nothing is measured.
"""

import site
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

from bench_moe import model_shape
from bench_step import LAYERS, LENGTH, LR, ROWS, Step
from side_by_side import alternate, figure, over

PACKAGES = Path(__file__).resolve().parent.parent / ".venv-bench"
PAIRS = 15  # more than bench_step: the two are close to each other
DTYPES = {"float32": 1e-4, "bfloat16": 2e-2}


def main() -> None:
    from megatron_bar.parallel.state import distributed

    for folder in PACKAGES.glob("lib/python*/site-packages"):
        site.addsitedir(str(folder))  # at the end: what .venv has goes before it
    try:
        import olmo_core  # noqa: F401
    except ImportError as error:
        print(f"nothing measured: {error}; make .venv-bench/.ready")
        return
    for dtype, limit in DTYPES.items():
        with distributed(), tempfile.TemporaryDirectory() as folder:
            ours = Step(model_shape(0, dtype, LAYERS), frozen=lambda _: False)
            theirs = olmo_core_step(ours, Path(folder))
            losses = ours(), theirs()
            assert abs(losses[0] - losses[1]) <= limit * losses[0], losses
            seconds = alternate({"ours": ours, "theirs": theirs}, PAIRS)
        spent = {way: median(times) for way, times in seconds.items()}
        print(f"dense, {dtype}: ours {1e3 * spent['ours']:.0f} ms, theirs {1e3 * spent['theirs']:.0f} ms")
        figure(f"dense_step_{dtype}_over_ai2_olmo_core", over(seconds["theirs"], seconds["ours"]), 1)
    try:
        loss = olmo_core_moe()
        print(
            f"ai2-olmo-core's mixture of experts runs here (loss {loss:.3f}) and is not compared: mend this "
            f"benchmark"
        )
    except (AssertionError, RuntimeError) as error:
        print(f"ai2-olmo-core's mixture of experts does not run here: {error!r}")


def olmo_core_step(ours: Step, folder: Path) -> Callable[[], float]:
    import torch
    from olmo_core.nn.feed_forward import FeedForwardConfig
    from olmo_core.nn.hf.convert import convert_state_from_hf
    from olmo_core.nn.transformer import TransformerBlockType, TransformerConfig
    from transformers import AutoModelForCausalLM

    from megatron_bar.models.shards import save_folder
    from megatron_bar.weights.manifest import Manifest

    shape = ours.model.shape
    save_folder(
        ours.model,
        folder / "model",
        companions_from=folder,
        manifest=lambda *_: Manifest(family=shape.model_type, kind="dense"),
    )
    published = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    config = TransformerConfig.llama_like(
        d_model=shape.hidden_size,
        vocab_size=shape.vocab_size,
        n_layers=shape.num_layers,
        n_heads=shape.num_heads,
        feed_forward=FeedForwardConfig(hidden_size=shape.intermediate_size, bias=False),
        block_name=TransformerBlockType.reordered_norm,
        qk_norm=True,
        rope_theta=int(shape.rope_theta),
        layer_norm_eps=shape.rms_norm_eps,
    )
    model = config.build()
    model.load_state_dict(convert_state_from_hf(published.config, published.state_dict(), model_type="olmo2"))
    params = list(model.parameters())
    optimizer = torch.optim.AdamW(params, lr=LR, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=ours.model.config.bf16):
            loss = model(ours.ids, labels=ours.labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        return float(loss.detach())

    return step


def olmo_core_moe() -> float:
    """The loss of its mixture of two experts, both active, on random tokens."""
    import torch
    from olmo_core.nn.transformer import TransformerConfig

    config = TransformerConfig.llama_like_moe(
        d_model=512,
        vocab_size=2048,
        n_layers=1,
        n_heads=8,
        num_experts=2,
        top_k=2,
        expert_hidden_size=1376,
        reordered_norm=True,
    )
    ids = torch.randint(2048, (ROWS, LENGTH))
    return float(config.build()(ids, labels=ids).loss)


if __name__ == "__main__":
    main()
