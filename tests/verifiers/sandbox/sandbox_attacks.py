"""Programs that attack the grader or the machine, for test_sandbox.py: cheats want a reward, escapes out,
rude ones harm.

An escape returns "escaped" when it got through. PORT, SECRET and TRAINER stand for a listening port, a
planted file and our pid.
"""

# Lies about the answer: what a program may do to be believed without knowing it.
CHEATS = {
    "comparison override": """
class Yes:
    __eq__ = lambda self, other: True
    __ne__ = lambda self, other: False
    __hash__ = lambda self: 42
def attack(x): return Yes()
""",
    "int subclass": """
class Yes(int):
    __eq__ = __ge__ = __le__ = lambda self, other: True
    __hash__ = lambda self: 42
    __repr__ = __str__ = __format__ = lambda self, *spec: "0x2a"
def attack(x): return Yes(1)
""",
    "dict that lies": """
class Yes(dict):
    __eq__ = lambda self, other: True
    items = lambda self: [(1, 42)]
def attack(x): return Yes()
""",
    "printing success": """
import sys
for fd in (1, 2):
    import os
    os.write(fd, b"passed\\nOK\\n0 0x2a\\n" + b"".join(b"%d 0x2a\\n1.0\\n" % i for i in range(9)))
print("All tests passed", file=sys.stderr)
def attack(x): print("passed"); return "passed"
""",
    "forging lines without the secret": """
import os
for fd in range(1, 32):
    try: os.write(fd, b"secret 0 0x2a\\n 0 0x2a\\n" + b"0" * 32 + b" 0 0x2a\\n")
    except OSError: pass
""",
    "forging lines with the secret": """
import sys, os
frame = sys._getframe()
while "secret" not in frame.f_locals:
    frame = frame.f_back
for fd in range(3, 32):
    for index in range(3):
        try: os.write(fd, f"{frame.f_locals['secret']} {index} True\\n{frame.f_locals['secret']} 0 0x2a 0x1267\\n".encode())
        except OSError: pass
def attack(x): return None
""",
    "frame walk": """
import sys, gc
def attack(x):
    frame, seen = sys._getframe(), gc.get_objects()
    while frame:
        seen += [frame.f_locals, frame.f_globals]
        frame = frame.f_back
    values = lambda s: s.values() if type(s) is dict else s if type(s) in (list, tuple) else ()
    texts = [v for s in seen for v in values(s) if type(v) is str]
    return max((t for t in texts if t.startswith("token-")), key=len)
""",
    "patching the spelling": """
import builtins, sys, json, marshal, os
for module in (sys.modules["__main__"], sys.modules["jail"]):
    module.spell = module.verify = lambda *a: "True"
frame = sys._getframe().f_back
while frame:
    if "spell" in frame.f_globals: frame.f_globals["spell"] = lambda value: "True"
    frame = frame.f_back
builtins.hex = builtins.repr = lambda value: "True"
json.dumps = lambda *a, **k: "true"
marshal.loads = lambda data: [1]
sys.modules["sys"] = None
def attack(x): return True
""",
    "leaving early with status 0": "import os\nprint('passed')\nos._exit(0)",
    "sys.exit in the call": "import sys\ndef attack(x): sys.exit(0)",
    "at exit": "import atexit, os\natexit.register(lambda: os._exit(0))\ndef attack(x): raise SystemExit",
    "tracing the harness": """
import sys
def trace(frame, event, arg):
    frame.f_trace_lines = True
    for name in ("right", "score", "spelling", "result"):
        if name in frame.f_locals: frame.f_locals[name] = "True"
    return trace
sys.settrace(trace)
def attack(x): return None
""",
    "crash": "import ctypes\ndef attack(x): ctypes.string_at(0)",
    "deep recursion": "def attack(x):\n    y = []\n    for _ in range(10**5): y = [y]\n    return y",
}


def _any(act: str) -> str:
    """A program whose attack escaped when any expression in the list ``acts`` raised nothing."""
    return f"""
import ctypes, os, signal, socket, subprocess, sys, threading, time
{act.strip()}
def attack():
    for act in acts:
        try:
            act()
            return "escaped"
        except (OSError, RuntimeError, KeyError, MemoryError):
            pass
"""


# Without lasting effect where they succeed: they run without the sandbox too, as the control.
ESCAPES = {
    "network": _any("acts = [lambda: socket.create_connection(('127.0.0.1', PORT), 1)]"),
    "abstract unix socket": _any(
        "acts = [lambda: socket.socket(socket.AF_UNIX).connect('\\0bar-test-PORT')]"
    ),
    "reading a planted secret": _any("acts = [lambda: open('SECRET').read()]"),
    "reading it through a symlink": _any("""
os.symlink('/', 'root')
acts = [lambda: open('root' + 'SECRET'), lambda: open('../' * 40 + 'SECRET')]
"""),
    "host files": _any(
        "acts = [lambda p=p: open(p) for p in ('/etc/passwd', '/proc/1/environ', '/dev/zero', '/bin/sh')]"
    ),
    "environment": _any("acts = [lambda: os.environ['BAR_TEST_TOKEN']]"),
    "writing outside": _any("""
paths = [os.path.dirname('SECRET'), '/', '/tmp', '/dev/shm', os.path.dirname(os.__file__)]
acts = [lambda p=p: open(p + '/bar-test-outside', 'w') for p in paths]
"""),
    "running a program": _any("""
commands = ['/bin/sh', '-c', 'true'], [sys.executable, '-c', '']
acts = [lambda c=c: subprocess.run(c, check=True) for c in commands]
"""),
    "signalling the trainer": _any("acts = [lambda: os.kill(TRAINER, 0)]"),
    "memory": _any("acts = [lambda: bytearray(1 << 29)]"),
    "shared memory": _any("""
libc = ctypes.CDLL(None)
def take():
    if libc.shmget(0, 1 << 28, 0o1600) < 0: raise OSError
acts = [take]
"""),
    "memory file": _any("acts = [lambda: os.memfd_create('x')]"),
    "disk": _any("""
def fill():
    for i in range(12):
        with open(f'f{i}', 'wb') as file: file.write(bytes(1 << 20))
acts = [fill]
"""),
    "large file": _any("""
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
acts = [lambda: open('x', 'wb').truncate(1 << 24)]
"""),
    "threads": _any(
        "acts = [lambda: [threading.Thread(target=time.sleep, args=(.2,)).start() for _ in range(90)]]"
    ),
    "open files": _any("acts = [lambda: [os.pipe() for _ in range(40)]]"),
}

# Too rude to run without the sandbox.
RUDE = {
    "fork bomb": """
import os
def attack():
    made = 0
    for _ in range(50):
        try: made += os.fork() > 0
        except OSError: break
    return "escaped" if made > 8 else made
""",
    "killing the parent": """
import os, signal
def attack():
    for pid in (os.getppid(), 0, 1, -1):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for number in (signal.SIGTERM, signal.SIGKILL):
            if pid or number != signal.SIGKILL:
                try: os.kill(pid, number)
                except OSError: pass
    return "survived"
""",
    "killing the own group": "import os\ndef attack(): os.kill(0, 9)",
    "ctypes": """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
CLONE = 56 if os.uname().machine == "x86_64" else 220
def attack():
    tries = {
        "user namespace": lambda: libc.unshare(0x10000000),
        "user namespace by clone": lambda: libc.syscall(CLONE, 0x10000000 | 17, 0, 0, 0, 0) < 0,
        "mount": lambda: libc.mount(b"none", b"/scratch", b"tmpfs", 0, None),
        "proc": lambda: libc.mount(b"proc", b"/scratch", b"proc", 0, None),
        "writable root": lambda: libc.mount(None, b"/", None, 32 | 4096, None),
        "ptrace": lambda: libc.ptrace(16, 1, 0, 0),
        "chroot": lambda: libc.chroot(b"/scratch"),
        "setuid": lambda: libc.setuid(0),
        "hostname": lambda: libc.sethostname(b"x", 1),
        "device": lambda: libc.mknod(b"/scratch/sda", 0o60600, 0x0800),
    }
    through = [name for name, act in tries.items() if act() == 0]
    return "escaped" if through else "held"
""",
}
