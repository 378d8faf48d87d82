"""README.md of a folder: a model card with the Hub's front matter.

It follows from manifest, config and scores alone, with no date, path or time, so equal folders have equal
cards. Licence, languages and data sets are known only where the card of the source says them; a base model
where a source is a snapshot of the Hub. A card is replaced only where its marker says that it is ours.
"""

import re
import shlex
from pathlib import Path

import yaml

from megatron_bar.errors import BarError, shown
from megatron_bar.weights.hashes import folder_hash
from megatron_bar.weights.hf_config import ModelConfig, num_parameters
from megatron_bar.weights.manifest import ARTIFACT, Manifest
from megatron_bar.weights.regular import read_regular, require_inside
from megatron_bar.weights.whole import write_whole

CARD = "README.md"
MARKER = "<!-- written by megatron_bar, which may replace it; remove this line to keep your own text -->"
Scores = dict[str, tuple[float, int]]
"""Test -> mean score from 0 to 1, and number of items."""

LONGEST_CARD = 1 << 20
"""Bytes of a card that is looked at."""
_LONGEST_FRONT = 1 << 16
"""Characters of its front matter that are."""
_FRONT = re.compile(r"---[ \t]*\r?\n(.*?)\r?\n---[ \t]*\r?\n", re.DOTALL)
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_WORD = re.compile(r"[A-Za-z0-9][\w.+-]*", re.ASCII)
_KNOWN = {"license": _WORD, "language": _WORD, "datasets": _REPOSITORY, "base_model": _REPOSITORY}
"""Entries that a card takes over from its source's, and what a value looks like."""


class _Unmerged(yaml.SafeLoader):
    """Merges no mappings, whose entries double with every line that merges two."""

    def flatten_mapping(self, node) -> None:
        pass


def known_of(folder: Path | str) -> dict[str, list[str]]:
    """Returns what the card in ``folder`` says of `_KNOWN`; nothing where there is none that can be read."""
    try:
        require_inside(Path(folder) / CARD)
        text = read_regular(Path(folder) / CARD, LONGEST_CARD).decode("utf-8")
        match = _FRONT.match(text, 0, _LONGEST_FRONT)
        front = yaml.load(match[1], Loader=_Unmerged) if match else None
    except Exception:  # noqa: BLE001  the library raises anything
        return {}
    found = {}
    for key, form in _KNOWN.items() if isinstance(front, dict) else ():
        value = front.get(key)
        values = value if isinstance(value, list) else [value]
        if kept := [one for one in values if isinstance(one, str) and form.fullmatch(one)]:
            found[key] = kept
    return found


def card(
    config: ModelConfig, manifest: Manifest, known: dict[str, list[str]], scores: Scores | None = None
) -> str:
    """Returns the text. ``known``: what the source's card says (`known_of`)."""
    parts = [_front(config, manifest, known), MARKER, f"# {_title(manifest)}", _what(config, manifest)]
    if manifest.experts:
        parts += ["## Experts", _experts(manifest)]
    parts += ["## Hashes", _hashes(manifest)]
    if manifest.notes:
        parts += ["## Notes", "\n".join(f"- {_line(note)}" for note in manifest.notes)]
    if scores:
        rows = [[name, f"{100 * score:.1f}", str(items)] for name, (score, items) in scores.items()]
        parts += ["## Results", _table(["test", "mean score, %", "items"], rows)]
    parts += ["## Use", _use(config, manifest)]
    return "\n\n".join(parts) + "\n"


def write_card(folder: Path, config: ModelConfig, manifest: Manifest, source: Path | str, **options) -> None:
    """Writes the card of a folder that is being written; ``source``: where its card's `known_of` is read."""
    (folder / CARD).write_text(card(config, manifest, known_of(source), **options), encoding="utf-8")


def renew_card(folder: Path, config: ModelConfig, manifest: Manifest, scores: Scores | None) -> None:
    """Writes the card of a folder anew. Raises BarError where somebody else wrote it."""
    require_ours(folder)
    write_whole(folder / CARD, card(config, manifest, known_of(folder), scores))


def require_ours(folder: Path | str) -> None:
    """Raises BarError for a card that somebody else wrote."""
    path = Path(folder) / CARD
    try:
        text = read_regular(path, LONGEST_CARD).decode("utf-8")
    except FileNotFoundError:
        return
    except BarError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise BarError(f"{path}: expected a card of ours or none, got {error}") from None
    if MARKER not in text.splitlines():
        raise BarError(
            f"{path}: expected a card of ours (with the line {MARKER!r}) or none, got another text"
        )


def _front(config: ModelConfig, manifest: Manifest, known: dict[str, list[str]]) -> str:
    read = [source.name for source in manifest.sources if _REPOSITORY.fullmatch(source.name)]
    bases = list(dict.fromkeys(read)) or known.get("base_model", [])
    used = [name for expert in manifest.experts for one in expert.trained for name in one.data]
    datasets = [name for names in used for name in names.split(", ") if _REPOSITORY.fullmatch(name)]
    tags = [
        "megatron_bar",
        config.model_type,
        manifest.kind,
        *(["moe"] if config.num_experts else []),
    ]
    front = {
        "license": known["license"][0] if known.get("license") else None,
        "language": known.get("language"),
        "datasets": list(dict.fromkeys([*known.get("datasets", []), *datasets])),
        "base_model": bases,
        # An artifact is a part of a model, which no library loads.
        "library_name": None if manifest.kind == ARTIFACT else "transformers",
        "pipeline_tag": None if manifest.kind == ARTIFACT else "text-generation",
        "tags": tags,
    }
    text = yaml.safe_dump({key: value for key, value in front.items() if value}, sort_keys=False)
    return f"---\n{text}---"


def _title(manifest: Manifest) -> str:
    names = [_line(expert.name) for expert in manifest.experts]
    if manifest.kind in ("expert", ARTIFACT) and len(names) > 1:
        return f"Expert {names[1]}"
    return f"BAR model: {', '.join(names)}" if len(names) > 1 else "Dense model"


def _what(config: ModelConfig, manifest: Manifest) -> str:
    kinds = {
        "dense": "A dense language model.",
        "branched": "The start of BAR's experts: the anchor and an expert that was not trained yet.",
        "expert": "One expert of a BAR model beside its anchor, as it was trained.",
        "merged": "Experts that were trained apart, merged into one model; its router was not trained since.",
        "routed": "Experts that were trained apart, merged into one model, with a router trained for them.",
        ARTIFACT: "One expert of a BAR model: its FFNs, its routers and the shared tensors that its training "
        "changed. It is not a model by itself: merge it with the branched folder that it was trained from.",
    }
    active = (
        f", {config.experts_per_token} of {config.num_experts} experts active" if config.num_experts else ""
    )
    by_layer = ", ".join(map(str, config.experts_per_layer))
    layers = f" (by layer: {by_layer})" if by_layer else ""
    lines = [
        kinds[manifest.kind],
        "",
        f"- class {config.form.architecture}, model type {config.model_type}, {config.dtype}",
        f"- {num_parameters(config):,} parameters{active}{layers}",
        "- method: Branch-Adapt-Route ([arXiv 2604.18473](https://arxiv.org/abs/2604.18473))",
        f"- written by stage {_line(manifest.stage or 'unknown')}, "
        f"megatron_bar {_line(manifest.tool_version)}",
    ]
    lines += [
        f"- from {_line(one.role)}: {_line(one.name)} (hash {_line(one.hash[:16])})"
        for one in manifest.sources
    ]
    return "\n".join(lines)


def _experts(manifest: Manifest) -> str:
    rows = []
    for expert in manifest.experts:
        stages = "; ".join(
            f"{one.stage} (policy {one.policy or 'unknown'}, recipe {one.recipe or 'unknown'})"
            for one in expert.trained
        )
        data = dict.fromkeys(name for one in expert.trained for name in one.data)
        rows.append(
            [str(expert.index), expert.name, stages or "none known", ", ".join(data) or "not recorded"]
        )
    return _table(["slot", "expert", "stages", "data"], rows)


def _hashes(manifest: Manifest) -> str:
    frozen = manifest.frozen
    lines = [f"- hash of all tensors (BLAKE3): {folder_hash(manifest.tensors)}"]
    if manifest.anchor_hash:
        lines.append(f"- anchor hash of the branch: {_line(manifest.anchor_hash)}")
    if frozen:
        units = f"{frozen.units} tensors and router rows"
        lines.append(f"- frozen by policy {_line(frozen.policy)} and bit-identical: {units}")
    if manifest.router_stale:
        lines.append("- the router is stale: experts changed since it was trained")
    return "\n".join(lines)


def _use(config: ModelConfig, manifest: Manifest) -> str:
    if manifest.kind == ARTIFACT:
        name = shlex.quote(manifest.experts[1].name)
        return f"""```bash
bar expert add --model MERGED --expert {name}=THIS_FOLDER --out NEW
bar merge --anchor BRANCHED --expert {name}=THIS_FOLDER --expert ... --out MERGED
```"""
    text = f"""```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")
model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER", dtype="auto")
ids = tokenizer("Hello", return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens=64)[0]))
```

```bash
vllm serve THIS_FOLDER --dtype {config.dtype}
```"""
    if config.experts_per_layer:
        text += "\n\nBoth use the largest number of active experts in every layer."
    return text


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_line, cells))} |" for cells in lines)


def _line(text: str) -> str:
    """Returns the text on one line and without what would end a cell or begin HTML or an image."""
    return shown(" ".join(text.split())).replace("|", "/").replace("<", "&lt;").replace("![", "!&#91;")
