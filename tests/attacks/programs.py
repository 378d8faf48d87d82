"""Programs against the machine, the judge and the run, for test_programs.py: by what they try to do.

A program prints or returns "got through" once it did what it tries; what it needs of the kernel it asks for by
number, as libc and Python may lack the call.
"""

LIBC = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(number, *args):
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in args])
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def attempt(*acts):
    for act in acts:
        try:
            act()
        except (OSError, RuntimeError, MemoryError, AttributeError, ValueError, ImportError):
            continue
        print("got through", flush=True)
"""

CALLS = {
    "pidfd_open of init": "call(434, 1, 0)",
    "pidfd_getfd of whatever is there": "call(438, 3, 4, 0)",
    "size of its input's pipe": "__import__('fcntl').fcntl(0, 1031, 4096)",
    "size of its output's pipe": "__import__('fcntl').fcntl(1, 1031, 1 << 20)",
    "packets on its output": "__import__('fcntl').fcntl(1, 4, 0o40000)",
    "packets on a pipe of its own": "call(293, ctypes.create_string_buffer(8), 0o40000)",
    "a lease on its input": "__import__('fcntl').fcntl(0, 1024, 0)",
    "a lock of an open file": "__import__('fcntl').fcntl(0, 37, bytes(32))",
    "the times of a device": "os.utime('/dev/null')",
    "the mode of a device": "os.chmod('/dev/null', 0)",
    "other input": "open('/dev/stdin', 'w')",
    "another device": "open('/dev/mem'), open('/dev/zero'), os.rename('x', '/dev/x'), os.unlink('/dev/null')",
    "signals when its output moves": "__import__('fcntl').fcntl(1, 8, os.getpid())",
    "seals": "__import__('fcntl').fcntl(0, 1033, 1)",
    "a VSOCK": "__import__('socket').socket(40, 1)",
    "a netlink socket": "__import__('socket').socket(16, 3)",
    "a packet socket": "__import__('socket').socket(17, 3)",
    "a Unix socket": "__import__('socket').socket(1, 1)",
    "an internet socket": "__import__('socket').socket(2, 1)",
    "a pair of another family": "call(53, 16, 3, 0, ctypes.create_string_buffer(8))",
    "descriptors in a message": "call(46, 0, ctypes.create_string_buffer(64), 0)",
    "a buffer's size": "call(54, 1, 1, 7, ctypes.create_string_buffer(4), 4)",
    "asynchronous I/O contexts": "call(206, 60000, ctypes.create_string_buffer(8))",
    "io_uring": "call(425, 8, ctypes.create_string_buffer(120))",
    "inotify": "call(294, 0)",
    "inotify of old": "call(253)",
    "fanotify": "call(300, 0, 0)",
    "a timer per signal": "call(222, 0, 0, ctypes.create_string_buffer(8))",
    "a timer's descriptor": "call(283, 0, 0)",
    "an event's descriptor": "call(290, 0, 0)",
    "a signal's descriptor": "call(289, -1, ctypes.create_string_buffer(8), 8, 0)",
    "a message queue": "call(240, b'q', 0o102, 0o600, 0)",
    "a queue of messages": "call(68, 0, 0o1600)",
    "shared memory": "call(29, 0, 1 << 20, 0o1600)",
    "semaphores": "call(64, 0, 4, 0o1600)",
    "memory in a file": "call(319, b'm', 0)",
    "secret memory": "call(447, 0)",
    "locked memory": "call(149, ctypes.addressof(ctypes.create_string_buffer(8192)), 4096)",
    "memory that is locked as it is mapped": "call(9, 0, 4096, 3, 0x2022, -1, 0)",
    "memory that grows down": "call(9, 0, 4096, 3, 0x122, -1, 0)",
    "memory far from all other": "call(9, 1 << 40, 4096, 3, 0x22, -1, 0)",
    "memory moved far away": "call(25, call(9, 0, 4096, 3, 0x22, -1, 0), 4096, 4096, 3, 1 << 40)",
    "pages merged with another's": "call(28, call(9, 0, 4096, 3, 0x22, -1, 0), 4096, 12)",
    "pages written out": "call(28, call(9, 0, 4096, 3, 0x22, -1, 0), 4096, 21)",
    "a byte out of band": "(lambda pair: pair[0].send(b'x', 1))(__import__('socket').socketpair())",
    "the library's file": "os.pwrite(3, b'', 0)",
    "a signal's target with an upper half": "call(62, (1 << 32) + 1, 0)",
    "a command with an upper half": "call(72, 1, (1 << 32) + 1031, 1 << 20)",
    "a thread with a namespace": "call(56, 0x40010900, 0, 0, 0, 0)",
    "a process with the thread's bit above": "call(56, (0x10000 << 32) + 17, 0, 0, 0, 0)",
    "a key": "call(248, b'user', b'k', b'v', 1, -3)",
    "a key's store": "call(250, 0, -3, 1)",
    "a program of the kernel": "call(321, 0, ctypes.create_string_buffer(120), 120)",
    "a filter of its own": "call(317, 1, 0, ctypes.create_string_buffer(16))",
    "a process's options": "call(157, 36, 1, 0, 0, 0)",
    "dumpable": "call(157, 4, 1, 0, 0, 0)",
    "a Landlock ruleset": "call(444, 0, 0, 1)",
    "performance events": "call(298, ctypes.create_string_buffer(128), 0, -1, -1, 0)",
    "page faults of its own": "call(323, 0)",
    "ptrace of the judge": "call(101, 16, 1, 0, 0)",
    "memory of the judge": "call(310, 1, 0, 0, 0, 0, 0)",
    "a signal to the judge": "os.kill(1, 0)",
    "a signal to all": "os.kill(-1, 0)",
    "a signal to its group": "os.kill(0, 0)",
    "a signal with a value": "call(129, os.getpid(), 10, ctypes.create_string_buffer(128))",
    "the judge's limits": "call(302, 1, 0, ctypes.create_string_buffer(16), 0)",
    "higher limits": "__import__('resource').setrlimit(9, (1 << 40, 1 << 40))",
    "fork": "os.fork()",
    "vfork": "call(58)",
    "clone": "call(56, 17, 0, 0, 0, 0)",
    "clone3": "call(435, ctypes.create_string_buffer(88), 88)",
    "execve": "os.execv('/library/x', ['x'])",
    "execve of a file in memory": "call(322, 0, b'', 0, 0, 0x1000)",
    "a namespace": "call(272, 0x10000000)",
    "a namespace of another": "call(308, 0, 0)",
    "a mount": "call(165, b'none', b'/scratch', b'tmpfs', 0, 0)",
    "a mount of the new kind": "call(430, b'tmpfs', 0)",
    "a tree of mounts": "call(428, -100, b'/', 1)",
    "an unmount": "call(166, b'/scratch', 2)",
    "a root": "call(161, b'/scratch')",
    "a device": "os.mknod('x', 0o60600, 0x0800)",
    "a named pipe": "os.mkfifo('x')",
    "an attribute": "call(188, b'/scratch', b'user.x', b'y', 1, 0)",
    "a handle": "call(303, -100, b'/', ctypes.create_string_buffer(200), ctypes.create_string_buffer(4), 0)",
    "writing all of the host's disks": "call(162)",
    "writing a disk": "call(306, 0)",
    "pages given to a pipe": "call(278, 1, 0, 0, 0)",
    "a pipe into a pipe": "call(276, 0, 1, 1, 0)",
    "a file into a pipe": "call(275, 0, 0, 1, 0, 1, 0)",
    "a higher priority": "os.nice(5)",
    "another scheduler": "os.sched_setscheduler(0, 3, os.sched_param(0))",
    "other cores": "os.sched_setaffinity(0, {0})",
    "the host's name": "call(170, b'x', 1)",
    "the clock": "call(227, 0, ctypes.create_string_buffer(16))",
    "the kernel's log": "call(103, 10, 0, 0)",
    "which pages others hold": "call(27, ctypes.addressof(ctypes.create_string_buffer(8192)) & -4096, 4096, "
    "ctypes.create_string_buffer(4))",
    "x32": "call(0x40000000 + 39)",
}
"""System calls of x86_64 that make a process or a socket, reach another process, hold what no limit counts, or
leave something on the host: as expressions that raise OSError where the kernel refuses."""

WASTERS = {
    "names that are not there": "while True:\n    try: os.stat(os.urandom(100).hex())\n    except OSError: pass",
    "names below the library": "while True:\n    try: os.stat('/library/' + os.urandom(100).hex())\n    except OSError: pass",
    "modules that are not there": "n = 0\nwhile True:\n    n += 1\n    try: __import__(f'absent{n}')\n    except ImportError: pass",
    "files made and removed": "n = 0\nwhile True:\n    n += 1\n    open(f'x{n}', 'w').close(); os.unlink(f'x{n}')",
    "threads that work": "import threading\nfor _ in range(90):\n    try: threading.Thread(target=lambda: [0 for _ in iter(lambda: 1, 0) if 0]).start()\n    except RuntimeError: pass\nwhile True: pass",
    "SIGPROF": "import signal\nsignal.signal(27, lambda *_: os.fork())\nsignal.setitimer(2, .001, .001)\nwhile True:\n    try:\n        while True: pass\n    except OSError: pass",
    "signals unheard": "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\nsignal.pthread_sigmask(0, range(1, 65))\nwhile True: pass",
    "sleep": "time.sleep(5.7)",
    "sleep in pieces": "while True: time.sleep(.01)",
    "sleep after work of threads": "import hashlib, threading\ndata = bytes(1 << 20)\ndef work():\n    while time.process_time() < .8: hashlib.sha256(data).digest()\n    time.sleep(20)\nall_ = [threading.Thread(target=work) for _ in range(5)]\n[one.start() for one in all_]; [one.join() for one in all_]",
    "page tables": "import ctypes\nmap_ = ctypes.CDLL(None).mmap\nmap_.restype = ctypes.c_long\nfor n in range(65000): map_(ctypes.c_long((1 << 40) + (n << 30)), ctypes.c_long(4096), 3, 0x8032, -1, ctypes.c_long(0))\ntime.sleep(1)",
    "a stop": "os.kill(os.getpid(), 19)",
    "signals that wait": "import signal\nsignal.pthread_sigmask(0, range(34, 64))\nwhile True: os.kill(os.getpid(), 40)",
    "epolls in epolls": "import select\nall_ = [select.epoll() for _ in range(20)]\nfor n, one in enumerate(all_):\n    for other in all_[:n]:\n        try: one.register(other.fileno())\n        except OSError: pass\nr, w = os.pipe()\nwhile True:\n    for one in all_: one.register(r); one.unregister(r)",
    "deep folders": "for _ in range(200): os.mkdir('d' * 200); os.chdir('d' * 200)\nwhile True:\n    try: os.getcwd()\n    except OSError: pass",
    "waiting for itself": "import threading\nthreading.Event().wait()",
    "waiting for a pipe": "r, w = os.pipe()\nos.read(r, 1)",
    "waiting for a socket": "import socket\na, b = socket.socketpair()\na.recv(1)",
    "poll": "import select\nselect.poll().poll(60000)",
    "a byte at a time": "while True: os.write(1, b'.'); time.sleep(.002)",
    "memory": "x = []\nwhile True: x.append(bytearray(1 << 20))",
    "memory in threads": "import threading\nx = []\ndef eat():\n    while True:\n        try: x.append(bytearray(1 << 16))\n        except MemoryError: time.sleep(.001)\nfor _ in range(5): threading.Thread(target=eat).start()",
    "memory that is shared": "import mmap\nx = []\nwhile True: x.append(mmap.mmap(-1, 1 << 24)); x[-1].write(b'x' * (1 << 24))",
    "pipes that are full": "for _ in range(14):\n    r, w = os.pipe(); os.set_blocking(w, False)\n    try:\n        while True: os.write(w, b'x' * 65536)\n    except OSError: pass\nwhile True: pass",
    "sockets that are full": "import socket\nx = []\nfor _ in range(14):\n    a, b = socket.socketpair(type=socket.SOCK_DGRAM); a.setblocking(False); x.append((a, b))\n    try:\n        while True: a.send(b'x')\n    except OSError: pass\nwhile True: pass",
    "locks": "import fcntl\nfile = open('x', 'wb')\nn = 0\nwhile True:\n    n += 2\n    fcntl.lockf(file, fcntl.LOCK_EX, 1, n)",
    "locks found at once": "import fcntl\nfile = open('x', 'wb')\nn = 1 << 40\nwhile True:\n    n -= 2\n    fcntl.lockf(file, fcntl.LOCK_EX, 1, n)",
    "a lock that is held": "import fcntl\nfor _ in range(2): fcntl.flock(os.open('x', os.O_CREAT), fcntl.LOCK_EX)",
    "the disk": "n = 0\nwhile True:\n    n += 1\n    try: open(f'x{n}', 'wb').write(bytes(1 << 22))\n    except OSError: pass",
    "the library's place": "n = 0\nwhile True:\n    n += 1\n    try: open(f'/library/x{n}', 'wb').write(bytes(1 << 22))\n    except OSError: pass",
    "maps in pieces": "import mmap\nx = []\nwhile True:\n    try: x.append(mmap.mmap(-1, 4096))\n    except OSError: pass",
    "output": "while True: print('x' * 65536)",
    "errors": "while True: print('x' * 65536, file=sys.stderr)",
    "recursion": "sys.setrecursionlimit(10 ** 9)\nf = lambda: f()\nf()",
    "a large power": "print(len(str(7 ** (10 ** 9))))",
    "a regular expression": "import re\nre.match('(a*)*b', 'a' * 99)",
}
"""Programs that want time, memory or the kernel's."""

HONEST = {
    "its input again": (
        "import mmap, sys\nfirst = sys.stdin.read()\nsys.stdin.seek(0)\n"
        "print(sys.stdin.read() == first, mmap.mmap(0, 0, access=mmap.ACCESS_READ)[:])",
        "True b'1 2'\n",
    ),
    "asyncio": (
        "import asyncio\nasync def f(x):\n    await asyncio.sleep(.01)\n    return await asyncio.to_thread(abs, x)\n"
        "async def main(): print(await asyncio.gather(f(-1), f(2)))\nasyncio.run(main())",
        "[1, 2]\n",
    ),
    "threads": (
        "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(4) as pool:\n"
        "    print(list(pool.map(lambda x: x * x, range(5))))",
        "[0, 1, 4, 9, 16]\n",
    ),
    "a deep thread": (
        "import sys, threading\nsys.setrecursionlimit(20000)\nthreading.stack_size(64 << 20)\n"
        "def depth(n): return n and 1 + depth(n - 1)\n"
        "t = threading.Thread(target=lambda: print(depth(15000)))\nt.start(); t.join()",
        "15000\n",
    ),
    "temporary files": (
        "import os, pathlib, shutil, tempfile\nwith tempfile.TemporaryDirectory() as place:\n"
        "    one = pathlib.Path(place, 'a'); one.write_text('x'); shutil.copy2(one, place + '/b')\n"
        "    shutil.move(place + '/b', place + '/c'); print(sorted(os.listdir(place)))\n"
        "with tempfile.TemporaryFile() as file: print(file.write(b'xy'))",
        "['a', 'c']\n2\n",
    ),
    "compression": (
        "import bz2, gzip, io, lzma, zipfile, zlib\n"
        "print(*[m.decompress(m.compress(b'x')) for m in (zlib, gzip, bz2, lzma)])\nfile = io.BytesIO()\n"
        "with zipfile.ZipFile(file, 'w') as whole: whole.writestr('a', 'b')\n"
        "print(zipfile.ZipFile(file).read('a'))",
        "b'x' b'x' b'x' b'x'\nb'b'\n",
    ),
    "hashes and chance": (
        "import base64, hashlib, random, secrets, uuid\nprint(hashlib.sha256(b'x').hexdigest()[:8], "
        "hashlib.pbkdf2_hmac('sha256', b'a', b'b', 2).hex()[:8], len(secrets.token_hex(4)), "
        "base64.b64encode(b'x'), uuid.uuid4().version, random.randint(1, 1))",
        "2d711642 a14585f5 8 b'eA==' 4 1\n",
    ),
    "a database": (
        "import sqlite3\nbase = sqlite3.connect(':memory:')\nbase.execute('create table t (x)')\n"
        "base.executemany('insert into t values (?)', [(1,), (2,)])\n"
        "print(base.execute('select sum(x) from t').fetchone())",
        "(3,)\n",
    ),
    "a database in a file": (
        "import sqlite3\nfor mode in ('delete', 'wal'):\n    with sqlite3.connect('x.db') as base:\n"
        "        base.execute(f'pragma journal_mode={mode}')\n        base.execute('create table if not exists t (x)')\n"
        "        base.execute('insert into t values (1)')\n    base.close()\n"
        "print(sqlite3.connect('x.db').execute('select sum(x) from t').fetchone())",
        "(2,)\n",
    ),
    "locks": (
        "import fcntl\nwith open('x', 'w') as file:\n    for lock in (fcntl.flock, fcntl.lockf):\n"
        "        lock(file, fcntl.LOCK_EX)\n        lock(file, fcntl.LOCK_UN)\nprint('locked')",
        "locked\n",
    ),
    "its input by name": (
        "import pathlib, sys\nprint(open('/dev/stdin').read(), pathlib.Path('/dev/stdin').read_text(), open(0).read())",
        "1 2 1 2 1 2\n",
    ),
    "what nobody reads": (
        "import contextlib, os\nwith open(os.devnull, 'w') as nothing, contextlib.redirect_stdout(nothing): print('x' * 99)\n"
        "print(open('/dev/null').read() == '')",
        "True\n",
    ),
    "itself": (
        "import inspect, os, pathlib, sys\ndef f(): pass\n"
        "if __name__ == '__main__': print(os.path.basename(__file__), sys.argv == [__file__], inspect.getsource(f))\n"
        "beside = pathlib.Path(__file__).parent / 'x'\nbeside.write_text(open(__file__).read()[:6])\nprint(open('x').read())",
        "program.py True def f(): pass\n\nimport\n",
    ),
    "64 threads": (
        "import threading\nfrom concurrent.futures import ThreadPoolExecutor\nall_here = threading.Barrier(64)\n"
        "with ThreadPoolExecutor(64) as pool: print(sum(pool.map(lambda x: all_here.wait() * 0 + x, range(64))))\n"
        "with ThreadPoolExecutor() as pool: print(sum(pool.map(int, range(64))))",
        "2016\n2016\n",
    ),
    "a thread that still runs at the end": (
        "import threading, time\ndef work():\n    while True: time.sleep(.001)\n"
        "threading.Thread(target=work, daemon=True).start()\nprint('done')",
        "done\n",
    ),
    "a thread of 512 MiB": (
        "import sys, threading\nsys.setrecursionlimit(10 ** 6)\nthreading.stack_size(512 << 20)\n"
        "def depth(n): return n and 1 + depth(n - 1)\ndef main(): print(depth(50_000), len(bytearray(100 << 20)))\n"
        "thread = threading.Thread(target=main)\nthread.start()\nthread.join()",
        "50000 104857600\n",
    ),
    "an alarm": (
        "import signal, time\nclass Late(Exception): pass\ndef late(*_): raise Late\n"
        "signal.signal(signal.SIGALRM, late)\nsignal.setitimer(signal.ITIMER_REAL, .02)\n"
        "try: time.sleep(.5)\nexcept Late: print('late')",
        "late\n",
    ),
    "a module of its own": (
        "open('mine.py', 'w').write('x = 3')\nimport mine\nprint(mine.x)",
        "3\n",
    ),
    "tests of its own": (
        "import doctest, unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(1, 1)\n"
        "print(unittest.main(exit=False).result.wasSuccessful(), doctest.testmod().failed)",
        "True 0\n",
    ),
    "numbers": (
        "import cmath, decimal, fractions, math, statistics\nprint(decimal.Decimal(1) / 4, "
        "fractions.Fraction(2, 4), statistics.mean([1, 2]), math.comb(5, 2), abs(cmath.exp(0)))",
        "0.25 1/2 1.5 10 1.0\n",
    ),
    "text": (
        "import csv, difflib, html, io, json, re, textwrap, unicodedata, xml.etree.ElementTree as tree\n"
        "print(json.loads('[1]'), re.sub('a', 'b', 'a'), unicodedata.name('é'), html.escape('<'), "
        "tree.fromstring('<a>x</a>').text, list(csv.reader(io.StringIO('1,2'))), 'ß'.encode('cp1252'))",
        "[1] b LATIN SMALL LETTER E WITH ACUTE &lt; x [['1', '2']] b'\\xdf'\n",
    ),
    "time": (
        "import calendar, datetime, time, timeit\nprint(datetime.date(2024, 2, 29).isoformat(), "
        "calendar.isleap(2024), time.strftime('%Y', time.gmtime(0)), timeit.timeit('1', number=9) > 0)",
        "2024-02-29 True 1970 True\n",
    ),
    "structures": (
        "import bisect, collections, copy, dataclasses, enum, functools, heapq, itertools, pickle, typing\n"
        "@dataclasses.dataclass\nclass Point:\n    x: int\n"
        "print(pickle.loads(pickle.dumps({1: [2]})), Point(1), heapq.nsmallest(1, [3, 2]), "
        "collections.Counter('aa'), list(itertools.pairwise('abc')), functools.reduce(max, [1, 3]))",
        "{1: [2]} Point(x=1) [2] Counter({'a': 2}) [('a', 'b'), ('b', 'c')] 3\n",
    ),
    "what went wrong": (
        "import inspect, logging, traceback\ntry: 1 / 0\n"
        "except ZeroDivisionError: print(traceback.format_exc().splitlines()[-1])\n"
        "print(inspect.signature(lambda a, b=1: 0))\nlogging.warning('x')",
        "ZeroDivisionError: division by zero\n(a, b=1)\n",
    ),
}
"""Programs that do none of it, and what they print."""
