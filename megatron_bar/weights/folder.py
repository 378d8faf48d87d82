"""A Hugging Face model folder, checked when it is opened and read lazily.

`Folder.open` reads config.json and the safetensors headers only, and compares them with
`tensor_shapes(config)`: what it returns is whole. transformers loads a folder with a missing router or a NaN
without a word (random weights, silently). Left out: pickled weights (never read) and adapters.
"""

import dataclasses
import math
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from megatron_bar.errors import BarError
from megatron_bar.weights.family import Form
from megatron_bar.weights.hf_config import (
    Active,
    ModelConfig,
    is_token_id,
    read_config_and_tie,
    tensor_shapes,
    zeros_beside,
)
from megatron_bar.weights.json_file import LARGEST, read_object
from megatron_bar.weights.regular import open_regular, require_inside
from megatron_bar.weights.safetensors_io import ITEMSIZE, read_blocks, read_header
from megatron_bar.weights.whole import write_json

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
"""With it in the folder transformers loads another model than that of the weights."""
TOKENIZERS = ("tokenizer.json", "tokenizer.model")
"""Either one defines the token ids."""
COMPANIONS = (
    *TOKENIZERS,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "generation_config.json",
)
_MAX_OPEN = 4
BLOCK_BYTES = 4 << 20

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""`with progress("what", total_bytes) as advance: advance(n)`; the command lines pass one that draws a
bar."""


@contextmanager
def silent(what: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda count: None


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    file: Path
    key: str
    """Its name in the file."""
    offset: int
    """Byte of the file where its data begin."""
    shape: tuple[int, ...]
    nbytes: int


def fingerprint(files: Iterable[Path]) -> list[list]:
    """Returns what tells cheaply, without reading the files, whether they are still the same: names, sizes,
    times."""
    found = [(file.name, file.stat()) for file in sorted(files) if file.is_file()]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in found]


class Folder:
    """A model folder, made by `Folder.open`; keeps at most four files open, whatever is read."""

    def __init__(self, path: Path, config: ModelConfig, tensors: dict[str, TensorInfo]):
        self.path = path
        self.config = config
        """Config with ``dtype`` set to what the tensors are; config.json often says something else or
        nothing."""
        self.tensors = tensors
        """Tensors in the order of `tensor_shapes(config)`. A head that is tied to the embedding is its
        tensor."""
        self._handles: OrderedDict[Path, safe_open] = OrderedDict()

    @classmethod
    def open(cls, path: Path | str) -> "Folder":
        path = Path(path)
        config, tied = read_config_and_tie(path)
        if (path / ADAPTER).exists():
            raise BarError(f"{path / ADAPTER}: expected a whole model, got an adapter beside it: merge them")
        found, dtypes = read_tensors(path, config)
        if config.least_tensors > len(found):  # before all their names are made
            layers = config.layers_in_words
            raise BarError(f"{path}: config.json expected {layers}, got {len(found)} tensors in all")
        if tied:
            _tie(path, found, dtypes)
        shapes = tensor_shapes(config)
        _compare(path, found, shapes, config.form)
        dtype = _one_dtype(found, dtypes)
        return cls(path, dataclasses.replace(config, dtype=dtype), {name: found[name] for name in shapes})

    @property
    def notes(self) -> tuple[str, ...]:
        """What is otherwise in what is written of it."""
        tied = self.tensors[HEAD] == self.tensors[EMBEDDING]
        return ("the embedding was tied to the head: untied, the head starts as its copy",) if tied else ()

    def with_active(self, active: Active) -> "Folder":
        """Returns the same tensors in a model with so many experts per token."""
        try:
            config = self.config.with_active(active)
        except BarError as error:
            raise BarError(f"{self.path}: {error}") from None
        return Folder(self.path, config, self.tensors)

    @property
    def name(self) -> str:
        """The name that others know it by: owner/name of a snapshot of the Hub, else the folder's."""
        path = self.path.resolve()
        kind, *repository = path.parent.parent.name.split("--")
        is_snapshot = kind == "models" and len(repository) == 2 and path.parent.name == "snapshots"
        return "/".join(repository) if is_snapshot else path.name

    @property
    def dtype(self) -> str:
        return self.config.dtype

    @property
    def nbytes(self) -> int:
        return sum(info.nbytes for info in self.tensors.values())

    def fingerprint(self) -> list:
        files = {self.path / "config.json", self.path / "manifest.json"}
        files |= {info.file for info in self.tensors.values()}
        return [str(self.path.resolve()), *fingerprint(files)]

    def link_to(self, place: Path, config: ModelConfig | None = None) -> None:
        """Makes ``place`` a folder of links to the weights and companions, with a config.json of our own.

        For other libraries, which follow entries and files that nothing here looked at: adapters, kernels,
        code. ``config``: None: this folder's.
        """
        place.mkdir(parents=True, exist_ok=True)
        index = self.path / INDEX
        files = {info.file for info in self.tensors.values()} | ({index} if index.is_file() else set())
        for file in (*files, *companions(self.path)):
            (place / file.name).symlink_to(file.resolve())
        tied = self.tensors[HEAD] == self.tensors[EMBEDDING]
        write_json(place / "config.json", (config or self.config).to_hf() | {"tie_word_embeddings": tied})

    def slice(self, name: str):
        """Returns safetensors' lazy slice: `folder.slice(name)[a:b, c:d]` reads no more than that."""
        info = self.tensors[name]
        file = info.file
        if file not in self._handles:
            if len(self._handles) == _MAX_OPEN:
                self._handles.popitem(last=False)
            self._handles[file] = safe_open(file, framework="pt")
        self._handles.move_to_end(file)
        return self._handles[file].get_slice(info.key)

    def read(self, name: str) -> torch.Tensor:
        """Returns the whole tensor on the CPU, as a view of the mapped file: it costs no memory; writing into
        it shows in later reads."""
        return self.slice(name)[:]

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self.slice(name)[start:stop]

    def chunks(self, name: str, *, finite: bool = False) -> Iterator[torch.Tensor]:
        """Yields the tensor in blocks of rows of about 4 MiB, which belong to the caller; ``finite`` refuses
        NaN and infinity."""
        info = self.tensors[name]
        start = 0
        for chunk in read_blocks(info.file, self.dtype, info.shape, info.offset, BLOCK_BYTES):
            if finite and not is_finite(chunk):
                first = start + int((~chunk.isfinite().reshape(len(chunk), -1).all(dim=1)).nonzero()[0])
                raise BarError(
                    f"{info.file}: tensor {name!r}: expected finite values, "
                    f"got NaN or infinity in row {first}"
                )
            yield chunk
            start += len(chunk)


def blocks(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yields rows of about 4 MiB at a time, as views."""
    return iter(tensor.split(max(1, BLOCK_BYTES * len(tensor) // max(1, tensor.nbytes))))


def is_finite(tensor: torch.Tensor) -> bool:
    """Returns whether no value of a contiguous tensor on the CPU is NaN or infinity. Ten times as fast as
    ``isfinite``: the largest exponent is read off the bits."""
    integer, unsigned = (torch.int32, 0x7FFFFFFF) if tensor.element_size() == 4 else (torch.int16, 0x7FFF)
    infinity = {torch.float32: 0x7F800000, torch.bfloat16: 0x7F80, torch.float16: 0x7C00}[tensor.dtype]
    bits = tensor.view(integer).numpy()
    return not bits.size or int((bits & unsigned).max()) < infinity


def _read_index(path: Path) -> dict[str, str]:
    """Returns tensor name -> file name, every one a plain name of a file that is there."""
    weight_map = read_object(path, expected="the index of the weights").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BarError(
            f"{path}: expected an object 'weight_map' of tensor names and file names, got {weight_map!r}"
        )
    for name, file in weight_map.items():
        plain = isinstance(file, str) and not any(character in file for character in "/\\\0")
        if not plain or not file.endswith(".safetensors"):
            raise BarError(
                f"{path}: tensor {name!r}: expected the name of a .safetensors file in this folder, "
                f"got {file!r}"
            )
    for file in sorted(set(weight_map.values())):
        if not os.path.isfile(path.parent / file):  # False, too, for a name that no file can have
            name = next(n for n, f in weight_map.items() if f == file)
            raise BarError(f"{path}: tensor {name!r} expected in {file}, got no such file")
    return weight_map


def _model_files(path: Path) -> tuple[list[Path], dict[str, str] | None]:
    """Returns the files to read and the index, None for a single file. Raises where there are other weights,
    which would be another model's."""
    require_inside(path / INDEX)
    weight_map = _read_index(path / INDEX) if (path / INDEX).exists() else None
    names = sorted(set(weight_map.values())) if weight_map else [SINGLE]
    present = sorted(file.name for file in path.glob("model*.safetensors"))
    if weight_map is None and SINGLE not in present:
        raise BarError(
            f"{path}: expected {SINGLE} or {INDEX}, got {', '.join(present) or 'no safetensors files'}"
        )
    for file in present:
        if file not in names:
            raise BarError(
                f"{path / file}: surplus weights: expected only {names[0]} to {names[-1]}, got this file too"
            )
    files = [path / name for name in names]
    for file in files:
        require_inside(file)
    return files, weight_map


def read_tensors(path: Path, config: ModelConfig) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Reads all headers of a folder together; returns its tensors, and the dtype of each, by the names that
    they have in this project; others by their own. Zeros that stand beside them are checked and left out."""
    files, weight_map = _model_files(path)
    found: dict[str, TensorInfo] = {}
    dtypes: dict[str, str] = {}
    for file in files:
        for name, (dtype, shape, offset) in read_header(file).items():
            if name in found:
                raise BarError(
                    f"{file}: tensor {name!r} expected once, got it in {found[name].file.name} too"
                )
            if weight_map is not None and weight_map.get(name) != file.name:
                raise BarError(
                    f"{path / INDEX}: tensor {name!r} expected in {file.name}, got {weight_map.get(name)!r}"
                )
            found[name] = TensorInfo(
                file=file, key=name, offset=offset, shape=shape, nbytes=math.prod(shape) * ITEMSIZE[dtype]
            )
            dtypes[name] = dtype
    for name in weight_map or ():
        if name not in found:
            raise BarError(
                f"{path / weight_map[name]}: tensor {name!r} expected (the index says so), "
                "got a file without it"
            )
    return _by_our_names(path, config, found, dtypes)


def _by_our_names(
    path: Path, config: ModelConfig, found: dict[str, TensorInfo], dtypes: dict[str, str]
) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    form = config.form
    names = {theirs: form.our_name(theirs) for theirs in found}
    for theirs, ours in names.items():
        if form.file_name(ours) != theirs:
            raise BarError(
                f"{found[theirs].file}: tensor {theirs!r}: expected a name of {form.architecture}, "
                f"which would be {form.file_name(ours)!r}"
            )
    for ours in names.values():
        for zero, shape in zeros_beside(config, ours).items():
            _require_zeros(path, zero, found.pop(zero, None), dtypes.pop(zero, None), shape)
    return (
        {names[theirs]: info for theirs, info in found.items()},
        {names[theirs]: dtype for theirs, dtype in dtypes.items()},
    )


def _require_zeros(
    path: Path, name: str, info: TensorInfo | None, dtype: str | None, shape: tuple[int, ...]
) -> None:
    if info is None or info.shape != shape:
        got = list(info.shape) if info else "no such tensor"
        raise BarError(f"{path}: tensor {name!r}: expected zeros {list(shape)}, got {got}")
    for block in read_blocks(info.file, dtype, info.shape, info.offset, BLOCK_BYTES):
        if block.any():
            raise BarError(
                f"{info.file}: tensor {name!r}: expected zeros (a shared expert is not supported), got others"
            )


def _tie(path: Path, found: dict[str, TensorInfo], dtypes: dict[str, str]) -> None:
    """Makes the head the embedding; raises where the folder has another one."""
    if EMBEDDING not in found:  # which is said in its turn
        return
    head, embedding = found.get(HEAD), found[EMBEDDING]
    if head is not None:
        parts = [
            read_blocks(info.file, dtypes[name], info.shape, info.offset, BLOCK_BYTES)
            for name, info in ((HEAD, head), (EMBEDDING, embedding))
        ]
        same = head.shape == embedding.shape and dtypes[HEAD] == dtypes[EMBEDDING]
        if not same or not all(torch.equal(*both) for both in zip(*parts, strict=True)):
            raise BarError(
                f"{head.file}: tensor {HEAD!r}: expected that of {EMBEDDING!r}, for config.json says "
                f"tie_word_embeddings, got another in {path}"
            )
    found[HEAD] = embedding
    dtypes[HEAD] = dtypes[EMBEDDING]


def _compare(
    path: Path, found: dict[str, TensorInfo], shapes: dict[str, tuple[int, ...]], form: Form
) -> None:
    # Surplus names follow from missing ones when the config has the wrong family or layer count: missing
    # first.
    for name, shape in shapes.items():
        if name not in found:
            raise BarError(
                f"{path}: tensor {form.file_name(name)!r} is missing: config.json expected {list(shape)}, "
                "got no such tensor"
            )
    for name, info in found.items():
        if name not in shapes:
            raise BarError(
                f"{info.file}: surplus tensor {info.key!r}: config.json expected none, got {list(info.shape)}"
            )
    for name, shape in shapes.items():
        info = found[name]
        if info.shape != shape:
            got = list(info.shape)
            raise BarError(f"{info.file}: tensor {info.key!r}: config.json expected {list(shape)}, got {got}")


def _one_dtype(found: dict[str, TensorInfo], dtypes: dict[str, str]) -> str:
    first = next(iter(dtypes.values()))
    for name, dtype in dtypes.items():
        if dtype != first:
            raise BarError(
                f"{found[name].file}: tensor {name!r}: expected {first} like the tensors before it, "
                f"got {dtype}"
            )
    return first


def require_same_config(reference: Folder, folder: Folder, fields: Iterable[str] | None = None) -> None:
    """Raises unless the two configs agree in ``fields``; None: in all."""
    expected = vars(reference.config)
    got = vars(folder.config)
    for name in fields or expected:
        if got[name] != expected[name]:
            shown = name.removeprefix("own_")  # of heads the width is said, whatever it follows from
            wanted, found = (getattr(config, shown) for config in (reference.config, folder.config))
            raise BarError(f"{folder.path}: {shown} expected {wanted} as in {reference.path}, got {found}")


def companions(path: Path | str) -> list[Path]:
    """Returns tokenizer, chat template and generation config: the files that travel with the weights.

    Raises BarError for one that is a link out of the folder, or larger than a vocabulary.
    """
    found = [Path(path) / name for name in COMPANIONS if (Path(path) / name).is_file()]
    for file in found:
        require_inside(file)
        open_regular(file, LARGEST).close()
    return found


def require_tokenizer(path: Path | str, vocab_size: int) -> None:
    """Raises unless there is a tokenizer in the folder; a tokenizer.json must be one, with ids that the model
    has."""
    if not any((Path(path) / name).is_file() for name in TOKENIZERS):
        raise BarError(f"{path}: no tokenizer: expected {' or '.join(TOKENIZERS)}, got neither")
    file = Path(path) / TOKENIZERS[0]
    if not file.is_file():
        return
    tokenizer = read_object(file, expected="a tokenizer")
    model = tokenizer.get("model")
    added = tokenizer.get("added_tokens") or []
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict | list) or not vocab or not isinstance(added, list):
        raise BarError(f"{file}: expected a tokenizer with an object 'model' that has a 'vocab', got none")
    ids = list(vocab.values() if isinstance(vocab, dict) else range(len(vocab)))
    for token in [*ids, *(token.get("id") if isinstance(token, dict) else token for token in added)]:
        if not is_token_id(token, vocab_size):
            raise BarError(f"{file}: token ids expected below vocab_size {vocab_size}, got {token!r}")
