"""Chats with the model of a Hugging Face folder: at a terminal, or with prompts from a pipe, a line each.

The lines are one conversation: /reset begins a new one, /quit or Ctrl-D ends, Ctrl-C ends an answer.
"""

import argparse
from datetime import timedelta
from pathlib import Path

from megatron_bar.cli import Call, active_experts, command_parser
from megatron_bar.data.templates import NAMES

EXAMPLES = (
    "{program} runs/tiny/final",
    '{program} runs/tiny/final --prompt "What is 3 * 4 + 5?" --disable-expert math',
    "torchrun --nproc-per-node 2 {script} runs/tiny/final --tensor 2 < prompts.txt",
)


def parse(call: Call) -> argparse.Namespace:
    parser = command_parser(call, __doc__, *EXAMPLES)
    parser.add_argument("model", type=Path, metavar="HF", help="a folder with a tokenizer")
    parser.add_argument("--prompt", metavar="TEXT", help="answer this and end")
    parser.add_argument("--system", metavar="TEXT", help="system message of the conversation")
    parser.add_argument("--chat-template", choices=NAMES, help="default own, the tokenizer's")
    parser.add_argument(
        "--max-new-tokens", type=int, default=512, metavar="N", help="of an answer, at most (default 512)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="default 0: greedy, as models are evaluated",
    )
    parser.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="nucleus sampling (default 1: off)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (default 0)")
    parser.add_argument(
        "--top-k-experts",
        metavar="K",
        help="experts of a token; K,K,... or FILE.json: layer by layer (default: as the folder says)",
    )
    parser.add_argument(
        "--disable-expert",
        action="append",
        default=[],
        metavar="NAME",
        help="the router never chooses it; may be repeated",
    )
    for name in ("tensor", "pipeline", "expert"):
        parser.add_argument(
            f"--{name}",
            type=int,
            default=1,
            metavar="N",
            help=f"{name} parallelism, under torchrun (default 1)",
        )
    return parser.parse_args(call.arguments)


def main(call: Call) -> None:
    args = parse(call)
    active = None if args.top_k_experts is None else active_experts(args.top_k_experts)
    from megatron_bar.evaluation.conversation import Conversation, Sampling, chat_format, show_answer, talk
    from megatron_bar.evaluation.generative import load_model
    from megatron_bar.models.sampler import Sampler
    from megatron_bar.parallel.state import ParallelConfig, distributed, world_size
    from megatron_bar.weights.hf_config import read_config

    sampling = Sampling(
        max_new_tokens=args.max_new_tokens, temperature=args.temperature, top_p=args.top_p, seed=args.seed
    )
    layout = ParallelConfig(tensor=args.tensor, pipeline=args.pipeline, expert=args.expert)
    chats = chat_format(args.model, args.chat_template)
    with distributed(timeout=timedelta(days=7)):  # the other ranks wait while the user thinks
        layout.check(read_config(args.model), world_size())
        model = load_model(args.model, layout, active_experts=active, disabled=tuple(args.disable_expert))
        sampler = Sampler(model, eos_ids=chats.stop_ids, pad_id=chats.tokenizer.pad_id)
        conversation = Conversation(sampler=sampler, chats=chats, sampling=sampling, system=args.system)
        if args.prompt is not None:
            show_answer(conversation, args.prompt)
        else:
            talk(conversation)
