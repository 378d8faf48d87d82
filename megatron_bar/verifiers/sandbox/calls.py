"""The system calls that a program in the sandbox may make, and the seccomp filter that refuses all others.

What CPython and its standard library need is listed; of it what makes a process, a socket to anywhere, memory
that no limit counts, or a lasting mark on the host is left out.
"""

import os
import struct

EPERM = 1
ENOSYS = 38
ENOTSUP = 95

# What an argument may be: one of several numbers, or made of some bits only, or with a bit set, or with an
# upper half from one number to another.
ONE_OF, WITHIN, WITH, UPPER = "one of", "within", "with", "upper half"

F_SETFL = 4
COMMANDS = (0, 1, 2, 3, 5, 6, 7, 1030)
"""fcntl: F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_GETLK, F_SETLK, F_SETLKW, F_DUPFD_CLOEXEC; no pipe sizes,
leases, signals. Locks end with the process, hold back nobody outside, as the files are its own, and take
kernel memory only as fast as a list can be searched for the place of one more."""
REQUESTS = (0x5401, 0x5413, 0x5421, 0x5450, 0x5451)
"""ioctl: TCGETS (isatty), TIOCGWINSZ, FIONBIO, FIONCLEX, FIOCLEX."""
STATUS_FLAGS = 0x8C03
"""O_APPEND, O_NONBLOCK, O_LARGEFILE and the access mode, without O_DIRECT, by which a pipe keeps packets."""
PIPE_FLAGS = 0x80800
"""O_CLOEXEC and O_NONBLOCK."""
MAP_FLAGS = 0x12C833
"""mmap: shared, private, fixed, anonymous, without reserve, filled at once, and three that say nothing; no
memory that is locked or of the host's huge pages."""
NEAR = ((0, 0), (0x2A00, 0x2BFF), (0x7E00, 0x7FFF))
"""Upper halves of x86_64's addresses: no wish, and where the kernel itself puts memory, in its old order and
in today's. A page far from others takes two more of the kernel's, which no limit counts."""
MOVES = 1
"""mremap: MREMAP_MAYMOVE, to where the kernel likes."""
ADVICE = (0, 1, 2, 3, 4, 8, 14, 15, 16, 17)
"""madvise: how it is read, DONTNEED, FREE, whether in huge pages, whether dumped; nothing that merges pages
with another's or writes them out."""
MESSAGE_FLAGS = 0x4162
"""MSG_PEEK, MSG_TRUNC, MSG_DONTWAIT, MSG_WAITALL, MSG_NOSIGNAL; nothing out of band."""
CLONE_THREAD = 0x10000
SIGKILL = 9
OWN = "own"
"""Stands for the processes that may be signalled: a program's own, and a judge's program."""

ALLOWED = """
read 0 63, write 1 64, close 3 57, fstat 5 80, newfstatat 262 79, lseek 8 62, mprotect 10 226,
munmap 11 215, brk 12 214, msync 26 227, pread64 17 67, pwrite64 18 68,
readv 19 65, writev 20 66, futex 202 98, rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139,
sigaltstack 131 132, rt_sigpending 127 136, rt_sigtimedwait 128 137, restart_syscall 219 128, exit 60 93,
exit_group 231 94, getrandom 318 278, openat 257 56, open 2 -, creat 85 -, stat 4 -, lstat 6 -, statx 332 291,
access 21 -, faccessat 269 48, faccessat2 439 439, readlink 89 -, readlinkat 267 78, getdents64 217 61,
getcwd 79 17, chdir 80 49, fchdir 81 50, mkdir 83 -, mkdirat 258 34, rmdir 84 -, unlink 87 -,
unlinkat 263 35, rename 82 -, renameat 264 38, renameat2 316 276, link 86 -, linkat 265 37, symlink 88 -,
symlinkat 266 36, chmod 90 -, fchmod 91 52, fchmodat 268 53, fchmodat2 452 452, utime 132 -, utimes 235 -,
utimensat 280 88, truncate 76 45, ftruncate 77 46, fsync 74 82, fdatasync 75 83, statfs 137 43,
fstatfs 138 44, flock 73 32, umask 95 166, dup 32 23, dup2 33 -, dup3 292 24, close_range 436 436, pipe 22 -,
shutdown 48 210,
poll 7 -, ppoll 271 73, select 23 -, pselect6 270 72, epoll_create1 291 20, epoll_ctl 233 21,
epoll_wait 232 -, epoll_pwait 281 22, epoll_pwait2 441 441,
nanosleep 35 101, clock_nanosleep 230 115, pause 34 -, alarm 37 -, getitimer 36 102, setitimer 38 103,
clock_gettime 228 113, clock_getres 229 114, gettimeofday 96 169, time 201 -, times 100 153,
gettid 186 178, set_tid_address 218 96, set_robust_list 273 99, rseq 334 293, sched_yield 24 124,
sched_getaffinity 204 123, getcpu 309 168,
getpid 39 172, getppid 110 173, getuid 102 174, geteuid 107 175, getgid 104 176, getegid 108 177,
getpgrp 111 -, getpgid 121 155, getsid 124 156, getgroups 115 158, getpriority 140 141, getrusage 98 165,
getrlimit 97 163, setrlimit 160 164, uname 63 160, sysinfo 99 179, wait4 61 260, waitid 247 95
"""
"""Name, number on x86_64, on aarch64 (-: not there): with any arguments."""

BY_ARGUMENT = {
    "fcntl": (72, 25, [{1: (ONE_OF, COMMANDS)}, {1: (ONE_OF, (F_SETFL,)), 2: (WITHIN, STATUS_FLAGS)}]),
    "ioctl": (16, 29, [{1: (ONE_OF, REQUESTS)}]),
    "pipe2": (293, 59, [{1: (WITHIN, PIPE_FLAGS)}]),
    "mmap": (9, -1, [{0: (UPPER, near), 3: (WITHIN, MAP_FLAGS)} for near in NEAR]),
    "mmap of aarch64": (-1, 222, [{3: (WITHIN, MAP_FLAGS)}]),
    "mremap": (25, 216, [{3: (WITHIN, MOVES)}]),
    "madvise": (28, 233, [{2: (ONE_OF, ADVICE)}]),
    "sendto": (44, 206, [{3: (WITHIN, MESSAGE_FLAGS)}]),
    "recvfrom": (45, 207, [{3: (WITHIN, MESSAGE_FLAGS)}]),
    # A pair (AF_UNIX) alone: what asyncio wakes itself by. No socket can be connected or bound.
    "socketpair": (53, 199, [{0: (ONE_OF, (1,))}]),
    # Threads alone.
    "clone": (56, 220, [{0: (WITH, CLONE_THREAD)}]),
    "kill": (62, 129, [{0: (ONE_OF, OWN)}]),
    "tgkill": (234, 131, [{0: (ONE_OF, OWN)}]),
    # Its own limits, whose hard ends it cannot move.
    "prlimit64": (302, 261, [{0: (ONE_OF, (0,))}]),
}
"""Name: number on x86_64, on aarch64 (-1: not there), and what its arguments may be: all of one of the
tables."""

REFUSED_AS = {
    # Its flags lie in memory, out of a filter's sight; libc falls back to clone.
    "clone3": (435, 435, ENOSYS),
    # Copies of files go without, where this is the reason.
    "listxattr": (194, 11, ENOTSUP),
    "llistxattr": (195, 12, ENOTSUP),
    "flistxattr": (196, 13, ENOTSUP),
}
"""Name: number on x86_64, on aarch64, and the error that it fails with; every other call fails with EPERM."""

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column of the tables, AUDIT_ARCH."""

LOAD = 0x20
EQUAL = 0x15
ABOVE = 0x25
AT_LEAST = 0x35
ANY_BIT = 0x45
GIVE = 0x06
KILL = 0x80000000
ALLOW = 0x7FFF0000
ERROR = 0x00050000


def filter_of(*own: int) -> bytes:
    """Returns the filter as an array of struct sock_filter; ``own``: pids that may be signalled. KeyError for
    a machine that the tables do not know.

    x86_64's second numbering (x32) has numbers of its own, of which none is listed.
    """
    column, audit_arch = MACHINES[os.uname().machine]
    # (operation, how many rules to skip if true, if false, operand); loads are from struct seccomp_data
    rules = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, audit_arch), (GIVE, 0, 0, KILL), (LOAD, 0, 0, 0)]
    for entry in ALLOWED.split(","):
        number = entry.split()[1 + column]
        if number != "-":
            rules += [(EQUAL, 0, 1, int(number)), (GIVE, 0, 0, ALLOW)]
    for *numbers, error in REFUSED_AS.values():
        rules += [(EQUAL, 0, 1, numbers[column]), (GIVE, 0, 0, ERROR | error)]
    for *numbers, tables in BY_ARGUMENT.values():
        if numbers[column] < 0:
            continue
        body = [rule for table in tables for rule in _table(table, own)]
        rules += [(EQUAL, 0, len(body) + 1, numbers[column]), *body, (GIVE, 0, 0, ERROR | EPERM)]
    rules.append((GIVE, 0, 0, ERROR | EPERM))
    return b"".join([struct.pack("HBBI", *rule) for rule in rules])


def _table(table, own):
    """Returns rules that allow the call if all arguments of ``table`` are as it says, else go on behind."""
    rules = [(GIVE, 0, 0, ALLOW)]
    for argument, (kind, value) in reversed(table.items()):
        left = len(rules)
        if kind == ONE_OF:
            values = own if value == OWN else value
            last = len(values) - 1
            checks = [
                (EQUAL, last - place, left if place == last else 0, each) for place, each in enumerate(values)
            ]
        elif kind == WITHIN:
            checks = [(ANY_BIT, left, 0, ~value & 0xFFFFFFFF)]
        elif kind == UPPER:
            checks = [(AT_LEAST, 0, left + 1, value[0]), (ABOVE, left, 0, value[1])]
        else:
            checks = [(ANY_BIT, 0, left, value)]
        rules = [(LOAD, 0, 0, 16 + 8 * argument + 4 * (kind == UPPER)), *checks, *rules]
    return rules
