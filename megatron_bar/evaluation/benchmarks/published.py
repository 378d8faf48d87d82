"""Runs published benchmarks: all answers first, then what they score.

Answers lie in a folder, a file of JSON lines for each benchmark (answers.py), so the same command goes on
where it was ended, and several of them share the work. Scoring needs no model. A benchmark without its data,
or whose judge is not there, is not measured, and says so; averages over what is not whole say partial.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event, Thread

from blake3 import blake3

from megatron_bar.data.chat import ChatFormat
from megatron_bar.errors import BarError
from megatron_bar.evaluation.benchmarks.answers import AnswerFile
from megatron_bar.evaluation.benchmarks.asking import ask_sampler, ask_server
from megatron_bar.evaluation.benchmarks.benchmark import JudgeModel, PublishedBenchmark
from megatron_bar.evaluation.benchmarks.completions import CompletionServer
from megatron_bar.evaluation.benchmarks.items import PROTOCOLS, Items, decoding_of, read_items, spread
from megatron_bar.evaluation.benchmarks.scoring import score
from megatron_bar.evaluation.benchmarks.suite import Suite, category_means, overall
from megatron_bar.evaluation.generative import load_model
from megatron_bar.evaluation.results import hash_items, new_results
from megatron_bar.models.sampler import Sampler
from megatron_bar.parallel.state import ParallelConfig, on_rank_zero
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.hf_config import Active

TELL_S = 15.0
"""Seconds between two lines on how far it is."""


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How benchmarks are asked of a model, and where things are."""

    data: Path
    """Folder of NAME.jsonl."""
    answers: Path
    """Folder of the answers."""
    protocol: str = "published"
    limit: int | None = None
    """Most items of a benchmark."""
    server: CompletionServer | None = None
    """Who answers; None: our sampler, under torchrun in all processes."""
    requests: int = 32
    """Answers that a server is asked for at a time."""
    slots: int = 64
    """Answers that our sampler is at work at a time."""
    layout: ParallelConfig = ParallelConfig()  # noqa: RUF009  a value
    active_experts: Active | None = None
    score_only: bool = False
    """Whether nothing more is to be answered."""
    judges: Mapping[str, JudgeModel] = field(default_factory=dict)
    """By kind."""

    def __post_init__(self):
        if self.protocol not in PROTOCOLS:
            raise BarError(f"protocol expected one of {', '.join(PROTOCOLS)}, got {self.protocol!r}")
        if not self.data.is_dir():
            raise BarError(
                f"{self.data}: not found; expected a folder of NAME.jsonl (bar prepare bar19 --out DIR)"
            )


def run_published(
    folder: Path,
    chats: ChatFormat,
    suite: Suite[PublishedBenchmark],
    asking: Asking,
    *,
    names: Sequence[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> dict:
    """Returns results (see `results`) of the benchmarks called ``names``, none: all, of a suite on
    ``folder``, with benchmarks, categories and overall (scores from 0 to 1). Collective.

    The averages are those of the whole suite. Raises BarError where nothing can be measured.
    """
    run = _Run(folder, chats, suite, asking, names)
    try:
        if not asking.score_only:
            with _telling(run.files, say):
                run.ask()
        return on_rank_zero(lambda: run.results(say))
    finally:
        run.close()


@contextmanager
def _telling(files: Sequence[AnswerFile | None], say: Callable[[str], None]) -> Iterator[None]:
    """Says now and then how many answers are there, other processes' among them."""
    there = [file for file in files if file is not None]  # none on ranks other than 0
    total = sum(file.units for file in there)
    ended = Event()

    def tell() -> None:
        while not ended.wait(TELL_S):
            say(f"  {sum(len(file.found) for file in there):,} of {total:,} answers")

    if there:
        Thread(target=tell, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


class _Run:
    """One run of a suite: what is asked, where its answers are, and why some is not measured."""

    def __init__(
        self,
        folder: Path,
        chats: ChatFormat,
        suite: Suite[PublishedBenchmark],
        asking: Asking,
        names: Sequence[str],
    ):
        self.folder = folder
        self.suite = suite
        self.asking = asking
        config = Folder.open(folder).config
        self.head = on_rank_zero(
            lambda: new_results(folder, suite.name, active_experts=asking.active_experts, limit=asking.limit)
        )
        self.positions = config.max_positions
        if asking.server is not None:
            self.positions = min(self.positions, asking.server.positions or self.positions)
        self.not_measured = {benchmark.name: "not asked for" for benchmark in suite.benchmarks}
        self.data: dict[str, dict] = {}
        """Hash of all rows, and what the manifest says of their origin."""
        self.items: list[Items] = []
        for benchmark in suite.choose(names):
            self._read(benchmark, chats)
        if not self.items:
            first = suite.choose(names)[0].name
            why = self.not_measured[first]
            raise BarError(f"suite {suite.name}: nothing can be measured here; {first}: {why}")
        self.files: list[AnswerFile | None] = [None] * len(self.items)
        on_rank_zero(self._open)

    def _read(self, benchmark: PublishedBenchmark, chats: ChatFormat) -> None:
        """Notes what is asked of a benchmark, or why it is not."""
        name = benchmark.name
        path = self.asking.data / f"{name}.jsonl"
        if not path.exists():
            self.not_measured[name] = f"{path} not found; make it by `bar prepare bar19 --out {path.parent}`"
            return
        rows, origin = read_items(benchmark, path)
        items = Items(
            benchmark=benchmark,
            rows=spread(rows, self.asking.limit),
            decoding=decoding_of(benchmark, self.asking.protocol),
            chats=chats,
            positions=self.positions,
        )
        try:
            items.prompt(items.rows[0], 0, ())
        except BarError as error:  # a template without a place for tools, say
            self.not_measured[name] = str(error)
            return
        del self.not_measured[name]
        self.data[name] = {"hash": hash_items(rows), **origin}
        self.items.append(items)

    def _open(self) -> None:
        for number, items in enumerate(self.items):
            path = self.asking.answers / f"{items.benchmark.name}.jsonl"
            options = {"each": items.decoding.answers, "write": not self.asking.score_only}
            self.files[number] = AnswerFile(path, self._about(items), items.units, **options)

    def _about(self, items: Items) -> dict:
        """Returns all that answers depend on; to score them it does not matter who gave them."""
        tokenizer = items.chats.tokenizer.hash
        about = {key: self.head[key] for key in ("suite", "model_hash", "active_experts")} | {
            "benchmark": items.benchmark.name,
            "protocol": self.asking.protocol,
            "decoding": asdict(items.decoding),
            "data": self.data[items.benchmark.name]["hash"],
            "chats": blake3(f"{tokenizer} {items.chats.template}".encode()).hexdigest(),
        }
        if self.asking.score_only:
            return about
        return about | {"through": self._through, "positions": self.positions}

    @property
    def _through(self) -> str:
        server = self.asking.server
        return "sampler" if server is None else f"server of {server.model}"

    def ask(self) -> None:
        """Answers what is missing. Collective."""
        if on_rank_zero(lambda: all(file.complete for file in self.files)):
            return
        work = list(zip(self.items, self.files, strict=True))
        asking = self.asking
        if asking.server is not None:
            on_rank_zero(lambda: ask_server(work, asking.server, requests=asking.requests))
            return
        model = load_model(self.folder, asking.layout, active_experts=asking.active_experts)
        chats = self.items[0].chats
        sampler = Sampler(model, eos_ids=chats.stop_ids, pad_id=chats.tokenizer.pad_id)
        ask_sampler(work, sampler, slots=asking.slots)

    def results(self, say: Callable[[str], None]) -> dict:
        """Returns what the answers score."""
        results = self.head
        measured = {}
        for items, file in zip(self.items, self.files, strict=True):
            name = items.benchmark.name
            if why_not := self._cannot_score(items, file):
                self.not_measured[name] = why_not
                continue
            judge = self.asking.judges.get(items.benchmark.judge)
            measured[name], scored = score(items, file.found, judge)
            results["tests"][name] = {"hash": hash_items(items.rows), "items": len(scored)}
            results["scores"][name] = scored
            say(f"  {name}: {100 * measured[name]['score']:.1f} % of {len(scored)} items")
        if not measured:
            name, why = next((n, w) for n, w in self.not_measured.items() if w != "not asked for")
            raise BarError(f"suite {self.suite.name}: nothing can be measured here; {name}: {why}")
        scores = {name: entry["score"] for name, entry in measured.items()}
        categories = category_means(self.suite.benchmarks, scores)
        return results | {
            "settings": {
                "protocol": self.asking.protocol,
                "through": ", ".join(sorted({str(file.through) for file in self.files})),
                "judges": {kind: judge.model for kind, judge in self.asking.judges.items()},
                "data": {name: self.data[name] for name in measured},
            },
            "benchmarks": {
                b.name: {"category": b.category}
                | (measured[b.name] if b.name in measured else {"not_measured": self.not_measured[b.name]})
                for b in self.suite.benchmarks
            },
            "categories": {name: asdict(average) for name, average in categories.items()},
            "overall": asdict(overall(categories)),
        }

    def _cannot_score(self, items: Items, file: AnswerFile) -> str:
        missing = len(items.units) - len(file.found)
        kind = items.benchmark.judge
        if missing:
            return f"{missing:,} of {len(items.units):,} answers are not in {file.path}"
        if kind is not None and kind not in self.asking.judges:
            return f"needs --judge {kind}=URL; its answers are there"
        return ""

    def close(self) -> None:
        for file in self.files:
            if file is not None:
                file.close()
