"""Public sets to files of ours: each set is read once, file by file, into all that is made of it.

What is unfinished lies in OUT/.prepare, a folder a set: the files so far, and state.json with what they hold
after the last whole file of the set. A run that was killed goes on behind that file and ends with the same
bytes; an input that is wrong leaves nothing. At the end the files get their names and OUT/manifest.json says
what they were made of. Rows that cannot be used are counted by reason, and listed in OUT/refused.jsonl.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from blake3 import blake3

from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.convert import COLUMNS, NoTokenizer, check_line, convert, reason
from megatron_bar.data.hub import FromHub, HubFile, HubSet, Mirror, NotFetched, Origin, list_files
from megatron_bar.data.sources import Source, raw_rows
from megatron_bar.data.tables import SUFFIXES, table_rows
from megatron_bar.errors import BarError, writing
from megatron_bar.weights.json_file import loads, no_duplicates, read_object, why
from megatron_bar.weights.whole import write_whole

WORK = ".prepare"
MANIFEST = "manifest.json"
REFUSED = "refused.jsonl"
MIXER_SEED = 42
OF_ROWS = ("pattern", "columns", "filled", "join")
"""Fields of a `FromHub` that other kinds do without."""
GROWTH = {".parquet": 2.0, ".gz": 3.0, ".zst": 3.0}
"""Bytes of JSONL for a byte of such a file, rather too few: only disks that are surely too small are
refused."""
PLAIN = 100
"""Refused rows without one that is kept, after which a set is not read on."""
SHOWN = 1000
"""Characters of a refused row that are listed."""
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What is made of the rows depends on this, besides the table."""

    chats: ChatFormat
    """Lays chats out as the recipe does; with `NoTokenizer` no prompt is too long."""
    accept_counts: bool = False
    """Take a set though it has more or fewer rows than it should."""
    max_refused: float = 0.05
    """Share of a file's rows that may be unusable."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One reading of a set, and what is made in it."""

    hub: HubSet
    """With the commit that is read, where that is known."""
    commit: str | None
    files: list[HubFile]
    wanted: list[FromHub]

    @property
    def room(self) -> int:
        """Bytes that what is made takes, about."""
        return round(sum(file.size * GROWTH.get(Path(file.name).suffix, 1.0) for file in self.files))


def readings(wanted: Sequence[FromHub], origin: Origin) -> list[Reading]:
    """Returns how ``wanted`` is made of the files of ``origin``; raises where one is missing."""
    made = []
    for hub in dict.fromkeys(row.hub for row in wanted):
        rows = [row for row in wanted if row.hub == hub]
        commit = origin.revision(hub)
        pinned = hub if commit is None else replace(hub, revision=commit)
        files = list_files(origin, pinned, rows)
        made.append(Reading(hub=pinned, commit=commit, files=files, wanted=rows))
    return made


def amount(nbytes: float) -> str:
    """Returns bytes in words."""
    units = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
    return next((f"{nbytes / size:,.1f} {unit}" for size, unit in units if nbytes >= size), f"{nbytes:.0f} B")


def room_of(planned: Sequence[Reading], origin: Origin) -> int:
    """Returns the bytes of disk that a run takes, about: what is made, and a downloaded file at a time."""
    largest = max(file.size for reading in planned for file in reading.files)
    return sum(reading.room for reading in planned) + (0 if isinstance(origin, Mirror) else largest)


def prepare(wanted: Sequence[FromHub], origin: Origin, out: Path, rules: Rules, say: Say) -> dict[str, dict]:
    """Makes what is missing of ``wanted`` below ``out``; returns the manifest's entries of all of it."""
    out = Path(out)
    if not 0 <= rules.max_refused <= 1:
        raise BarError(f"max_refused expected within 0 and 1, got {rules.max_refused}")
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise BarError(f"{out}: expected a folder to write to, got a file or a link")
    work = out / WORK
    if work.is_dir():
        with _only_writer(out), writing(out):
            for left in sorted(path for path in work.iterdir() if path.is_dir()):
                _publish(left, out)
    missing = [row for row in wanted if not _is_there(row, out, rules)]
    if missing:
        planned = readings(missing, origin)
        _check_room(planned, origin, out)
        with _only_writer(out), writing(out):
            for reading in planned:
                _make(reading, origin, out, rules, say)
    entries = read_manifest(out)
    return {str(row.path): entries[str(row.path)] for row in wanted}


def read_manifest(out: Path) -> dict[str, dict]:
    """Returns what the finished files below ``out`` were made of, by their paths."""
    file = Path(out) / MANIFEST
    if not file.exists():
        return {}
    files = read_object(file, expected="the manifest of prepared data").get("files")
    if not isinstance(files, dict):
        raise BarError(f"{file}: expected the manifest of prepared data, got another file; remove it")
    return files


def _is_there(row: FromHub, out: Path, rules: Rules) -> bool:
    path = out / row.path
    entry = read_manifest(out).get(str(row.path))
    if not path.exists():
        return False
    if entry is None or entry["made"] != _made(row, rules) or entry["bytes"] != path.stat().st_size:
        got = "one that is not in its manifest" if entry is None else "one of another table, template or size"
        raise BarError(f"{path}: expected none or the file of an earlier run, got {got}; remove it")
    return True


def _made(row: FromHub, rules: Rules) -> dict:
    """Returns all of the table and the rules that a file's bytes depend on, besides the set's files."""
    told = ("hub", "licence", "note")
    made = {key: str(v) if key == "path" else v for key, v in asdict(row).items() if key not in told}
    made |= {key: list(value) for key, value in made.items() if isinstance(value, tuple)}
    made["hub"] = row.hub.id
    if row.convert != "rows":
        made = {key: value for key, value in made.items() if key not in OF_ROWS}
    elif row.join:
        made["join"] = row.join.__name__
    if row.convert in ("chat", "task", "preference"):
        made["template"] = rules.chats.name
    if row.longest_prompt is not None:
        made["tokenizer"] = rules.chats.tokenizer.hash
    return made


def _check_room(planned: list[Reading], origin: Origin, out: Path) -> None:
    there = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    room = room_of(planned, origin)
    free = shutil.disk_usage(there).free + sum(f.stat().st_size for f in out.glob(f"{WORK}/*/**/*.jsonl"))
    if room > free:
        raise BarError(f"{out}: not enough space: expected about {amount(room)} free, got {amount(free)}")


@contextmanager
def _only_writer(out: Path) -> Iterator[None]:
    """Keeps other processes out of ``out/.prepare``, and removes that and ``out`` where they end empty."""
    work = out / WORK
    if work.is_symlink():
        raise BarError(f"{work}: expected a folder of our own, got a link")
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = (work / "lock").open("w")
    except OSError as error:
        raise BarError(f"{out}: expected a folder to write to, got {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BarError(f"{out}: expected to be its only writer, got another process at work") from None
        try:
            yield
        finally:
            if [path.name for path in work.iterdir()] == ["lock"]:
                shutil.rmtree(work)
                _remove_empty(out)


def _remove_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        pass  # something is in it


def _make(reading: Reading, origin: Origin, out: Path, rules: Rules, say: Say) -> None:
    work = out / WORK / reading.hub.id.replace("/", "--")
    parts: list[_Part] = []
    try:
        state = _take_up(work, _plan(reading, rules))
        parts += (_Part(row, work, state["parts"].get(str(row.path)), rules) for row in reading.wanted)
        _read(reading, origin, work, state, parts, rules, say)
        _check(reading, parts, rules)
    except NotFetched:
        raise
    except BarError:
        # What is wrong with the input has to be changed, and then nothing here is of use. After a full disk,
        # an OSError, it is.
        shutil.rmtree(work, ignore_errors=True)
        raise
    finally:
        for part in parts:
            part.close()
    entries = {str(part.row.path): _entry(reading, state, part, rules) for part in parts}
    _write_state(work, state | {"publish": entries})
    _publish(work, out)


def _plan(reading: Reading, rules: Rules) -> dict:
    files = [[file.name, file.size] for file in reading.files]
    return {"commit": reading.commit, "files": files, "made": [_made(row, rules) for row in reading.wanted]}


def _take_up(work: Path, plan: dict) -> dict:
    """Returns the state of an interrupted run with the same plan, or a new one."""
    file = work / "state.json"
    if file.is_file():
        state = read_object(file, expected="the state of an interrupted run")
        if state.get("plan") == plan:
            return state
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    return {"plan": plan, "read": [], "parts": {}}


def _write_state(work: Path, state: dict) -> None:
    beside = work / "state.partial"
    with beside.open("w", encoding="utf-8") as file:
        file.write(json.dumps(state))
        file.flush()
        os.fsync(file.fileno())
    beside.rename(work / "state.json")


def _read(
    reading: Reading,
    origin: Origin,
    work: Path,
    state: dict,
    parts: list["_Part"],
    rules: Rules,
    say: Say,
) -> None:
    """Reads what is left of the set; after every file the state holds all that is made so far."""
    if reading.wanted[0].join:
        _read_joined(reading, origin, work, state, parts[0])
        say(f"{reading.hub.id}: {len(reading.files)} files, {parts[0].state['kept']:,} rows kept")
        return
    for number, file in enumerate(reading.files, 1):
        if number <= len(state["read"]):
            continue
        path = origin.fetch(reading.hub, file, work / "download")
        digest = _sha256(path)
        takers = [part for part in parts if part.row.reads(file.name)]
        rows = _read_file(path, file.name, reading.hub.id, takers)
        for part in parts:
            part.sync()
            _check_so_far(part, rules)
        state["read"].append({"name": file.name, "bytes": file.size, "sha256": digest, "rows": rows})
        state["parts"] = {str(part.row.path): part.state for part in parts}
        _write_state(work, state)
        shutil.rmtree(work / "download", ignore_errors=True)
        kept = sum(part.state["kept"] for part in parts)
        read = sum(done["rows"] for done in state["read"])
        say(f"{reading.hub.id}: {number} of {len(reading.files)} files, {read:,} rows read, {kept:,} kept")


def _read_joined(reading: Reading, origin: Origin, work: Path, state: dict, part: "_Part") -> None:
    """Reads all files of the set together."""
    if state["read"]:
        return
    paths = {file.name: origin.fetch(reading.hub, file, work / "download") for file in reading.files}
    digests = {name: _sha256(path) for name, path in paths.items()}
    for number, joined in enumerate(part.row.join(paths), 1):
        row = _object(joined)
        if isinstance(row, BarError) or part.takes(row):
            part.add(row, f"{reading.hub.id}:{number}")
    part.sync()
    state["read"] = [
        {"name": file.name, "bytes": file.size, "sha256": digests[file.name]} for file in reading.files
    ]
    state["parts"] = {str(part.row.path): part.state}
    _write_state(work, state)
    shutil.rmtree(work / "download", ignore_errors=True)


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BarError(f"{path}: expected a file that can be read, got {error.strerror}") from None


def _read_file(path: Path, name: str, hub: str, parts: list["_Part"]) -> int:
    """Gives every row to the parts that take it; returns how many there are."""
    count = 0
    labels = parts[0].row.labels(name)
    for where, row in _objects(path, f"{hub}/{name}"):
        count += 1
        if labels and isinstance(row, dict):
            row = labels | row
        if count == 1 and isinstance(row, dict):
            for part in parts:
                part.check_columns(row, where)
        for part in parts:
            if isinstance(row, BarError) or part.takes(row):
                part.add(row, where)
    return count


def _objects(path: Path, name: str) -> Iterator[tuple[str, dict | BarError]]:
    """Yields where a row stands and its values, or why it cannot be read; in a file's last row that is an
    error, for the file was cut."""
    unread = None
    rows = table_rows(path) if path.suffix in SUFFIXES else raw_rows(Source(path=path, kind="text"), Path())
    for at, raw in rows:
        if unread is not None:
            yield unread
        where = f"{name}:{at.rpartition(':')[2]}"
        row = _object(raw)
        unread = (where, row) if isinstance(row, BarError) else None
        if unread is None:
            yield where, row
    if unread is not None:
        raise BarError(f"{unread[0]}: {unread[1]}; it is the last line, so the file was cut")


def _object(raw: object) -> dict | BarError:
    row = raw
    if isinstance(raw, bytes):
        try:
            row = loads(raw.decode("utf-8").removeprefix("\ufeff"), object_pairs_hook=no_duplicates)
        except (ValueError, RecursionError) as error:
            return BarError(f"not a JSON row: {why(error)}")
    return row if isinstance(row, dict) else BarError(f"expected an object, got {type(row).__name__}")


class _Part:
    """A file on its way, beside it the list of the rows that were refused."""

    def __init__(self, row: FromHub, work: Path, state: dict | None, rules: Rules):
        new = {"bytes": 0, "blake3": blake3().hexdigest(), "refused_bytes": 0, "refused": {}}
        self.state = state or new | {"found": 0, "kept": 0, "too_long": 0}
        self.row = row
        self.rules = rules
        self._file, self._hash = _reopen(work / row.path, self.state["bytes"])
        if self._hash.hexdigest() != self.state["blake3"]:
            raise BarError(
                f"{work / row.path}: expected what an interrupted run left, got other bytes; run again"
            )
        self._refused, _ = _reopen(work / "refused" / row.path, self.state["refused_bytes"])
        self._longest = None if isinstance(rules.chats.tokenizer, NoTokenizer) else row.longest_prompt
        self._sample = None
        if row.sample is not None:
            drawn = np.random.RandomState(MIXER_SEED).choice(row.rows, row.sample, replace=False)
            self._sample = set(drawn.tolist())

    def check_columns(self, row: dict, where: str) -> None:
        single = (*self.row.columns, *([self.row.column] if self.row.column else []))
        for names in (*COLUMNS[self.row.convert], *((name,) for name in single)):
            if not set(names) & row.keys():
                raise BarError(
                    f"{where}: {self.row.path} expected a column {' or '.join(names)}, "
                    f"got {', '.join(map(str, row)) or 'none'}"
                )

    def takes(self, row: dict) -> bool:
        """Returns whether the table wants the row; counts it then."""
        if self.row.column and row.get(self.row.column) not in self.row.values:
            return False
        if any(row.get(name) in (None, "") for name in self.row.filled):
            return False
        self.state["found"] += 1
        return self._sample is None or self.state["found"] - 1 in self._sample

    def add(self, row: dict | BarError, where: str) -> None:
        """Writes what the row becomes, or that it is refused."""
        try:
            if isinstance(row, BarError):
                raise row
            line = json.dumps(convert(row, self.row), ensure_ascii=False).encode() + b"\n"
            tokens = check_line(line, self.row, self.rules.chats, where)
        except BarError as error:
            self._refuse(row, error, where)
        except (ValueError, TypeError, RecursionError) as error:  # what JSON cannot hold
            self._refuse(row, BarError(f"expected what JSON can hold, got {error}"), where)
        else:
            if self._longest is not None and tokens > self._longest:
                self.state["too_long"] += 1
                return
            self._file.write(line)
            self._hash.update(line)
            self.state["kept"] += 1
            self.state["bytes"] += len(line)

    def _refuse(self, row: dict | BarError, error: BarError, where: str) -> None:
        problem = str(error).removeprefix(f"{where}: ")
        shown = "" if isinstance(row, BarError) else json.dumps(row, default=str)[:SHOWN]
        about = {"file": str(self.row.path), "row": where, "reason": problem, "was": shown}
        line = json.dumps(about).encode() + b"\n"
        self._refused.write(line)
        self.state["refused_bytes"] += len(line)
        counted = self.state["refused"].setdefault(reason(error, where), [0, where])
        counted[0] += 1

    @property
    def refused(self) -> int:
        return sum(count for count, _ in self.state["refused"].values())

    def sync(self) -> None:
        """Makes all that was written reach the disk."""
        for file in (self._file, self._refused):
            file.flush()
            os.fsync(file.fileno())
        self.state["blake3"] = self._hash.hexdigest()

    def close(self) -> None:
        self._file.close()
        self._refused.close()


def _reopen(path: Path, nbytes: int):
    """Opens a file to write behind its first ``nbytes``; returns it with the hash of those."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+b")
    file.seek(0)
    digest = blake3()
    left = nbytes
    while left and (block := file.read(min(left, 1 << 20))):
        digest.update(block)
        left -= len(block)
    file.truncate(nbytes)
    file.seek(0, os.SEEK_END)
    return file, digest


def _check(reading: Reading, parts: list[_Part], rules: Rules) -> None:
    """Raises unless every file has the rows that it should have."""
    for part in parts:
        row = part.row
        asked = f" with {row.column} = {' or '.join(row.values)}" if row.column else ""
        found = part.state["found"]
        if row.rows not in (None, found) and not (rules.accept_counts and found):
            accepted = "; --accept-counts takes them as they are" if found else ""
            raise BarError(
                f"{row.path}: expected {row.rows:,} rows of {reading.hub.id}{asked}, got {found:,}{accepted}"
            )
        _check_refused(part, rules, part.state["kept"] + part.state["too_long"] + part.refused)
        if not part.state["kept"]:
            raise BarError(f"{row.path}: expected at least one row of {reading.hub.id}{asked}, got none")


def _check_so_far(part: _Part, rules: Rules) -> None:
    """Raises after a file of several where it is sure, or plain, that too many rows are refused."""
    if part.row.rows and not rules.accept_counts:
        _check_refused(part, rules, part.row.sample or part.row.rows, " so far")
    elif part.refused >= PLAIN and not part.state["kept"]:
        _check_refused(part, rules, part.refused, " so far")


def _check_refused(part: _Part, rules: Rules, rows: int, when: str = "") -> None:
    """Raises where too many of so many rows are refused."""
    if part.refused > rules.max_refused * rows:
        most = sorted(part.state["refused"].items(), key=lambda item: -item[1][0])[:3]
        told = "; ".join(f"{count:,} x {text} (first {where})" for text, (count, where) in most)
        raise BarError(
            f"{part.row.path}: expected at most {rules.max_refused:.2%} of the rows refused, "
            f"got {part.refused:,} of {rows:,}{when}: {told}"
        )


def _entry(reading: Reading, state: dict, part: _Part, rules: Rules) -> dict:
    """Returns what the manifest says about a file."""
    kept = ("bytes", "blake3", "found", "kept", "too_long")
    counts = {name: part.state[name] for name in kept}
    refused = {text: count for text, (count, _) in sorted(part.state["refused"].items())}
    files = [file for file in state["read"] if part.row.reads(file["name"])]
    return {
        "made": _made(part.row, rules),
        "commit": reading.commit,
        "licence": part.row.licence,
        "note": part.row.note,
        **counts,
        "refused": refused,
        "files": files,
    }


def _publish(work: Path, out: Path) -> None:
    """Gives the finished files of a reading their names; does nothing while it is not through. A run that
    was killed in here repeats it."""
    file = work / "state.json"
    if not file.exists():  # killed before anything was whole, or while it was removed
        shutil.rmtree(work)
        return
    entries = read_object(file, expected="the state of an interrupted run").get("publish")
    if entries is None:
        return
    _list_refused(work, out, list(entries))
    for name in entries:
        if (work / name).exists():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (work / name).rename(out / name)
    files = read_manifest(out) | entries
    ordered = {name: files[name] for name in sorted(files)}
    write_whole(out / MANIFEST, json.dumps({"files": ordered}, indent=1, ensure_ascii=False) + "\n")
    file.unlink()
    shutil.rmtree(work)


def _list_refused(work: Path, out: Path, names: list[str]) -> None:
    """Puts the refused rows of these files into the list, in the place of those of an earlier run."""
    file = out / REFUSED
    before = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    lines = [line for line in before if json.loads(line)["file"] not in names]
    for name in names:
        lines += (work / "refused" / name).read_text(encoding="utf-8").splitlines()
    if lines or before:
        ordered = sorted(lines, key=lambda line: json.loads(line)["file"])
        write_whole(file, "".join(f"{line}\n" for line in ordered))
