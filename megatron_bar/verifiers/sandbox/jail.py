"""The inside of the sandbox: what an interpreter does when sandbox.py starts it; no trainer imports it.

Three processes. The launcher gives up root, enters new user, mount, pid, net, ipc and uts namespaces and
waits; init (pid 1) builds a root that has nothing but the standard library (read-only) and a small scratch
disk, gives up every capability and waits, or, where there are tests to judge, is their judge (judge.py); the
worker runs the program. When the worker ends, init ends (a judge ends when it is done), and the kernel kills
whatever else is left. There is no exec between them, so no interpreter, shell, /proc, /dev or host file is
needed inside, and none is there. No process of them can start another, or open another's memory or files.

Arguments: method ("namespaces", or "bwrap" when bubblewrap has built the namespaces and the root), the
parent's pid, the fd on which "ready" or the reason of a failure is reported, the fd of the judge's task or
-1, and the limits. Standard input: without a judge the program's length, the program, its input; else the
answer's blocks (answer.py).

With bubblewrap the worker is a fresh interpreter, so the interpreter and the system's libraries are visible
too, read-only; a judge can be ended by the program, which then has no verdict.

Left out: cgroups (not available without privileges), so memory is bounded by address space x processes plus
the scratch disk.
"""

# Not the public modules: signal loads enum, ctypes makes types, which takes a third of the start.
import _ctypes
import _sitebuiltins
import builtins
import os
import resource
import struct
import sys
from _signal import ITIMER_PROF, SIG_IGN, SIGINT, SIGKILL, SIGPROF, SIGTERM, setitimer, signal

NOBODY = 65534
INSIDE_ID = 1000
SCRATCH = "/scratch"
FILES = 256
"""Inodes of the scratch disk."""

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_NOATIME = 1 << 10
MS_NODIRATIME = 1 << 11
MS_BIND = 1 << 12
MS_REC = 1 << 14
MS_PRIVATE = 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
CLONE_THREAD = 0x10000
CAPABILITY_VERSION_3 = 0x20080522

# Kernel services that hand out memory outside the rlimits, reach other processes or widen what the kernel
# exposes; and new processes, each of which would have limits of its own. name: number on (x86_64, aarch64)
REFUSED_CALLS = {
    "fork": (57, None), "vfork": (58, None),
    "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    "memfd_create": (319, 279), "memfd_secret": (447, 447),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "fsopen": (430, 430),
    "move_mount": (429, 429), "open_tree": (428, 428), "mount_setattr": (442, 442),
    "unshare": (272, 97), "setns": (308, 268),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "open_by_handle_at": (304, 265),
    "bpf": (321, 280), "userfaultfd": (323, 282), "perf_event_open": (298, 241), "io_uring_setup": (425, 425),
}  # fmt: skip
ARCHITECTURES = {"x86_64": (0, 0xC000003E, 56), "aarch64": (1, 0xC00000B7, 220)}
"""Column of REFUSED_CALLS, AUDIT_ARCH, number of clone."""
CLONE3 = 435


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
    """Becomes nobody: root is exempt from the process limit and owns host files. The library stays in reach
    as "." only."""
    os.chdir(os.path.dirname(os.__file__))
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
    write("/proc/self/setgroups", "deny")
    for name, outside in ids.items():
        write(f"/proc/self/{name}", f"{INSIDE_ID} {outside} 1")


def write(path, text):
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, text.encode())
    os.close(fd)


def mount_tmpfs(path, options):
    call("mount", b"tmpfs", path.encode(), b"tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, options.encode())


def remount_read_only(path, flags):
    call("mount", None, path.encode(), None, MS_REMOUNT | MS_BIND | MS_RDONLY | flags, None)


def build_root(disk_bytes):
    """Makes a root with the standard library (the working directory) and a scratch disk; unmounts the
    host's."""
    library = os.path.dirname(os.__file__)
    call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
    mount_tmpfs("/tmp", "size=64k,mode=755")  # any folder of the host will do as a place to stand
    inside = "/tmp/jail" + library
    os.makedirs(inside)
    os.mkdir("/tmp/jail" + SCRATCH)
    call("mount", b".", inside.encode(), None, MS_BIND | MS_REC, None)
    # Flags the host set are locked in a user namespace: a remount has to repeat them.
    kept = os.statvfs(inside).f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME | MS_NODIRATIME)
    remount_read_only(inside, MS_NOSUID | MS_NODEV | kept)
    if os.path.isdir(inside + "/site-packages"):
        mount_tmpfs(inside + "/site-packages", "ro,size=4k")
    mount_tmpfs("/tmp/jail" + SCRATCH, f"size={disk_bytes},nr_inodes={FILES},mode=700")
    remount_read_only("/tmp", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    os.chdir("/tmp")
    call("pivot_root", b".", b".")  # the old root now lies on top of the new one
    call("umount2", b".", MNT_DETACH)
    os.chroot("jail")  # the kernel refuses nested user namespaces to a process whose root is not its mount's
    os.chdir(SCRATCH)


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


def refuse_calls():
    """Installs a seccomp filter: the listed calls and new processes fail with EPERM, another architecture's
    numbering kills."""
    column, audit_arch, clone = ARCHITECTURES[os.uname().machine]
    numbers = [row[column] for row in REFUSED_CALLS.values() if row[column] is not None]
    load = 0x20
    equal = 0x15
    at_least = 0x35
    any_bit = 0x45
    give = 0x06
    kill = 0x80000000
    eperm = 0x00050001
    enosys = 0x00050026
    allow = 0x7FFF0000
    # (operation, how many rules to skip if true, if false, operand); loads are from struct seccomp_data
    rules = [(load, 0, 0, 4), (equal, 1, 0, audit_arch), (give, 0, 0, kill), (load, 0, 0, 0)]
    # The flags of clone3 lie in memory, out of a filter's sight; libc falls back to clone.
    rules += [(equal, 0, 1, CLONE3), (give, 0, 0, enosys)]
    rules.append((at_least, len(numbers) + 4, 0, 0x40000000))  # x86_64's second numbering (x32)
    rules += [(equal, len(numbers) + 3 - i, 0, number) for i, number in enumerate(numbers)]
    rules += [(equal, 0, 2, clone), (load, 0, 0, 16), (any_bit, 0, 1, CLONE_THREAD)]
    rules += [(give, 0, 0, allow), (give, 0, 0, eperm)]
    program = b"".join(struct.pack("HBBI", *rule) for rule in rules)
    place = type("Place", (_ctypes.Array,), {"_type_": Char, "_length_": len(program)}).from_buffer_copy(
        program
    )
    call("prctl", PR_SET_SECCOMP, 2, struct.pack("HP", len(rules), _ctypes.addressof(place)), 0, 0)


def read_exactly(count, fd=0):
    parts = []
    while count > 0:
        parts.append(os.read(fd, count))
        assert parts[-1], "the program was cut short"
        count -= len(parts[-1])
    return b"".join(parts)


def run_program(status):
    program = read_exactly(int.from_bytes(read_exactly(8), "little"))
    os.write(status, b"ready")
    os.close(status)
    builtins.exit = builtins.quit = _sitebuiltins.Quitter("exit", "")
    sys.modules["__main__"] = main_module = type(sys)("__main__")
    exec(compile(program, "<program>", "exec", dont_inherit=True), vars(main_module))  # noqa: S102  what all this is for


def run_answer(main, status, task, to_answer, to_judge, longest):
    for fd in (task, to_answer[1], to_judge[0]):
        os.close(fd)
    os.dup2(2, 1)  # verdicts are the judge's to write
    text = read_exactly(os.fstat(0).st_size).decode()
    os.close(status)
    os.write(to_judge[1], b"r")
    main(to_answer[0], to_judge[1], longest, text)


def run_judge(main, worker, status, task, to_answer, to_judge, longest, cpu_s):
    for fd in (to_answer[0], to_judge[1]):
        os.close(fd)
    if os.read(to_judge[0], 1) != b"r":
        os._exit(1)
    signal(SIGINT, SIG_IGN)  # the only other signal that the program could send to the first process
    signal(SIGPROF, lambda *_: os._exit(1))
    setitimer(ITIMER_PROF, cpu_s / 2)  # tests are cheap; what takes long is what the program gave them
    text = read_exactly(os.fstat(task).st_size, task).decode()
    os.write(status, b"ready")
    os.close(status)
    main(to_judge[0], to_answer[1], longest, text)
    os.kill(worker, SIGKILL)
    os.waitpid(worker, 0)  # so that its time is known to those who wait for us
    os._exit(0)


def exit_as(wait_status):
    code = os.waitstatus_to_exitcode(wait_status)
    os._exit(code if code >= 0 else 128 - code)


def launch(disk_bytes):
    """Returns in init only; the launcher waits for it and exits as it did."""
    leave_root()
    die_with_parent()  # only now: a change of user cancels it
    enter_namespaces()
    init = os.fork()
    if init:
        signal(SIGTERM, lambda *_: os.kill(init, SIGKILL))
        exit_as(os.waitpid(init, 0)[1])  # returns when every process of the namespace is gone
    die_with_parent()
    os.setsid()  # kill(0, ...) would otherwise reach the process group of the host
    build_root(disk_bytes)


def reap(command):
    """Runs bubblewrap and, as it does not, waits for the last of its processes."""
    call("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    die_with_parent()
    child = os.fork()
    if child == 0:
        os.execv(command[0], command)
    signal(SIGTERM, lambda *_: os.kill(child, SIGKILL))
    ended = os.waitpid(child, 0)[1]
    while True:
        try:
            os.wait()
        except ChildProcessError:
            exit_as(ended)


def enter(method, parent, disk_bytes):
    """Returns inside, in a process whose memory and files no other can open."""
    if method == "namespaces":
        if os.getppid() != parent:
            os._exit(1)
        launch(disk_bytes)
    drop_privileges()
    call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)


def main():
    if sys.argv[1] == "reap":
        reap(sys.argv[2:])
    method, (parent, status, task, longest, disk_bytes, *limits) = sys.argv[1], map(int, sys.argv[2:])
    sys.argv = ["<program>"]
    # While the files are in sight.
    sides = [__import__(side).main for side in ("answer", "judge")] if task >= 0 else []
    try:
        enter(method, parent, disk_bytes)
        pipes = [os.pipe() for _ in sides]
        worker = os.fork() if sides or method == "namespaces" else 0
        if worker and not sides:
            os.close(status)
            exit_as(os.waitpid(worker, 0)[1])
        set_limits(*limits)
        refuse_calls()
    except (OSError, AttributeError, KeyError) as error:
        # The kernel refuses, libc or os lacks a call, the machine is unknown.
        trace = error.__traceback__
        while trace.tb_next:
            trace = trace.tb_next
        os.write(status, f"{trace.tb_frame.f_code.co_name}: {type(error).__name__}: {error}".encode())
        os._exit(1)
    if not sides:
        run_program(status)
    elif worker:
        run_judge(sides[1], worker, status, task, *pipes, longest, limits[0])
    else:
        run_answer(sides[0], status, task, *pipes, longest)


main()
