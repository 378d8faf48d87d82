"""Looks at every row that steps will use, before the first of them, and says then what can be known.

What was found is kept in OUT/checked.json under a hash of all it depends on (the files, the tokenizer, the
template, what looked at them), so that the same command begins at once. Rows that are refused stop the run;
where the recipe's `max_refused` says so they are left out, and listed in OUT/refused with the reason of each.
"""

import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

from blake3 import blake3

from megatron_bar.data.check import NOTES, Checked, Use, check_uses
from megatron_bar.data.indexed import read_indexed
from megatron_bar.data.mixture import SMALL
from megatron_bar.data.sources import Source, identity
from megatron_bar.data.tokenizer import load_tokenizer
from megatron_bar.errors import BarError
from megatron_bar.run.folder import RunFolder
from megatron_bar.run.graph import Step, steps_of
from megatron_bar.weights.hf_config import ModelConfig
from megatron_bar.weights.json_file import read_object
from megatron_bar.weights.whole import write_whole

EVERY = 10.0
"""Seconds between lines that say how far it is."""
REASONS = 4
"""Kinds of reasons that an error counts up."""


def check_rows(run: RunFolder, steps: Iterable[Step], shape: ModelConfig, *, keep: bool = True) -> None:
    """Raises a BarError unless every row that ``steps`` use can be used, or few enough cannot.

    ``shape``: of the dense model. ``keep``: write what was found into the run's folder, which is not made
    before all is right.
    """
    uses = list(dict.fromkeys(_uses(run, steps, shape)))
    texts = {use.tokenizer: load_tokenizer(use.tokenizer) for use in uses}
    files = _files(run, {use.source: texts[use.tokenizer] for use in uses})
    uses = [use for use in uses if use.source.kind != "tokens" and not _is_part(use, uses)]
    keys = {use: _key(use, files[use.source], texts[use.tokenizer]) for use in uses}
    known = _read(run)
    new = [use for use in uses if keys[use] not in known]
    sizes = [size for use in new for size, *_ in files[use.source].values() if isinstance(size, int)]
    for use, found in _look(run, new, len(os.sched_getaffinity(0)) if sum(sizes) > SMALL else 1):
        known[keys[use]] = found
        if keep and run.out.is_dir():
            _write(run, known)
    for use in uses:
        _judge(run, use, known[keys[use]])
    if new:
        rows = sum(known[keys[use]]["rows"] for use in new)
        run.say(f"rows: {rows:,} of {len(new)} sources looked at as the stages will use them")
    for use in new:
        _say(run, use, keys[use], known[keys[use]], keep=keep)
    if keep and new:
        _write(run, known)


def _uses(run: RunFolder, steps: Iterable[Step], shape: ModelConfig) -> Iterator[Use]:
    """Yields what the steps read, and how long it may be."""
    recipe = run.recipe
    graph = steps_of(recipe)
    for step in steps:
        tests = recipe.evaluation.tests if step.stage == "evaluate" else ()
        if not step.reads and not tests:
            continue
        more = {"tokenizer": _tokenizer(run, step, graph), "template": recipe.chat_template}
        for source in step.reads:
            yield Use(source=source, room=_room(step, source), seed=recipe.seed, **more)
        for test in tests:
            room = shape.max_positions - test.max_new_tokens
            yield Use(source=Source(path=test.path, kind="task"), room=room, spare=False, **more)


def _room(step: Step, source: Source) -> int | None:
    if step.run is None:
        return None
    stage = step.run.stage
    if source.kind == "task":
        return stage.sequence - step.run.rl.max_new_tokens
    packed = source.kind == "preference" or stage.packing == "documents"
    return stage.sequence if packed and stage.too_long == "error" else None


def _tokenizer(run: RunFolder, step: Step, graph: dict[str, Step]) -> Path:
    """Returns the folder whose tokenizer the step's model has: that of the model it all starts from."""
    name = step.name
    while name not in run.recipe.given:
        needs = [need for need in graph[name].needs if need != "world"]
        if not needs:
            return run.data / "tokenizer"
        name = needs[0]
    return run.recipe.given[name]


def _files(run: RunFolder, sources: dict[Source, object]) -> dict[Source, dict[str, list]]:
    """Returns what identifies the rows of each source, nothing for token files, which are looked at here.

    ``sources``: each with its tokenizer. Raises unless all are there, and names all that are not.
    """
    found = {}
    missing: dict[str, BarError] = {}
    for source, text in sources.items():
        if source.kind == "tokens":
            read_indexed(run.data / source.place, vocab_size=text.vocab_size)
            continue
        try:
            found[source] = identity(source, run.data)
        except BarError as error:
            missing[str(source.place)] = error
    if missing:
        first, *others = missing
        more = f"; nor are there {', '.join(others)}" if others else ""
        raise BarError(f"{missing[first]}{more}")
    return found


def _is_part(use: Use, uses: list[Use]) -> bool:
    """Returns whether another use looks at all rows of this one, in the same way."""
    whole = replace(use, source=replace(use.source, share=1.0, domain=""))
    others = (replace(other, source=replace(other.source, domain="")) for other in uses)
    return use.source.share < 1 and whole in others


def _key(use: Use, files: dict[str, list], text) -> str:
    """Returns a hash of all that the check of a use depends on."""
    what = {key: str(value) for key, value in asdict(use.source).items() if key != "domain"}
    what |= {"files": files, "tokenizer": text.hash, "template": [use.template, text.template]}
    what |= {"room": use.room, "seed": use.seed, "code": _code()}
    return blake3(json.dumps(what).encode()).hexdigest()[:24]


@cache
def _code() -> str:
    """Returns a hash of what looks at rows."""
    package = Path(__file__).parents[1]
    files = sorted(file for part in ("data", "verifiers") for file in (package / part).rglob("*.py"))
    return blake3(b"".join(file.read_bytes() for file in files)).hexdigest()


def _look(run: RunFolder, uses: list[Use], processes: int) -> Iterator[tuple[Use, dict]]:
    """Yields what is found, use by use: its rows, those refused, and what else is to be known of them."""
    shown = time.monotonic()
    done: list[Checked] = []
    for checked in check_uses(uses, run.data, processes=processes):
        if done and checked.number != done[0].number:
            yield uses[done[0].number], _together(done)
            done = []
        done.append(checked)
        if time.monotonic() - shown > EVERY:
            shown = time.monotonic()
            rows = sum(block.rows for block in done)
            run.say(f"rows of {uses[checked.number].source.path}: {rows:,} looked at")
    if done:
        yield uses[done[0].number], _together(done)


def _together(blocks: list[Checked]) -> dict:
    notes = sum((block.notes for block in blocks), Counter())
    refused = [row for block in blocks for row in block.refused]
    return {"rows": sum(block.rows for block in blocks), "refused": refused, "notes": notes}


def _judge(run: RunFolder, use: Use, known: dict) -> None:
    """Raises where more rows are refused than may be."""
    count = len(known["refused"])
    allowed = int(run.recipe.max_refused * known["rows"]) if use.spare else 0
    if count <= allowed:
        return
    where, reason = known["refused"][0]
    if count == 1:
        raise BarError(f"{where}: {reason}")
    raise BarError(
        f"{where}: {reason}; in all {count:,} of the {known['rows']:,} rows of {use.source.path} are refused "
        f"({_reasons(known['refused'])}), expected at most {allowed:,} (max_refused)"
    )


def _say(run: RunFolder, use: Use, key: str, known: dict, *, keep: bool) -> None:
    """Says what is to be known of a source's rows; lists those that are refused."""
    for name, count in known["notes"].items():
        run.say(f"note: {use.source.path}: {count:,} of {known['rows']:,} {NOTES[name]}")
    refused = known["refused"]
    if not refused:
        return
    count = f"{len(refused):,} of {known['rows']:,} rows refused and left out"
    # Without a list all kinds are said.
    run.say(f"note: {use.source.path}: {count} ({_reasons(refused, REASONS if keep else len(refused))})")
    if keep:
        rows = (json.dumps({"row": where, "reason": reason}, ensure_ascii=False) for where, reason in refused)
        write_whole(run.out / "refused" / f"{use.source.name}-{key[:8]}.jsonl", "\n".join(rows) + "\n")


def _reasons(refused: list[tuple[str, str]], most: int = REASONS) -> str:
    """Counts refused rows by reason, the words before what was found, and gives the first row of each."""
    kinds: dict[str, list[tuple[str, str]]] = {}
    for where, reason in refused:
        kinds.setdefault(re.sub(r"\d+", "N", reason.partition(", got ")[0])[:90], []).append((where, reason))
    ordered = sorted(kinds.values(), key=len, reverse=True)
    shown = [
        f"{len(rows):,}, as {rows[0][0].rpartition('/')[2]}: {rows[0][1]:.160}" for rows in ordered[:most]
    ]
    return "; ".join(shown + ([f"{len(ordered) - most} other reasons"] if len(ordered) > most else []))


def _read(run: RunFolder) -> dict[str, dict]:
    path = run.out / "checked.json"
    return read_object(path, expected="what was found in rows") if path.is_file() else {}


def _write(run: RunFolder, known: dict[str, dict]) -> None:
    write_whole(run.out / "checked.json", json.dumps(known, ensure_ascii=False))
