"""Tables that are no JSONL or Parquet: .csv and .tsv, whose first line names the columns and whose values are
texts, and .json that is one list of rows."""

import csv
from collections.abc import Iterator
from pathlib import Path

from megatron_bar.errors import BarError
from megatron_bar.weights.json_file import LARGEST, loads, no_duplicates, why
from megatron_bar.weights.regular import open_regular, read_regular

DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*DELIMITERS, ".json")


def table_rows(path: Path) -> Iterator[tuple[str, object]]:
    """Yields where a row stands (file:row) and the row; raises BarError for a file that is broken."""
    rows = _list(path) if path.suffix == ".json" else _table(path)
    number = 0
    for number, row in enumerate(rows, 1):
        yield f"{path}:{number}", row
    if not number:
        raise BarError(f"{path}: expected at least one row, got none")


def _list(path: Path) -> list:
    try:
        rows = loads(read_regular(path, LARGEST).decode("utf-8"), object_pairs_hook=no_duplicates)
    except BarError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise BarError(f"{path}: not readable as JSON: {why(error)}") from None
    if not isinstance(rows, list):
        raise BarError(f"{path}: expected a list of rows, got {type(rows).__name__}")
    return rows


def _table(path: Path) -> Iterator[dict[str, str]]:
    number = 0
    try:
        with open_regular(path) as file:
            lines = (line.decode("utf-8") for line in file)
            rows = csv.reader(lines, delimiter=DELIMITERS[path.suffix], strict=True)
            columns = [name.removeprefix("\ufeff") for name in next(rows, [])]
            for number, row in enumerate(rows, 1):
                if not row:
                    continue
                if len(row) != len(columns):
                    raise BarError(f"{path}:{number}: expected {len(columns)} columns, got {len(row)}")
                yield dict(zip(columns, row, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        told = why(error) if isinstance(error, UnicodeDecodeError) else str(error)
        raise BarError(f"{path}: expected a whole table, got one broken after row {number}: {told}") from None
