"""The inside of the sandbox: what an interpreter does when sandbox.py starts it; no trainer imports it.

Three processes. The launcher gives up root, enters new user, mount, pid, net, ipc and uts namespaces and
waits; init (pid 1) builds a root that has nothing but a small scratch disk, a place for extension modules
and two names of /dev, gives up every capability and waits, or, where there are tests to judge, is their judge
(judge.py); the worker runs the program. When the worker ends, init ends (a judge ends when it is done), and
the kernel kills whatever else is left. There is no exec between them, so no interpreter, shell, /proc or host
file is needed inside, and none is there: the standard library comes from an image in memory (library.py). No
process of them can start another, or open another's memory or files, and only the system calls of calls.py
are answered. So the whole tree is two processes that cannot become more, each bounded by its own limits.

A judge loads no code that a program could have written: it imports from the image alone, and the worker's
root lies below its own, with another place for extension modules; the scratch disk is both's.

Arguments: the parent's pid, the fd on which "ready" or the reason of a failure is reported and, at the end,
the tree's processor time; the fds of the library's image and of the program or the judge's task, whether
there is a judge, and the limits. Standard input: the program's, or the answer's blocks (answer.py).
"""

# Not the public modules: signal loads enum, ctypes makes types, which takes a third of the start.
import _ctypes
import _sitebuiltins
import _thread
import builtins
import os
import resource
import struct
import sys
from _signal import ITIMER_PROF, SIGKILL, SIGPROF, SIGTERM, setitimer, signal

import library

NOBODY = 65534
INSIDE_ID = 1000
SCRATCH = "/scratch"
PROGRAM = SCRATCH + "/program.py"
BELOW = "/program"
"""The worker's root, where init is a judge."""
FILES = 256
"""Inodes of the scratch disk, and of a place of the library."""
STACK = 2 << 20
"""Bytes of address space of a thread's stack; libc's 8 MiB would leave room for few threads."""
UNWINDER = "libgcc_s.so.1"
"""What libc ends a thread by that still runs when a program ends."""
LARGEST_STACK = 64 << 20
"""What a thread gets that asks for more, as for a deep recursion: Python's own frames lie elsewhere, and the
depth of those of C is bounded."""

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 1 << 12
MS_REC = 1 << 14
MS_PRIVATE = 1 << 18
MNT_DETACH = 2
M_ARENA_MAX = -8
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_SET_NO_NEW_PRIVS = 38
CAPABILITY_VERSION_3 = 0x20080522


class Int(_ctypes._SimpleCData):
    _type_ = "i"


class Long(_ctypes._SimpleCData):
    _type_ = "L"


class Char(_ctypes._SimpleCData):
    _type_ = "c"


class Function(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = Int


class Libc:
    _handle = _ctypes.dlopen(None, 0)


def call(name, *args):
    """Calls a libc function that returns 0 on success; integers are passed as longs, as the kernel reads
    them."""
    args = [Long(arg) if isinstance(arg, int) else arg for arg in args]
    if Function((name, Libc))(*args) != 0:
        error = _ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")


def die_with_parent():
    call("prctl", PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)


def leave_root():
    """Becomes nobody: root is exempt from the process limit and owns host files."""
    os.chdir("/")
    if os.geteuid() != 0:
        return
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    # Without it /proc/self stays root's and the id maps cannot be written.
    call("prctl", PR_SET_DUMPABLE, 1, 0, 0, 0)


def enter_namespaces():
    ids = {"uid_map": os.geteuid(), "gid_map": os.getegid()}
    kinds = os.CLONE_NEWUSER | os.CLONE_NEWNS | os.CLONE_NEWPID
    kinds |= os.CLONE_NEWNET | os.CLONE_NEWIPC | os.CLONE_NEWUTS
    os.unshare(kinds)
    write("/proc/self/setgroups", b"deny")
    for name, outside in ids.items():
        write(f"/proc/self/{name}", f"{INSIDE_ID} {outside} 1".encode())


def write(path, content, flags=0):
    fd = os.open(path, os.O_WRONLY | flags, 0o600)
    content = memoryview(content)
    while content:
        content = content[os.write(fd, content) :]
    os.close(fd)


def mount_tmpfs(path, options, flags=MS_NOEXEC):
    call("mount", b"tmpfs", path.encode(), b"tmpfs", MS_NOSUID | MS_NODEV | flags, options.encode())


def build_root(disk_bytes, library_bytes, roots, stdin, program):
    """Makes a root with a scratch disk and a place for the library's extensions, and another such of each of
    ``roots`` but the first, with the same disk; unmounts the host's. ``stdin`` and ``program``: what files of
    these hold."""
    call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
    # Any folder of the host will do as a place to stand.
    mount_tmpfs("/tmp", f"size={len(stdin) + (1 << 16)},mode=755")
    for root in roots:
        for place in (SCRATCH, library.PLACE, "/dev"):
            os.makedirs(f"/tmp/jail{root}{place}")
        write(f"/tmp/jail{root}/dev/stdin", stdin, os.O_CREAT)
        write(f"/tmp/jail{root}/dev/null", b"", os.O_CREAT)
        call("mount", b"/dev/null", f"/tmp/jail{root}/dev/null".encode(), None, MS_BIND, None)
        flags = MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NOEXEC  # its times are the host's
        call("mount", None, f"/tmp/jail{root}/dev/null".encode(), None, flags, None)
        options = f"size={library_bytes},nr_inodes={FILES},mode=700"
        mount_tmpfs(f"/tmp/jail{root}{library.PLACE}", options, flags=0)
    mount_tmpfs("/tmp/jail" + SCRATCH, f"size={disk_bytes + len(program)},nr_inodes={FILES},mode=700")
    if program:
        write("/tmp/jail" + PROGRAM, program, os.O_CREAT)
    for root in roots[1:]:
        places = f"/tmp/jail{SCRATCH}".encode(), f"/tmp/jail{root}{SCRATCH}".encode()
        call("mount", *places, None, MS_BIND, None)
    flags = MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC
    call("mount", None, b"/tmp", None, flags, None)
    os.chdir("/tmp")
    call("pivot_root", b".", b".")  # the old root now lies on top of the new one
    call("umount2", b".", MNT_DETACH)
    os.chroot("jail")  # the kernel refuses nested user namespaces to a process whose root is not its mount's
    os.chdir(SCRATCH)


def share_one_heap():
    """Else libc reserves 64 MiB or more of the address space for each thread."""
    Function(("mallopt", Libc))(M_ARENA_MAX, 1)


def bound_stacks():
    set_size = _thread.stack_size
    set_size(STACK)
    _thread.stack_size = lambda size=0: set_size(min(size or STACK, LARGEST_STACK))


def set_limits(cpu_s, memory_bytes, file_bytes, processes, open_files):
    for kind, value in (
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_NOFILE, open_files),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))


def drop_privileges():
    call("capset", struct.pack("Ii", CAPABILITY_VERSION_3, 0), bytes(24))
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def filter_calls(program):
    """Lets the kernel answer the calls of calls.py alone; ``program``: struct sock_filter, one after
    another."""
    place = type("Place", (_ctypes.Array,), {"_type_": Char, "_length_": len(program)}).from_buffer_copy(
        program
    )
    rules = struct.pack("HP", len(program) // 8, _ctypes.addressof(place))
    call("prctl", PR_SET_SECCOMP, 2, rules, 0, 0)


def read_exactly(count, fd):
    parts = []
    while count > 0:
        parts.append(os.read(fd, count))
        assert parts[-1], "the program was cut short"
        count -= len(parts[-1])
    return b"".join(parts)


def run_program(status, given):
    program = read_exactly(os.fstat(given).st_size, given)
    os.close(given)
    os.write(status, b"ready")
    os.close(status)
    builtins.exit = builtins.quit = _sitebuiltins.Quitter("exit", "")
    sys.modules["__main__"] = main_module = type(sys)("__main__")
    main_module.__file__ = PROGRAM
    exec(compile(program, PROGRAM, "exec", dont_inherit=True), vars(main_module))  # noqa: S102  what all this is for


def run_answer(main, status, task, to_answer, to_judge, longest):
    for fd in (task, to_answer[1], to_judge[0]):
        os.close(fd)
    os.dup2(2, 1)  # verdicts are the judge's to write
    text = read_exactly(os.fstat(0).st_size, 0).decode()
    os.close(status)
    os.write(to_judge[1], b"r")
    main(to_answer[0], to_judge[1], longest, text)


def run_judge(main, worker, status, task, to_answer, to_judge, longest, cpu_s):
    for fd in (to_answer[0], to_judge[1]):
        os.close(fd)
    if os.read(to_judge[0], 1) != b"r":
        os._exit(1)
    signal(SIGPROF, lambda *_: os._exit(1))
    setitimer(ITIMER_PROF, cpu_s / 2)  # tests are cheap; what takes long is what the program gave them
    text = read_exactly(os.fstat(task).st_size, task).decode()
    os.write(status, b"ready")
    os.close(status)
    main(to_judge[0], to_answer[1], longest, text)
    os.kill(worker, SIGKILL)
    os.waitpid(worker, 0)  # so that its time is known to those who wait for us
    os._exit(0)


def launch(status, *root):
    """Returns in init only; the launcher waits for it, says what time it took, and exits as it did."""
    leave_root()
    die_with_parent()  # only now: a change of user cancels it
    enter_namespaces()
    init = os.fork()
    if init:
        signal(SIGTERM, lambda *_: os.kill(init, SIGKILL))
        ended = os.waitpid(init, 0)[1]  # returns when every process of the namespace is gone
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        os.write(status, f" {used.ru_utime + used.ru_stime}".encode())
        exit_as(ended)
    die_with_parent()
    os.setsid()  # kill(0, ...) would otherwise reach the process group of the host
    build_root(*root)


def exit_as(wait_status):
    code = os.waitstatus_to_exitcode(wait_status)
    os._exit(code if code >= 0 else 128 - code)


def main():
    parent, status, image, given, judged, *limits = map(int, sys.argv[1:])
    longest, disk_bytes, cpu_s, memory_bytes, file_bytes, processes, open_files = limits
    sys.argv = [PROGRAM]
    # While the files are in sight.
    sides = [__import__(side).main for side in ("answer", "judge")] if judged else []
    try:
        _ctypes.dlopen(UNWINDER, os.RTLD_NOW)
    except OSError:
        pass  # it is somewhere else here, and only some programs with threads will miss it
    try:
        if os.getppid() != parent:
            os._exit(1)
        modules = library.Library(image)
        files = [b"", b""] if sides else [os.pread(fd, os.fstat(fd).st_size, 0) for fd in (0, given)]
        launch(status, disk_bytes, len(modules.image), ["", BELOW] if sides else [""], *files)
        del files
        call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)
        pipes = [os.pipe() for _ in sides]
        worker = os.fork()
        if sides and not worker:
            os.chroot(BELOW)
            os.chdir(SCRATCH)
        drop_privileges()
        if worker and not sides:
            os.close(status)
            exit_as(os.waitpid(worker, 0)[1])
        share_one_heap()
        library.use(modules, *([] if worker else [""]))
        cpu_s_here = -(-cpu_s // 2) if sides and worker else cpu_s
        memory_bytes += len(modules.image)
        if not worker:
            bound_stacks()
            memory_bytes += STACK * processes
        set_limits(cpu_s_here, memory_bytes, file_bytes, processes, open_files)
        filter_calls(modules.filters[1 if worker else 0])
    except (OSError, AttributeError, KeyError, ValueError) as error:
        # The kernel refuses, libc or os lacks a call, the machine is unknown.
        trace = error.__traceback__
        while trace.tb_next:
            trace = trace.tb_next
        os.write(status, f"{trace.tb_frame.f_code.co_name}: {type(error).__name__}: {error}".encode())
        os._exit(1)
    if not sides:
        run_program(status, given)
    elif worker:
        run_judge(sides[1], worker, status, given, *pipes, longest, cpu_s)
    else:
        run_answer(sides[0], status, given, *pipes, longest)


main()
