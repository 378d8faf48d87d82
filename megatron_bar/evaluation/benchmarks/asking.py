"""Who answers the items: our sampler in this process, or a server with many requests under way. What is drawn
depends on the item alone and what was answered is stored, so an interrupted run goes on where it was, and
several processes share the items out."""

import threading
import time
from collections.abc import Sequence
from queue import SimpleQueue

from megatron_bar.errors import BarError
from megatron_bar.evaluation.benchmarks.answers import Answer, AnswerFile, Turn, Unit
from megatron_bar.evaluation.benchmarks.completions import CompletionServer
from megatron_bar.evaluation.benchmarks.items import Items
from megatron_bar.models.sampler import Sampler
from megatron_bar.parallel.state import on_rank_zero

WAIT = 1.0
"""Seconds between looks at what other processes answer."""
CLAIM = 4
"""Times the slots: answers that the sampler is asked for at a time."""
Work = Sequence[tuple[Items, AnswerFile | None]]
"""Benchmarks and where their answers go; ranks other than 0 have None there."""


def ask_sampler(work: Work, sampler: Sampler, *, slots: int) -> None:
    """Answers what is missing of ``work``, ``slots`` prompts at a time. Collective."""
    left = list(work)
    while left:
        worked = False
        for items, file in left:
            while units := on_rank_zero(lambda file=file: file.claim(CLAIM * slots)):
                _sample(items, file, sampler, units, slots)
                worked = True
        left = [(items, file) for items, file in left if not on_rank_zero(lambda file=file: file.complete)]
        if left and not worked:
            time.sleep(WAIT)


def _sample(items: Items, file: AnswerFile | None, sampler: Sampler, units: list[Unit], slots: int) -> None:
    """Answers ``units``, all of them a turn at a time; an answer is stored when nothing more is asked."""
    rows = items.by_index
    turns: dict[Unit, tuple[Turn, ...]] = dict.fromkeys(units, ())
    while units:
        prompts = {unit: items.prompt(rows[unit[0]], unit[1], turns[unit]) for unit in units}
        units = [unit for unit, prompt in prompts.items() if prompt is not None and prompt.room]
        ended = {
            unit: Answer(turns=turns[unit], too_long=prompt is not None)
            for unit, prompt in prompts.items()
            if unit not in units
        }
        on_rank_zero(lambda ended=ended: file.add(ended))
        done = sampler.generate(
            [prompts[unit].ids for unit in units],
            max_new_tokens=[prompts[unit].room for unit in units],
            temperature=items.decoding.temperature,
            top_p=items.decoding.top_p,
            seed=[prompts[unit].seed for unit in units],
            slots=slots,
        )
        for unit, completion in zip(units, done, strict=True):
            text = items.chats.tokenizer.decode(completion.ids)
            turn = Turn(text=text, tokens=len(completion.ids), finished=completion.finished)
            turns[unit] += (turn,)


def ask_server(work: Work, server: CompletionServer, *, requests: int) -> None:
    """Answers what is missing of ``work`` by a server, which has ``requests`` of them under way.

    When it gives no answer to one of them, those under way are waited for and stored, and BarError is raised.
    """
    give_up = threading.Event()
    todo: SimpleQueue = SimpleQueue()
    done: SimpleQueue = SimpleQueue()
    under_way = threading.Semaphore(requests)
    # As many threads again have their next prompt ready, so that the server never waits for one.
    count = 2 * requests

    def answer() -> None:
        while (asked := todo.get()) is not None:
            items, file, unit = asked
            try:
                done.put((file, unit, _converse(items, server, unit, under_way, give_up)))
            except Exception as error:  # noqa: BLE001  raised below
                done.put((file, unit, error))

    for _ in range(count):
        threading.Thread(target=answer, daemon=True).start()
    try:
        _keep_busy(work, count, todo, done, give_up)
    finally:
        for _ in range(count):
            todo.put(None)


def _keep_busy(
    work: Work, count: int, todo: SimpleQueue, done: SimpleQueue, give_up: threading.Event
) -> None:
    """Gives ``count`` threads what they are to ask, and stores what they come back with."""
    under_way = 0
    problem = None
    while True:
        if problem is None:
            claimed = _claim(work, count - under_way)
            for asked in claimed:
                todo.put(asked)
            under_way += len(claimed)
        if under_way:
            came = [done.get() for _ in range(max(1, done.qsize()))]
            under_way -= len(came)
            for file in {file for file, *_ in came}:
                file.add({unit: found for f, unit, found in came if f is file and isinstance(found, Answer)})
            failed = [found for *_, found in came if isinstance(found, Exception)]
            if failed:
                give_up.set()
                problem = problem or failed[0]
        elif problem is not None:
            raise problem
        elif all(file.complete for _, file in work):
            return
        else:
            time.sleep(WAIT)


def _claim(work: Work, most: int) -> list[tuple[Items, AnswerFile, Unit]]:
    """Returns at most ``most`` answers to ask for, of the first benchmarks that have some."""
    claimed: list[tuple[Items, AnswerFile, Unit]] = []
    for items, file in work:
        if len(claimed) < most:
            claimed += [(items, file, unit) for unit in file.claim(most - len(claimed))]
    return claimed


def _converse(
    items: Items,
    server: CompletionServer,
    unit: Unit,
    under_way: threading.Semaphore,
    give_up: threading.Event,
) -> Answer:
    """Returns all turns of an answer; ``under_way`` is held while the server is at one."""
    row = items.by_index[unit[0]]
    turns: tuple[Turn, ...] = ()
    while (prompt := items.prompt(row, unit[1], turns)) is not None and prompt.room:
        with under_way:
            if give_up.is_set():
                raise BarError("not asked any more")
            turns += (server.answer(prompt, items.decoding, items.chats.stop_ids, give_up),)
    return Answer(turns=turns, too_long=prompt is not None)
