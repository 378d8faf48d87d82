"""Makes the image of the standard library that programs in the sandbox import from (library.py), with the
filters of their system calls."""

import fcntl
import functools
import importlib.machinery
import importlib.util
import json
import marshal
import os
import struct
import subprocess
import sys
import sysconfig
from pathlib import Path

from megatron_bar.verifiers.sandbox.calls import filter_of
from megatron_bar.verifiers.sandbox.library import CODE, OBJECT, SOURCE

JUDGE, WORKER = 1, 2
"""Pids in the sandbox's namespace (jail.py)."""
LEFT_OUT = frozenset(
    "test idlelib tkinter turtle turtledemo ensurepip lib2to3 site-packages dist-packages pydoc_data venv "
    "__pycache__ nis readline crypt _crypt _tkinter _curses _curses_panel".split()
)
"""Of no use inside, or in need of a screen, a user's files, a network."""
NEEDS = """
import importlib, json, os, sys

def objects():
    with open("/proc/self/maps") as maps:
        return {line.split(None, 5)[5].strip() for line in maps if ".so" in line}

before = objects()
for name in sys.argv[1:]:
    if os.fork() == 0:
        try:
            importlib.import_module(name)
            print(json.dumps([name, sorted(objects() - before)]), flush=True)
        finally:
            os._exit(0)
    os.wait()
"""
"""Prints what shared objects a process maps once it has imported an extension module, for each."""


def image() -> int:
    """Returns a file of this process, in memory, with all of the library that can be imported."""
    return _image_of(os.getpid())


@functools.cache
def _image_of(pid: int) -> int:
    entries = {}
    file = os.memfd_create("library", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(file, "wb", closefd=False) as out:

        def add(name: str, kind: str, content: bytes, *, is_package: bool = False, needs=()) -> None:
            entries[name] = (kind, is_package, out.tell(), len(content), tuple(needs))
            out.write(content)

        root = Path(os.__file__).parent
        for path in _modules(root):
            parts = path.relative_to(root).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            kind, content = _code(path)
            add(".".join(parts[:-1] if is_package else parts), kind, content, is_package=is_package)
        for name, (path, needed) in _extensions().items():
            for each in needed:
                if each.name not in entries:
                    add(each.name, OBJECT, each.read_bytes())
            add(name, OBJECT, path.read_bytes(), needs=[each.name for each in needed])
        start = out.tell()
        filters = filter_of(WORKER), filter_of(JUDGE, WORKER)
        out.write(marshal.dumps((entries, filters)) + start.to_bytes(8, "little"))
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
    return file


def _modules(root: Path):
    for folder, folders, files in os.walk(root):
        folders[:] = (
            sorted(set(folders) - LEFT_OUT)
            if folder != str(root)
            else [
                name
                for name in sorted(set(folders) - LEFT_OUT)
                if not name.startswith(("config-", "lib-dynload"))
            ]
        )
        yield from (
            Path(folder, name) for name in sorted(files) if name.endswith(".py") and name[:-3] not in LEFT_OUT
        )


def _code(path: Path) -> tuple[str, bytes]:
    """Returns a module's compiled code where it lies beside it and is of this text, else its text."""
    try:
        compiled = Path(importlib.util.cache_from_source(path)).read_bytes()
    except OSError:
        compiled = b""
    about = path.stat()
    wanted = struct.pack(
        "<4sIII", importlib.util.MAGIC_NUMBER, 0, int(about.st_mtime) & 0xFFFFFFFF, about.st_size & 0xFFFFFFFF
    )
    return (CODE, compiled[16:]) if compiled[:16] == wanted else (SOURCE, path.read_bytes())


def _extensions() -> dict[str, tuple[Path, list[Path]]]:
    """Returns the extension modules that can be imported here, with what else each needs."""
    folder = Path(sysconfig.get_config_var("DESTSHARED") or "")
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    paths = {path.name.removesuffix(suffix): path for path in sorted(folder.glob(f"*{suffix}"))}
    paths = {
        name: path
        for name, path in paths.items()
        if name not in LEFT_OUT and not name.startswith(("_test", "_xx", "xx"))
    }
    command = [sys.executable, "-I", "-S", "-c", NEEDS, *paths]
    told = subprocess.run(command, capture_output=True, check=True, env={}).stdout
    found = {}
    for name, objects in map(json.loads, told.splitlines()):
        needed = [Path(each) for each in objects if Path(each).parent != folder]
        found[name] = (paths[name], needed)
    return found
