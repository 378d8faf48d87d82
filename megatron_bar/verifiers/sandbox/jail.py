"""The inside of the sandbox: what an interpreter does when sandbox.py starts it; no trainer imports it.

Three processes. The launcher gives up root, enters new user, mount, pid, net, ipc and uts namespaces and
waits; init (pid 1) builds a root that has nothing but the standard library (read-only) and a small scratch
disk, gives up every capability and waits; the worker runs the program. When the worker ends, init ends, and
the kernel kills whatever else the program started. There is no exec between them, so no interpreter, shell,
/proc, /dev or host file is needed inside, and none is there.

Arguments: method ("namespaces", or "bwrap" when bubblewrap has built the namespaces and the root), the
parent's pid, the fd on which "ready" or the reason of a failure is reported, and the limits. Standard input:
the program's length, the program, its input.

With bubblewrap the worker is a fresh interpreter, so the interpreter and the system's libraries are visible
too, read-only.

Left out: cgroups (not available without privileges), so memory is bounded by address space x processes plus
the scratch disk.
"""

import ctypes
import os
import resource
import struct
import sys
from _signal import SIGKILL, SIGTERM, signal  # the public module would load enum, a quarter of the start time

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
CLONE_NEWUSER = 0x10000000
CAPABILITY_VERSION_3 = 0x20080522

# Kernel services that hand out memory outside the rlimits, reach other processes or widen what the kernel
# exposes. name: number on (x86_64, aarch64)
REFUSED_CALLS = {
    "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    "memfd_create": (319, 279), "memfd_secret": (447, 447),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "fsopen": (430, 430),
    "move_mount": (429, 429), "open_tree": (428, 428), "mount_setattr": (442, 442),
    "unshare": (272, 97), "setns": (308, 268),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "open_by_handle_at": (304, 265),
    "bpf": (321, 280), "userfaultfd": (323, 282), "perf_event_open": (298, 241), "io_uring_setup": (425, 425),
}  # fmt: skip
ARCHITECTURES = {"x86_64": (0, 0xC000003E, 56), "aarch64": (1, 0xC00000B7, 220)}
"""Column of REFUSED_CALLS, AUDIT_ARCH, number of clone."""
CLONE3 = 435

libc = ctypes.CDLL(None, use_errno=True)


def call(name, *args):
    """Calls a libc function that returns 0 on success; integers are passed as longs, as the kernel reads
    them."""
    args = [ctypes.c_ulong(arg) if isinstance(arg, int) else arg for arg in args]
    if getattr(libc, name)(*args) != 0:
        error = ctypes.get_errno()
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
    """Installs a seccomp filter: the listed calls and new user namespaces fail with EPERM, another
    architecture's numbering kills."""
    column, audit_arch, clone = ARCHITECTURES[os.uname().machine]
    numbers = [row[column] for row in REFUSED_CALLS.values()]
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
    rules += [(equal, 0, 2, clone), (load, 0, 0, 16), (any_bit, 1, 0, CLONE_NEWUSER)]
    rules += [(give, 0, 0, allow), (give, 0, 0, eperm)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
    header = ctypes.create_string_buffer(struct.pack("HP", len(rules), ctypes.addressof(program)))
    call("prctl", PR_SET_SECCOMP, 2, header, 0, 0)


def read_exactly(count):
    parts = []
    while count > 0:
        parts.append(os.read(0, count))
        assert parts[-1], "the program was cut short"
        count -= len(parts[-1])
    return b"".join(parts)


def run_program(status):
    program = read_exactly(int.from_bytes(read_exactly(8), "little"))
    os.write(status, b"ready")
    os.close(status)
    sys.argv = ["<program>"]
    exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})  # noqa: S102  what all this is for


def exit_as(wait_status):
    code = os.waitstatus_to_exitcode(wait_status)
    os._exit(code if code >= 0 else 128 - code)


def launch(disk_bytes):
    """Returns in the worker only; the launcher and init wait for it and exit as it did."""
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
    drop_privileges()
    worker = os.fork()
    while worker:
        pid, wait_status = os.wait()  # reaps the program's orphans too
        if pid == worker:
            exit_as(wait_status)


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


def main():
    if sys.argv[1] == "reap":
        reap(sys.argv[2:])
    method, parent, status, disk_bytes, *limits = sys.argv[1], *map(int, sys.argv[2:])
    try:
        if method == "bwrap":
            drop_privileges()
        elif os.getppid() != parent:
            os._exit(1)
        else:
            launch(disk_bytes)
        set_limits(*limits)
        refuse_calls()
    except (OSError, AttributeError, KeyError) as error:
        # The kernel refuses, libc or os lacks a call, the machine is unknown.
        trace = error.__traceback__
        while trace.tb_next:
            trace = trace.tb_next
        os.write(status, f"{trace.tb_frame.f_code.co_name}: {type(error).__name__}: {error}".encode())
        os._exit(1)
    run_program(status)


main()
