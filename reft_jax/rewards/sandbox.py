"""The layers of the operating system between a generated program and the machine, on Linux; used by program_server.py.

Each function sets up one layer or raises OSError, which says why the layer is not to be had. What a layer is for stands
in LAYERS. Namespaces are entered before the server starts, Landlock, capabilities and the system-call filter once in the
server, from which every child inherits them; only the second filter, which forbids what the server itself needs, is
loaded by each child. Imports little: the server's memory is what a fork costs. The caller only reads LAYERS.
"""

import ctypes
import errno
import os
import select
import sys

LAYERS = {
    "hook": "audit hook: names and refuses what a program reaches for",
    "seccomp": "system calls: all but a list are denied (seccomp)",
    "landlock": "files: only the interpreter's own can be read (Landlock)",
    "user": "user namespace: no rights outside",
    "net": "network namespace: no network",
    "pid": "process namespace: no other processes to be seen",
    "ipc": "ipc namespace: no shared memory of others",
    "privileges": "no_new_privs: nothing started could gain rights",
    "capabilities": "no capabilities, also for root",
    "memory": "limit on address space",
    "cpu": "limit on processor time",
    "processes": "limit on processes: none (root is exempt: seccomp sees to it)",
    "open_files": "limit on open files: 64",
    "file_size": "limit on written files: empty",
    "core": "limit on core dumps: none",
    "environment": "no environment variables",
    "descriptors": "no inherited file descriptors",
    "clock": "the server kills at the deadline",
}
NAMESPACES = {"user": 0x10000000, "net": 0x40000000, "pid": 0x20000000, "ipc": 0x08000000}

libc = ctypes.CDLL(None, use_errno=True)
PID_MARK = 0x2BADC0DE  # in the second filter, where the child's own process id goes


def call(result: int) -> int:
    """The result of a C function; OSError if it is negative."""
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


# ---- copies ----------------------------------------------------------------------------------------------------------


def fix_addresses() -> None:
    """Programs that are started from here have the same addresses in every run, where the system allows that."""
    libc.personality(0x0040000)  # ADDR_NO_RANDOMIZE


class Mould:
    """A process from which others are cast: a copy of this one, whose memory does not change, while this one's does.

    So all casts begin with the same memory, and what they allocate lies at the same addresses. The mould shares this process's descriptors, and
    casts are this process's children. Neither allocates anything in its loop but numbers that are gone before the next round.
    """

    CLONE = {"x86_64": 56, "aarch64": 220}.get(os.uname().machine) if sys.platform == "linux" else None
    SIGCHLD, SHARED_FILES, SIBLING, TELL_PID = 17, 0x400, 0x8000, 0x100000

    def start(self) -> int | None:
        """Makes the mould; its process id here, None in each cast, which finds its two descriptors in `request_fd` and `result_fd`."""
        asked, self._asking = os.pipe()
        self._told, telling = os.pipe()
        self._poller = select.poll()
        self._poller.register(self._told, select.POLLIN)
        clone = ctypes.PyDLL(None).syscall
        question, pid = (ctypes.c_int * 2)(), ctypes.c_int()
        number, nothing, where = ctypes.c_long(self.CLONE), ctypes.c_long(0), ctypes.byref(pid)
        own, flags = map(ctypes.c_long, (self.SHARED_FILES | self.SIGCHLD, self.SIBLING | self.TELL_PID | self.SIGCHLD))
        read, write = ctypes.PyDLL(None).read, ctypes.PyDLL(None).write
        self.pid = call(clone(number, own, nothing, nothing, nothing, nothing))
        if self.pid:
            return self.pid
        libc.prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG
        while read(asked, question, 8) == 8:
            pid.value = 0
            if clone(number, flags, nothing, where, nothing, nothing) == 0:
                self.request_fd, self.result_fd = question
                return None
            write(telling, where, 4)
        os._exit(0)

    def cast(self, request_fd: int, result_fd: int) -> int:
        """The process id of a new cast, which goes on where `start` returns."""
        os.write(self._asking, request_fd.to_bytes(4, sys.byteorder) + result_fd.to_bytes(4, sys.byteorder))
        while not self._poller.poll(1000):  # both ends of the pipe are open here too: it would never end
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                os._exit(1)
        pid = int.from_bytes(os.read(self._told, 4), sys.byteorder)
        if pid == 0:
            raise BlockingIOError("the system makes no more")
        return pid


# ---- namespaces ------------------------------------------------------------------------------------------------------


def enter_namespace(name: str) -> None:
    """Moves this process (for "pid": its coming children) into a new namespace of that kind; ids stay what they were."""
    uid, gid = os.getuid(), os.getgid()
    call(libc.unshare(NAMESPACES[name]))
    if name == "user":
        for path, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{path}", "w") as file:
                file.write(text)


# ---- privileges ------------------------------------------------------------------------------------------------------


def drop_capabilities() -> None:
    """Gives up all capabilities for good, so that root is a user like others."""
    number = 0
    while libc.prctl(23, number, 0, 0, 0) >= 0:  # PR_CAPBSET_READ: up to the last that the kernel knows
        libc.prctl(24, number, 0, 0, 0)  # PR_CAPBSET_DROP; not allowed to a normal user, who has none to drop
        number += 1
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    call(libc.capset(header, (ctypes.c_uint32 * 6)()))


def no_new_privileges() -> None:
    call(libc.prctl(38, 1, 0, 0, 0))


# ---- Landlock --------------------------------------------------------------------------------------------------------


class _Ruleset(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class _PathRule(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = [("allowed", ctypes.c_uint64), ("fd", ctypes.c_int32)]


READ_FILE, READ_DIR = 1 << 2, 1 << 3
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")
ZONES = "/usr/share/zoneinfo"


def restrict_files(folders: list[str]) -> None:
    """Landlock: from here on files below `folders` and the system's libraries can be read, nothing else be opened."""
    abi = call(libc.syscall(444, None, 0, 1))
    handled = (1 << (13 if abi == 1 else 14 if abi == 2 else 15 if abi < 5 else 16)) - 1
    ruleset = _Ruleset(handled, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)  # TCP; abstract sockets and signals
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    fd = call(libc.syscall(444, ctypes.byref(ruleset), ctypes.c_size_t(size), 0))
    for path in (*folders, *LIBRARIES):
        try:
            parent = os.open(path, os.O_PATH)
        except OSError:
            continue  # not on this system
        allowed = READ_FILE | READ_DIR if os.path.isdir(path) else READ_FILE
        call(libc.syscall(445, fd, 1, ctypes.byref(_PathRule(allowed, parent)), 0))
        os.close(parent)
    call(libc.syscall(446, fd, 0))
    os.close(fd)


# ---- system calls ----------------------------------------------------------------------------------------------------

# What Python needs to compute and to import, and what the server needs for its children. All else does not exist
# (ENOSYS, on which libraries fall back to older calls), so that a new libc cannot break this.
ALLOWED = """
read readv write writev pread64 close close_range lseek fstat newfstatat stat lstat statx access faccessat faccessat2
readlink readlinkat getcwd getdents64 getdents statfs fstatfs fadvise64 umask mmap munmap mprotect mremap madvise brk
futex set_robust_list get_robust_list rseq membarrier rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending
rt_sigtimedwait sigaltstack alarm setitimer getitimer pause clock_gettime clock_getres clock_nanosleep nanosleep
gettimeofday time times getpid gettid getppid getuid geteuid getgid getegid getgroups getresuid getresgid getpgrp
getpgid getsid uname sysinfo getrusage getrlimit getrandom sched_yield sched_getaffinity sched_getparam
sched_getscheduler getpriority getcpu poll ppoll select pselect6 epoll_create1 epoll_ctl epoll_wait epoll_pwait pipe
pipe2 dup dup2 dup3 fcntl exit exit_group restart_syscall arch_prctl
clone wait4 waitid kill tgkill setpgid prctl seccomp setpriority setrlimit prlimit64
""".split()
# What only a program that means harm calls: it ends at once and is reported as blocked.
REFUSED = """
socket socketpair connect accept accept4 bind listen sendto sendmsg sendmmsg recvfrom recvmsg execve execveat fork vfork
ptrace process_vm_readv process_vm_writev mount umount2 pivot_root chroot unshare setns open_by_handle_at creat unlink
unlinkat rename renameat renameat2 mkdir mkdirat rmdir mknod mknodat link linkat symlink symlinkat truncate ftruncate
fallocate chmod fchmod fchmodat chown fchown lchown fchownat utime utimes utimensat futimesat setxattr lsetxattr
fsetxattr removexattr tkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_open pidfd_send_signal pidfd_getfd io_uring_setup
io_uring_enter io_uring_register bpf userfaultfd perf_event_open keyctl add_key request_key init_module finit_module
delete_module kexec_load reboot swapon swapoff sethostname setdomainname setuid setgid setreuid setregid setresuid
setresgid setgroups capset personality syslog acct settimeofday clock_settime adjtimex memfd_create memfd_secret shmget
shmat msgget semget mq_open fanotify_init inotify_init inotify_init1 move_mount fsopen fsmount open_tree kcmp ioperm iopl
modify_ldt splice tee vmsplice sendfile copy_file_range pwrite64 pwritev setsid
""".split()
# Of ALLOWED, what only the server may do.
SERVER_ONLY = "fork vfork kill setpgid seccomp setpriority setrlimit".split()
WRITING = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC
SIGSYS = 31


def build_filters() -> tuple[bytes, bytes]:
    """(the server's and every child's filter, the one that each child adds) as kernel programs; ImportError, OSError."""
    import pyseccomp as s

    def rule(filter_, action, name, *args):
        try:
            filter_.add_rule(action, name, *args)
        except (OSError, ValueError, RuntimeError) as error:  # a call that this processor or library does not know
            if name in ("read", "openat", "clone", "execve", "socket"):
                raise OSError(f"{name}: {error}") from error

    base = s.SyscallFilter(s.ERRNO(errno.ENOSYS))
    for name in ALLOWED:
        rule(base, s.ALLOW, name)
    for name in REFUSED:
        rule(base, s.TRAP, name)
    for name, place in (("open", 1), ("openat", 2)):
        rule(base, s.ALLOW, name, s.Arg(place, s.MASKED_EQ, WRITING, 0))
        for bit in (1, 2, os.O_CREAT, os.O_TRUNC):
            rule(base, s.TRAP, name, s.Arg(place, s.MASKED_EQ, bit, bit))
    rule(base, s.ALLOW, "ioctl", s.Arg(1, s.EQ, 0x5401))  # TCGETS: isatty()
    rule(base, s.ALLOW, "ioctl", s.Arg(1, s.EQ, 0x5451))  # FIOCLEX

    child = s.SyscallFilter(s.ALLOW)
    for name in SERVER_ONLY:
        rule(child, s.TRAP, name)
    rule(child, s.ERRNO(errno.ENOSYS), "getrandom")  # C libraries would draw other numbers in each run
    thread = 0x10000  # CLONE_THREAD: an error that Python understands
    rule(child, s.ERRNO(errno.EAGAIN), "clone", s.Arg(0, s.MASKED_EQ, thread, thread))
    rule(child, s.TRAP, "clone", s.Arg(0, s.MASKED_EQ, thread, 0))
    rule(child, s.TRAP, "prlimit64", s.Arg(2, s.NE, 0))
    rule(child, s.ERRNO(errno.EPERM), "prctl")
    rule(child, s.TRAP, "tgkill", s.Arg(0, s.NE, PID_MARK))  # raise() and abort() reach oneself
    return _export(base), _export(child)


def _export(filter_) -> bytes:
    reader, writer = os.pipe()  # a few thousand bytes: they fit into the pipe
    with open(reader, "rb") as source, open(writer, "wb") as sink:
        filter_.export_bpf(sink)
        sink.close()
        return source.read()


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]


class Filter:
    """A system-call filter that is ready to be loaded. `load(pid)` puts the process id where PID_MARK stands."""

    def __init__(self, code: bytes):
        self._code = ctypes.create_string_buffer(code, len(code))
        self._place = code.find(PID_MARK.to_bytes(4, sys.byteorder))
        self._program = _Program(len(code) // 8, ctypes.addressof(self._code))
        self._pointer = ctypes.byref(self._program)

    def load(self, pid: int = 0) -> None:
        if self._place >= 0:
            self._code[self._place : self._place + 4] = pid.to_bytes(4, sys.byteorder)
        call(libc.prctl(22, 2, self._pointer, 0, 0))  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
