"""The one exception that means a user's mistake."""


class BarError(ValueError):
    """Bad input, told in one line that names the thing, what was expected and what was found.

    The command-line tools print it as ``error: ...`` and exit with status 1; anything else is a bug
    and keeps its traceback.
    """
