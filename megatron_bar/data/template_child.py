"""A process of its own that lays out chats by templates that anyone may have written (own_template.py).

A line of JSON in, the arguments of transformers' own function; a line of JSON out, the text or an error.
"""

import json
import os
import resource
import signal
import sys

SECONDS = 2
"""Processor time of one chat."""
MEMORY = 512 << 20
"""Bytes of data, all of the process's."""
MORE = 1 << 20
"""Characters of a text, besides four times those of its chat and template."""


def main() -> None:
    """Answers until the input ends."""
    replies = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no reply
    from transformers.utils.chat_template_utils import render_jinja_template

    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        given = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # whose signal nobody handles: the kernel ends us
        try:
            ((text,), _) = render_jinja_template(**given)
            text.encode()  # no half of a surrogate pair
            few = len(text) <= MORE + 4 * len(line)
            reply = {"text": text} if few else {"error": f"it made {len(text)} characters"}
        except Exception as error:  # noqa: BLE001  a template can raise anything
            reply = {"error": str(error).splitlines()[0][:200] if str(error) else type(error).__name__}
        signal.setitimer(signal.ITIMER_PROF, 0)
        with open(replies, "wb", closefd=False) as out:
            out.write(json.dumps(reply).encode() + b"\n")


if __name__ == "__main__":
    main()
