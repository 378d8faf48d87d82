"""A Transformer Engine that is installed and was built for another torch: it cannot be imported."""

from pathlib import Path

SYMBOL = "transformer_engine_torch.so: undefined symbol: _ZN3c106detail23torchInternalAssertFail"
BROKEN = {
    # where the error is raised: files of the package
    "of its own": {"__init__.py": f"raise ImportError('{SYMBOL}')"},
    "of its library": {"__init__.py": f"raise OSError('{SYMBOL}')"},
    "of its part for torch": {"__init__.py": "", "pytorch/__init__.py": f"raise ImportError('{SYMBOL}')"},
}


def broken_engine(place: Path, files: dict[str, str] = BROKEN["of its own"]) -> Path:
    """A folder for PYTHONPATH that holds it."""
    about = place / "transformer_engine-2.3.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Name: transformer-engine\nVersion: 2.3.0\n")
    for name, text in files.items():
        path = place / "transformer_engine" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return place
