"""What the stages of a run learn from: sources, laid out as chats, made into tokens, rows or tasks."""

from pathlib import Path

from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.check import prompt_of
from megatron_bar.data.indexed import Tokens, read_indexed
from megatron_bar.data.mixture import Mixture, mix, prepare
from megatron_bar.data.packing import PackedRows
from megatron_bar.data.sources import Source, chosen_rows, parse
from megatron_bar.data.tokenizer import load_tokenizer
from megatron_bar.errors import BarError
from megatron_bar.evaluation import validation
from megatron_bar.parallel.state import on_rank_zero
from megatron_bar.recipes.recipe import Training
from megatron_bar.rl import grpo
from megatron_bar.run.folder import RunFolder
from megatron_bar.training.preference import PairRows, preference_rows
from megatron_bar.verifiers import with_prompt


def chats_of(run: RunFolder, step: str) -> ChatFormat:
    """Returns how chats are laid out for the model of ``step``."""
    return ChatFormat(load_tokenizer(run.path(step)), run.recipe.chat_template)


def tokens_of(run: RunFolder, source: Source, chats: ChatFormat) -> Tokens:
    """Returns the tokens of a source; where a process has made the token files, all map them. Collective."""

    def make() -> Path:
        with run.locks.waiting("tokens"):
            out = run.out / "tokens"
            skip_bad = run.recipe.max_refused > 0
            return prepare(source, run.data, chats, out, seed=run.recipe.seed, say=run.say, skip_bad=skip_bad)

    return read_indexed(on_rank_zero(make))


def mixture_of(run: RunFolder, training: Training, chats: ChatFormat) -> Mixture:
    """Returns the packed rows of a stage that learns from texts. Collective."""
    stage = training.stage
    return mix(
        [(source.name, tokens_of(run, source, chats)) for source in training.data],
        packing=stage.packing,
        length=stage.sequence,
        pad_id=chats.tokenizer.pad_id,
        too_long=stage.too_long,
        weights=training.weights,
    )


def held_out_rows(
    run: RunFolder, sources: tuple[Source, ...], chats: ChatFormat, length: int
) -> dict[str, PackedRows]:
    """Returns the rows of chats that no stage learns, by the names of their sources. Collective."""
    tokens = {source.name: tokens_of(run, source, chats) for source in sources}
    pad = chats.tokenizer.pad_id
    return {name: validation.held_out_rows(name, texts, length, pad_id=pad) for name, texts in tokens.items()}


def preferences_of(run: RunFolder, training: Training, chats: ChatFormat, name: str) -> PairRows:
    """Returns the pairs of a preference stage in rows; ``name`` is what lines about them begin with."""
    return preference_rows(
        training.data,
        run.data,
        chats,
        training.stage.sequence,
        too_long=training.stage.too_long,
        seed=run.recipe.seed,
        skip_bad=run.recipe.max_refused > 0,
        say=lambda line: run.say(f"{name}: {line}"),
    )


def tasks_of(run: RunFolder, training: Training, chats: ChatFormat) -> list[grpo.Task]:
    """Returns the tasks of an RLVR stage. Collective.

    All are checked before the first is drawn: graders never see a truth that they cannot use.
    """
    judge = training.rl.judge
    if judge.url:
        on_rank_zero(judge.require)
    room = training.stage.sequence - training.rl.max_new_tokens

    def make() -> list[grpo.Task]:
        tasks = []
        for source in training.data:
            for where, raw in chosen_rows(source, run.data, seed=run.recipe.seed):
                try:
                    row = parse(raw, source.kind, where)
                    prompt = prompt_of(chats, row, room, where)
                except BarError:
                    if not run.recipe.max_refused:
                        raise
                    continue  # listed, and few enough, when the run began
                truth = row["truth"]
                if judge.url:
                    truth = with_prompt(row["verifier"], truth, row["messages"])
                tasks.append(grpo.Task(prompt=prompt, verifier=row["verifier"], truth=truth))
        return tasks

    return on_rank_zero(make)
