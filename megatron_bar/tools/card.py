"""Writes a folder's model card anew, with the results of an evaluation."""

import argparse
from pathlib import Path

from megatron_bar.cli import Call, command_parser

EXAMPLES = (
    "{program} runs/tiny/final      with evaluation/final.json beside it, where it is there",
    "{program} final --evaluation final.json",
)


def parse(call: Call) -> argparse.Namespace:
    parser = command_parser(call, __doc__, *EXAMPLES)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a folder or artifact with a manifest")
    about = "results of this model, as bar evaluate writes them (default: evaluation/NAME.json beside FOLDER)"
    parser.add_argument("--evaluation", type=Path, metavar="FILE", help=about)
    return parser.parse_args(call.arguments)


def main(call: Call) -> None:
    args = parse(call)
    from megatron_bar.errors import BarError
    from megatron_bar.evaluation.results import mean_scores, read_results, scores_beside
    from megatron_bar.weights.card import CARD, renew_card
    from megatron_bar.weights.describe import checkpoint_config
    from megatron_bar.weights.hashes import folder_hash
    from megatron_bar.weights.manifest import read_manifest

    manifest = read_manifest(args.folder)
    config = checkpoint_config(args.folder, manifest)
    digest = folder_hash(manifest.tensors)
    if args.evaluation is None:
        scores = scores_beside(args.folder, digest)
    else:
        results = read_results(args.evaluation)
        if results["model_hash"] != digest:
            raise BarError(
                f"{args.evaluation}: expected results of {args.folder} (hash {digest[:16]}), "
                f"got those of {results['model']} (hash {results['model_hash'][:16]})"
            )
        scores = mean_scores(results)
    renew_card(args.folder, config, manifest, scores)
    print(f"{args.folder / CARD}: written, {f'{len(scores)} tests' if scores else 'no results'} in it")
