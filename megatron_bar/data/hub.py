"""Public data sets: what of one becomes a file of ours, and where its files come from.

That is the Hugging Face hub, asked by huggingface_hub, or a mirror for machines without a network: a folder
in which ID/FILES lie as on the hub. Either lists a set's files and hands them out one by one.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, Protocol

from megatron_bar.config.names import IS_NAME
from megatron_bar.errors import BarError

READABLE = re.compile(r"\.(parquet|jsonl|jsonl?\.(gz|zst))$")
"""Names of files with rows; a plain .json beside them tells about the set."""
TABLE = r".*\.(parquet|jsonl|csv|tsv|jsonl?\.(gz|zst))"
"""Names of files with the rows of a benchmark."""
SHARD = re.compile(r"(.*)-(\d+)-of-(\d+)(\..+)")


@dataclass(frozen=True, kw_only=True)
class HubSet:
    """A data set on the Hugging Face hub."""

    id: str
    """owner/name"""
    revision: str = "main"
    """A commit, where it is known which one."""
    size: int | None = None
    """Bytes of the files that are read, where known."""
    gated: bool = False
    """Whether its terms have to be accepted on the hub first."""


@dataclass(frozen=True, kw_only=True)
class FromHub:
    """A file of a recipe's or a benchmark's data, and the rows of a public set that become it."""

    path: Path = field(metadata=IS_NAME)
    """Of the file, below the data folder: what a `Source` names."""
    hub: HubSet
    files: str = "*"
    """Which of the set's files are read, in the order of their names; a * matches slashes too."""
    pattern: str = TABLE
    """Of kind rows: a regular expression that the names of files match besides; its named groups become
    columns."""
    column: str = ""
    """The column that says which rows are taken, those with one of ``values``; empty: all."""
    values: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    """Of kind rows: what every row must have."""
    filled: tuple[str, ...] = ()
    """Of kind rows: columns without a value in rows that are left out."""
    sample: int | None = None
    """Rows taken of ``rows``, as the authors' mixer draws them: NumPy's RandomState(42), without
    replacement. Here they stay in the order of the set."""
    convert: Literal["chat", "task", "preference", "text", "fim", "rows"]
    """The kind of rows, which says how they are made into ours (convert.py); rows stay as they are."""
    join: Callable[[dict[str, Path]], Iterable[dict]] | None = None
    """Of kind rows, where they stand in several files: makes them of the files by their names. Such a set
    is read whole, and for this alone."""
    verifier: str = ""
    """Of tasks whose rows name no data set."""
    longest_prompt: int | None = None
    """Tokens of a task's prompt; longer ones are left out, after the sample is drawn."""
    rows: int | None = None
    """How many the set has of them, where that is known."""
    licence: str = ""
    note: str = ""
    """What a user should know, above all where the published run read something else."""

    def __post_init__(self):
        if bool(self.column) != bool(self.values):
            raise BarError(f"{self.path}: expected a column and the values it may have, or neither")
        if self.sample is not None and not 0 < self.sample <= (self.rows or 0):
            raise BarError(f"{self.path}: expected a sample of 1 to rows, got {self.sample} of {self.rows}")
        if not self.path.name or self.path.is_absolute() or ".." in self.path.parts:
            raise BarError(f"{self.path}: expected a path below the data folder, got another")
        if not re.fullmatch(r"[A-Za-z0-9][\w-]*(\.[\w-]+)*(/[\w-]+(\.[\w-]+)*)?", self.hub.id):
            raise BarError(f"{self.path}: hub id expected as owner/name, got {self.hub.id!r}")

    @property
    def name(self) -> str:
        """The path without its suffix."""
        return str(self.path.with_suffix(""))

    def reads(self, file: str) -> bool:
        """Returns whether ``file`` of the set is read for this."""
        if not fnmatchcase(file, self.files):
            return False
        if self.convert != "rows":
            return READABLE.search(file) is not None
        return re.fullmatch(self.pattern, file) is not None

    def labels(self, file: str) -> dict[str, str]:
        """Returns the columns that rows get from the name of their file."""
        return re.fullmatch(self.pattern, file).groupdict() if self.convert == "rows" else {}


@dataclass(frozen=True)
class HubFile:
    name: str
    """Path in the set."""
    size: int
    """Bytes."""


class NotFetched(BarError):
    """The hub could not be asked: what is done already is kept for the next try."""


class Origin(Protocol):
    """Where the files of public sets come from."""

    def revision(self, source: HubSet) -> str | None:
        """Returns the commit that the files are of; None where nobody can say."""

    def files(self, source: HubSet, folder: str) -> list[HubFile]:
        """Returns the files of the set below ``folder``; none where there is no such folder."""

    def fetch(self, source: HubSet, file: HubFile, into: Path) -> Path:
        """Returns the path of the file on this machine; a file that was put there lies below ``into``."""


class Mirror:
    """A folder with the files of sets as ID/FILES."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise BarError(f"{folder}: expected a folder with the files of hub data sets, got none")

    def revision(self, source: HubSet) -> None:
        return None

    def files(self, source: HubSet, folder: str) -> list[HubFile]:
        root = self.folder / source.id
        if not root.is_dir():
            raise BarError(f"{root}: not found; expected the files of the data set {source.id}, got none")
        found = (path for path in (root / folder).rglob("*") if path.is_file())
        names = (path.relative_to(root).as_posix() for path in found)
        shown = (name for name in names if not any(part.startswith(".") for part in name.split("/")))
        return [HubFile(name, (root / name).stat().st_size) for name in shown]

    def fetch(self, source: HubSet, file: HubFile, into: Path) -> Path:
        return self.folder / source.id / file.name


class Hub:
    """The Hugging Face hub; a token is taken from HF_TOKEN or from `hf auth login`, as ever."""

    def revision(self, source: HubSet) -> str:
        from huggingface_hub import HfApi, get_token  # here: half a second, and a mirror needs it not

        if source.gated and get_token() is None:
            raise NotFetched(_gated(source))
        return _ask(source, lambda: HfApi().dataset_info(source.id, revision=source.revision).sha)

    def files(self, source: HubSet, folder: str) -> list[HubFile]:
        from huggingface_hub import HfApi, RepoFile
        from huggingface_hub.errors import EntryNotFoundError

        def tree() -> list[HubFile]:
            options = {"recursive": True, "revision": source.revision, "repo_type": "dataset"}
            try:
                entries = list(HfApi().list_repo_tree(source.id, folder or None, **options))
            except EntryNotFoundError:
                return []
            return [HubFile(entry.path, entry.size) for entry in entries if isinstance(entry, RepoFile)]

        return _ask(source, tree)

    def fetch(self, source: HubSet, file: HubFile, into: Path) -> Path:
        from huggingface_hub import hf_hub_download

        options = {"repo_type": "dataset", "revision": source.revision, "local_dir": into}
        return Path(_ask(source, lambda: hf_hub_download(source.id, file.name, **options)))


def _ask[Made](source: HubSet, call: Callable[[], Made]) -> Made:
    from huggingface_hub.errors import GatedRepoError

    try:
        return call()
    except GatedRepoError:
        raise NotFetched(_gated(source)) from None
    except Exception as error:  # noqa: BLE001  the library and what it stands on raise anything
        why = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise NotFetched(
            f"{source.id}: expected its files from the hub, got {type(error).__name__}: {why:.200}; "
            "without a network --from reads a folder of them"
        ) from None


def _gated(source: HubSet) -> str:
    return (
        f"{source.id}: gated, expected a token that its terms were accepted with, got none or another; "
        f"accept them at huggingface.co/datasets/{source.id}, then set HF_TOKEN or run hf auth login"
    )


def list_files(origin: Origin, source: HubSet, wanted: Sequence[FromHub]) -> list[HubFile]:
    """Returns the files that are read for ``wanted``, all of the one set ``source``, by name.

    Raises where one of ``wanted`` has none, and where a shard of several (-00001-of-00006) is missing.
    """
    found: dict[str, HubFile] = {}
    for folder in sorted({_folder(row.files) for row in wanted}):
        found |= {file.name: file for file in origin.files(source, folder)}
    for row in wanted:
        if not any(row.reads(name) for name in found):
            raise BarError(
                f"{source.id}: expected JSONL or Parquet files {row.files} for {row.path}, found none"
            )
    read = {name: found[name] for name in sorted(found) if any(row.reads(name) for row in wanted)}
    for name in read:
        if shard := SHARD.fullmatch(name):
            start, number, count, end = shard.groups()
            names = (f"{start}-{n:0{len(number)}d}-of-{count}{end}" for n in range(int(count)))
            if missing := next((name for name in names if name not in read), None):
                there = sum(other.startswith(f"{start}-") for other in read)
                raise BarError(
                    f"{source.id}: {missing} is missing; expected {int(count)} files {start}-*, got {there}"
                )
    return list(read.values())


def _folder(pattern: str) -> str:
    """Returns the folder that all files of the pattern lie in."""
    return re.split(r"[*?\[]", pattern)[0].rpartition("/")[0]
