"""A package that Megatron imports where it is there, left out where it cannot be imported.

Megatron does without a Transformer Engine that is not installed, but one that was built for another torch
(``undefined symbol``) ends every import of Megatron with an error of its own.
"""

import importlib
import os
import sys


def leave_out_broken(package: str, module: str) -> str:
    """Makes ``package`` look as if it were not installed where its ``module`` cannot be imported.

    Returns why it cannot; nothing where it can, or where it is not installed.
    """
    try:
        importlib.import_module(module)
    except ModuleNotFoundError:
        return ""
    except (ImportError, OSError) as error:
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            del sys.modules[name]
        sys.modules[package] = None  # by which Python says that there is no such module
        return " ".join(str(error).split())
    return ""


def say_what_is_left_out(package: str, module: str) -> None:
    """Leaves a broken ``package`` out, and says so on stderr, once a machine."""
    reason = leave_out_broken(package, module)
    if reason and int(os.environ.get("LOCAL_RANK", 0)) == 0:
        print(f"{package}: left out, it cannot be imported: {reason}", file=sys.stderr, flush=True)
