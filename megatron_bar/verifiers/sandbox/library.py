"""The standard library inside the sandbox: an image in memory, from which modules are imported.

No folder of the host is in a program's sight, so that not even a look for absent names leaves anything in the
host's caches. jail.py imports this and nothing else does; image.py makes the image.
"""

import _ctypes
import _frozen_importlib
import _frozen_importlib_external
import marshal
import mmap
import os
import sys

PLACE = "/library"
"""Where extension modules, and the shared objects that they need, are laid down when they are imported."""
CODE, SOURCE, OBJECT = "code", "source", "object"
"""What an entry holds: code as marshal has it, a source text, or a shared object."""


class Library:
    """Finds and loads the modules of an image, which also has the filters of a program and of a judge."""

    def __init__(self, fd):
        copy = os.dup(fd)  # the lowest free number, which the map's own copy gets
        os.close(copy)
        self.image = mmap.mmap(fd, 0, mmap.MAP_PRIVATE, mmap.PROT_READ)
        os.dup2(0, copy, inheritable=False)  # every other sandbox has the same file
        size = len(self.image)
        start = int.from_bytes(self.image[size - 8 :], "little")
        self.entries, self.filters = marshal.loads(self.image[start : size - 8])  # noqa: S302  image.py wrote it
        os.close(fd)

    def find_spec(self, name, path=None, target=None):
        if name not in self.entries:
            return None
        kind, is_package, _, _, needs = self.entries[name]
        if kind == OBJECT:
            self._load(needs)
            place = self._lay_down(name)
            loader = _frozen_importlib_external.ExtensionFileLoader(name, place)
            return _frozen_importlib.ModuleSpec(name, loader, origin=place)
        return _frozen_importlib.ModuleSpec(name, self, origin="library", is_package=is_package)

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        exec(self.get_code(module.__name__), vars(module))  # noqa: S102  a module of the library

    def get_code(self, name):
        kind = self.entries[name][0]
        content = self._content(name)
        if kind == CODE:
            return marshal.loads(content)  # noqa: S302  image.py wrote it
        return compile(content, f"<{name}>", "exec")

    def get_source(self, name):
        return None

    def is_package(self, name):
        return self.entries[name][1]

    def _load(self, names):
        """Loads shared objects, so that whoever needs one finds it loaded; some need others of them."""
        for _ in names:
            for name in names:
                try:
                    _ctypes.dlopen(self._lay_down(name), os.RTLD_NOW)
                except OSError:
                    continue

    def _content(self, name):
        _, _, start, length, _ = self.entries[name]
        return self.image[start : start + length]

    def _lay_down(self, name):
        place = f"{PLACE}/{name}"
        try:
            fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o500)
        except FileExistsError:
            return place
        content = memoryview(self._content(name))
        try:
            while content:
                content = content[os.write(fd, content) :]
        except OSError as error:  # a program filled the place
            os.unlink(place)
            raise ImportError(name) from error
        finally:
            os.close(fd)
        return place


def use(library, *folders):
    """Makes ``library`` and ``folders`` the places that modules come from."""
    sys.path[:] = folders
    sys.path_importer_cache.clear()
    sys.meta_path.insert(-1, library)
