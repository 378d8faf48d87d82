"""Makes the files of a recipe's data, or of the published benchmarks (bar19), out of public data sets.

They come from the Hugging Face hub or from a mirror. Each set is read once and file by file into all that is
made of it; killed and started again it goes on. A recipe's rows become ours (chats, tasks with a verifier,
texts), each is checked as the stages check it, and what cannot be used is counted by reason and listed in
OUT/refused.jsonl; a benchmark's stay as they are, and all of them must be there. OUT/manifest.json says what
came from where.
"""

import argparse
from pathlib import Path

from megatron_bar.cli import Call, aligned, command_parser

EXAMPLES = (
    "{program} olmo2_7b --list",
    "{program} olmo2_7b --out /data --tokenizer BAR-7B",
    "{program} olmo2_7b --out /data --only sft/general rlvr/math/omega",
    "{program} olmo2_7b --out /data --from /mirror",
    "{program} bar19 --out /bar19",
)
BENCHMARKS = "bar19"


def parse(call: Call) -> argparse.Namespace:
    parser = command_parser(call, __doc__, *EXAMPLES)
    about = "olmo2_7b or another of its data, module:function or file.py:function; bar19: the benchmarks"
    parser.add_argument("recipe", help=about)
    parser.add_argument("--out", type=Path, metavar="DATA", help="the data folder")
    parser.add_argument("--list", action="store_true", help="print what would be read, and download nothing")
    parser.add_argument(
        "--only",
        nargs="+",
        action="extend",
        default=[],
        metavar="PATH",
        help="only these files or folders of the list (default: all that a recipe's stages read)",
    )
    about = "a folder of hub files laid out as ID/FILES, in the place of the hub"
    parser.add_argument("--from", dest="mirror", type=Path, metavar="MIRROR", help=about)
    about = (
        "a folder with the recipe's tokenizer, to leave out prompts that are too long (default: the anchor)"
    )
    parser.add_argument("--tokenizer", type=Path, metavar="HF", help=about)
    about = "share of a file's rows that may be unusable (default 0.05; bar19: none)"
    parser.add_argument("--max-refused", type=float, metavar="SHARE", help=about)
    about = "take a set that has more or fewer rows than expected"
    parser.add_argument("--accept-counts", action="store_true", help=about)
    args = parser.parse_args(call.arguments)
    if args.out is None and not args.list:
        parser.error("--out: expected a folder to write to, or --list")
    if args.max_refused is None:
        args.max_refused = 0.0 if args.recipe == BENCHMARKS else 0.05
    return args


def main(call: Call) -> None:
    args = parse(call)
    from megatron_bar.data.hub import Hub, Mirror
    from megatron_bar.data.prepare import Rules, prepare

    recipe = _recipe(args.recipe)
    wanted = _wanted(recipe, args.only)
    mirror = args.mirror and Mirror(args.mirror)
    if args.list:
        print("\n".join(_listing(wanted, mirror)))
        return
    rules = Rules(
        chats=_chats(recipe, args.tokenizer),
        accept_counts=args.accept_counts,
        max_refused=args.max_refused,
    )
    say = lambda line: print(line, flush=True)  # noqa: E731
    if rules.chats.tokenizer.hash is None and any(row.longest_prompt for row in wanted):
        say("prompts are not measured: --tokenizer HF leaves out those that no stage has room for")
    made = prepare(wanted, mirror or Hub(), args.out, rules, say)
    for line in aligned([_counts(path, entry) for path, entry in made.items()]):
        say(line)


def _recipe(name: str):
    """Returns the recipe; None for the benchmarks, which have none."""
    if name == BENCHMARKS:
        return None
    from megatron_bar.recipes import load_recipe  # here: it takes seconds

    return load_recipe(name)


def _wanted(recipe, only: list[str]) -> list:
    """Returns the rows of the table: of what the recipe's stages read, of all benchmarks, or what ``only``
    names."""
    from megatron_bar.errors import BarError
    from megatron_bar.evaluation.benchmarks.hub_data import BENCHMARK_DATA

    table = recipe.from_hub if recipe else BENCHMARK_DATA
    if not table:
        raise BarError(f"recipe {recipe.name}: expected one with public data, as olmo2_7b, got none in it")
    if not only:
        read = {source.place for source in recipe.sources} if recipe else {row.path for row in table}
        return [row for row in table if row.path in read]
    names = [name.strip("/").removesuffix(".jsonl") for name in only]
    for name in names:
        if not any(_is_below(row, name) for row in table):
            known = ", ".join(row.name for row in table)
            raise BarError(f"--only {name}: expected a file of {known}, or a folder of them")
    return [row for row in table if any(_is_below(row, name) for name in names)]


def _is_below(row, name: str) -> bool:
    return f"{row.name}/".startswith(f"{name}/")


def _chats(recipe, tokenizer: Path | None):
    """Returns how the recipe lays chats out, with the tokenizer if there is one."""
    from megatron_bar.data.chat import ChatFormat
    from megatron_bar.data.convert import NoTokenizer
    from megatron_bar.data.tokenizer import load_tokenizer
    from megatron_bar.errors import BarError

    if recipe is None:
        return ChatFormat(NoTokenizer(), "chatml")  # no chat is laid out
    folder = tokenizer or recipe.anchor
    found = tokenizer is not None or (folder is not None and folder.is_dir())
    if recipe.chat_template == "own" and not found:
        raise BarError(
            f"recipe {recipe.name}: template own is the tokenizer's; expected --tokenizer, got none"
        )
    return ChatFormat(load_tokenizer(folder) if found else NoTokenizer(), recipe.chat_template)


def _listing(wanted: list, mirror) -> list[str]:
    """Returns what would be read and made, and what is known of its size."""
    from megatron_bar.data.prepare import amount, readings, room_of

    rows = [["file", "rows", "licence", "set", "of it"]]
    for row in wanted:
        sample = f"{row.sample:,} of " if row.sample else ""
        count = f"{sample}{row.rows:,}" if row.rows else "not known"
        where = f"{row.column} = {' or '.join(row.values)}" if row.column else row.files
        rows.append([str(row.path), count, row.licence + " (gated)" * row.hub.gated, row.hub.id, where])
    table = aligned(rows)
    lines = [table[0]]
    for line, row in zip(table[1:], wanted, strict=True):
        lines += [line, *([f"    {row.note}"] if row.note else [])]
    sets = list(dict.fromkeys(row.hub for row in wanted))
    if mirror is not None:
        planned = readings(wanted, mirror)
        sizes = [[r.hub.id, f"{len(r.files)} files", amount(sum(f.size for f in r.files))] for r in planned]
        return [*lines, "", *aligned(sizes), f"on disk about {amount(room_of(planned, mirror))}"]
    sizes = [[hub.id, hub.revision, amount(hub.size) if hub.size else "size not known"] for hub in sets]
    known = sum(hub.size or 0 for hub in sets)
    unknown = sum(hub.size is None for hub in sets)
    total = f"to read {amount(known)}" + (f" and {unknown} sets of sizes not known" if unknown else "")
    return [*lines, "", *aligned(sizes), f"{total}; before anything is read the hub is asked for all sizes"]


def _counts(path: str, entry: dict) -> list[str]:
    refused = sum(entry["refused"].values())
    left_out = {"refused": refused, "too long": entry["too_long"]}
    told = ", ".join(f"{count:,} {why}" for why, count in left_out.items() if count)
    return [path, f"{entry['kept']:,} rows", told]
