"""Models of SmolLM2-135M's shape on random weights: bench_peers.py and bench_mergekit.py compare on them."""

from pathlib import Path

from grpo_rounds import save_tokenizer

LAYERS, VOCABULARY = 30, 49_152


def save_model(
    folder: Path, *, experts: int, dtype: str, layers: int, vocabulary: int, seed: int = 0
) -> None:
    """Writes a Llama, or a Mixtral of ``experts``, all active, with a tokenizer of words; the head is a
    parameter of its own, as an import here makes it."""
    import torch
    import transformers

    torch.manual_seed(seed)
    given = {
        "vocab_size": vocabulary,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": layers,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 1,
        "initializer_range": 0.05,  # wide enough that every layer is seen in a loss
    }
    if experts:
        config = transformers.MixtralConfig(
            **given, num_local_experts=experts, num_experts_per_tok=experts, sliding_window=None
        )
        model = transformers.MixtralForCausalLM(config)
    else:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**given))
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    save_tokenizer(folder)
