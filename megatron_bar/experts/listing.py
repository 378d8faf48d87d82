"""The experts of a folder as a table: what `bar expert list` prints."""

from pathlib import Path

from megatron_bar.cli import aligned
from megatron_bar.errors import BarError
from megatron_bar.weights.manifest import read_manifest


def listing(path: Path | str) -> list[str]:
    """Returns a line per expert of the manifest, and one that says what state the router is in."""
    manifest = read_manifest(path)
    if not manifest.experts:
        raise BarError(f"{path}: expected a model with experts, got a {manifest.kind} one")
    rows = [["slot", "expert", "stages", "merged from", "its hash", "shared tensors"]]
    anchor = manifest.experts[0].shared_hash
    for expert in manifest.experts:
        if expert.shared_hash is None:
            shared = ""
        else:
            shared = "the anchor's" if expert.shared_hash == anchor else "its own"
        stages = " > ".join(expert.stages) or "none"
        digest = (expert.folder_hash or "")[:16]
        rows.append([str(expert.index), expert.name, stages, expert.folder or "", digest, shared])
    lines = aligned(rows)
    state = {"merged": "not trained since the merge", "routed": "trained"}.get(manifest.kind)
    if state:
        lines.append(f"router: {'STALE, train it again' if manifest.router_stale else state}")
    return lines
