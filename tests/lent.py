"""Does to a file, through descriptors that were opened to read it, whatever changes an inode. Used by tests/scripts/lent.sh.

lent.py LOWER SHOWN [KIND...] prints a line for each kind of change: its name, what it returned, and what the tree at SHOWN then tells of the file, by
its path and by the descriptor. The files are made in LOWER before (with --make), one for each change, so that one change does not cover for another.
The same lines are to come from a view and from the kernel's overlayfs."""
import array, ctypes, errno, fcntl, os, re, socket, stat, struct, sys

libc = ctypes.CDLL(None, use_errno=True)
EMPTY, FOLLOW, CWD = 0x1000, 0x400, -100
U64 = (1 << 64) - 1


def call(number, *args):
    ctypes.set_errno(0)
    words = [a if isinstance(a, (ctypes.Array, bytes)) or a is None else ctypes.c_long(a) for a in args]
    result = libc.syscall(ctypes.c_long(number), *words)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def link(fd):
    return b"/proc/self/fd/%d" % fd


def ioctl(request, value):
    return lambda fd, path: fcntl.ioctl(fd, request, value)


def through(flags, then=lambda fd: None):
    def change(fd, path):
        again = os.open(link(fd), flags)
        try:
            then(again)
        finally:
            os.close(again)
    return change


def passed(fd, path):
    """Another process gets it in a message, and changes the file."""
    one, other = socket.socketpair()
    child = os.fork()
    if child == 0:
        _, rights, _, _ = other.recvmsg(1, 64)
        try:
            os.fchmod(struct.unpack("i", rights[0][2][:4])[0], 0o640)
            os._exit(0)
        except OSError as error:
            os._exit(error.errno)
    one.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise OSError(code, os.strerror(code))


def inherited(fd, path):
    os.set_inheritable(fd, True)
    code = os.spawnl(os.P_WAIT, "/bin/sh", "sh", "-c", f"chmod 640 /proc/self/fd/{fd}")
    if code:
        raise OSError(errno.EIO, "chmod")


def of_parent(fd, path):
    child = os.fork()
    if child == 0:
        try:
            os.chmod(b"/proc/%d/fd/%d" % (os.getppid(), fd), 0o640)
            os._exit(0)
        except OSError as error:
            os._exit(error.errno)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise OSError(code, os.strerror(code))


def executed(fd, path):
    child = os.fork()
    if child == 0:
        try:
            os.execve(fd, ["true"], {})
        except OSError as error:
            os._exit(error.errno)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise OSError(code, os.strerror(code))


def mapped(fd, path):
    import mmap
    mmap.mmap(fd, 4, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)


def map_and_protect(fd, path):
    import mmap
    held = mmap.mmap(fd, 4, mmap.MAP_SHARED, mmap.PROT_READ)
    address = ctypes.addressof(ctypes.c_char.from_buffer_copy(held[:1]))
    for line in open("/proc/self/maps"):
        if line.rstrip().endswith(os.path.basename(os.fsdecode(path))):
            address = int(line.split("-")[0], 16)
            return call(10, address, 4096, 3)
    raise OSError(errno.ENOENT, "no mapping")


def renamed(fd, path):
    os.rename(path, path + b".new")
    try:
        os.fchmod(fd, 0o640)
    finally:
        os.rename(path + b".new", path)


def removed(fd, path):
    """The name is gone: the change is for the file that is still open."""
    os.unlink(path)
    try:
        os.fchmod(fd, 0o640)
    finally:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))


def replaced(fd, path):
    with open(path + b".tmp", "w") as new:
        new.write("new")
    os.rename(path + b".tmp", path)
    os.fchmod(fd, 0o640)


def copied_before(fd, path):
    os.chmod(path, 0o600)
    os.fchmod(fd, 0o640)


def deduped(fd, path):
    other = os.open(path, os.O_RDONLY)
    request = bytearray(struct.pack("QQHHI", 0, 4096, 1, 0, 0) + struct.pack("qQQiI", other, 0, 0, 0, 0))
    try:
        fcntl.ioctl(fd, 0xC0189436, request)
    finally:
        os.close(other)
    status = struct.unpack("i", request[48:52])[0]
    if status < 0:
        raise OSError(-status, os.strerror(-status))


def handle(fd, path):
    box = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + bytes(128))
    where = ctypes.create_string_buffer(4)
    call(303, fd, b"", box, where, EMPTY)
    raise OSError(errno.EOPNOTSUPP, "a handle was given")


def flags_of(fd):
    return struct.unpack("Q", fcntl.ioctl(fd, 0x80086601, bytes(8)))[0]


def set_flags(fd, path):
    """chattr +d"""
    fcntl.ioctl(fd, 0x40086602, struct.pack("Q", flags_of(fd) | 0x40))


def is_not_dumped(place):
    try:
        fd = os.open(place, os.O_RDONLY) if isinstance(place, bytes) else os.dup(place)
        try:
            return flags_of(fd) & 0x40 != 0
        finally:
            os.close(fd)
    except OSError:
        return "-"


times = ctypes.create_string_buffer(struct.pack("qqqq", 1, 0, 2, 0))
attributes = ctypes.create_string_buffer(struct.pack("QIII", 0, 0, 0, 0) + bytes(8))
xattr_args = ctypes.create_string_buffer(struct.pack("QII", 0, 0, 0))
CHANGES = {
    "fchmod": lambda fd, path: os.fchmod(fd, 0o640),
    "fchown": lambda fd, path: os.fchown(fd, -1, os.getgid()),
    "fchown-other": lambda fd, path: os.fchown(fd, 7, 8),
    "fchmodat2": lambda fd, path: call(452, fd, b"", 0o640, EMPTY),
    "fchownat": lambda fd, path: call(260, fd, b"", -1, os.getgid(), EMPTY),
    "futimens": lambda fd, path: call(280, fd, None, times, 0),
    "utimensat": lambda fd, path: call(280, fd, b"", times, EMPTY),
    "futimes": lambda fd, path: call(261, fd, None, times),
    "fsetxattr": lambda fd, path: os.setxattr(fd, "user.k", b"v"),
    "fremovexattr": lambda fd, path: os.removexattr(fd, "user.there"),
    "setxattr": lambda fd, path: os.setxattr(link(fd), "user.k", b"v"),
    "removexattr": lambda fd, path: os.removexattr(link(fd), "user.there"),
    "linkat": lambda fd, path: call(265, CWD, link(fd), CWD, path + b".link", FOLLOW),
    "linkat-empty": lambda fd, path: call(265, fd, b"", CWD, path + b".link", EMPTY),
    "chmod": lambda fd, path: os.chmod(link(fd), 0o640),
    "chmod-dev-fd": lambda fd, path: os.chmod(b"/dev/fd/%d" % fd, 0o640),
    "chmod-thread": lambda fd, path: os.chmod(b"/proc/thread-self/fd/%d" % fd, 0o640),
    "chown": lambda fd, path: os.chown(link(fd), -1, os.getgid()),
    "utime": lambda fd, path: os.utime(link(fd), (1, 2)),
    "truncate": lambda fd, path: os.truncate(link(fd), 1),
    "open-write": through(os.O_WRONLY, lambda fd: os.write(fd, b"NEW")),
    "open-both": through(os.O_RDWR, lambda fd: os.write(fd, b"NEW")),
    "open-truncate": through(os.O_WRONLY | os.O_TRUNC),
    "open-read-truncate": through(os.O_RDONLY | os.O_TRUNC),
    "open-append": through(os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, b"more")),
    "open-again": through(os.O_RDONLY, lambda fd: os.fchmod(fd, 0o640)),
    "open-path": through(os.O_PATH, lambda fd: os.chmod(link(fd), 0o640)),
    "of-parent": of_parent,
    "passed": passed,
    "inherited": inherited,
    "duplicate": lambda fd, path: os.fchmod(os.dup(fd), 0o640),
    "renamed": renamed,
    "removed": removed,
    "replaced": replaced,
    "copied-before": copied_before,
    "write": lambda fd, path: os.write(fd, b"NEW"),
    "ftruncate": lambda fd, path: os.ftruncate(fd, 1),
    "fallocate": lambda fd, path: os.posix_fallocate(fd, 0, 8192),
    "punch": lambda fd, path: call(285, fd, 3, 0, 4096),
    "copy_file_range": lambda fd, path: os.copy_file_range(fd, fd, 4, 0, 100),
    "sendfile": lambda fd, path: os.sendfile(fd, os.open("/dev/zero", os.O_RDONLY), None, 3),
    "mmap": mapped,
    "mprotect": map_and_protect,
    "execveat": executed,
    "flags": set_flags,
    "signal": lambda fd, path: (fcntl.fcntl(fd, 10, 0), os.fchmod(fd, 0o640)),
    "get-signal": lambda fd, path: os.fchmod(fd, 0o640 + fcntl.fcntl(fd, 11)),
}
# What a view has and the kernel that is asked for the right answer may not have yet: fchmodat2 is of Linux 6.6, and without
# CAP_DAC_READ_SEARCH a name by an empty path of 6.10.
release = tuple(int(part) for part in re.match(r"(\d+)\.(\d+)", os.uname().release).groups())
for since, change in {(6, 6): "fchmodat2", (6, 10): "linkat-empty"}.items():
    if release < since:
        del CHANGES[change]
# What drivers may refuse, and what a view refuses where overlayfs has it: the file below is as it was in any case.
REFUSED = {
    "setxattrat": lambda fd, path: call(463, fd, b"", EMPTY, b"user.k", xattr_args, 16),
    "removexattrat": lambda fd, path: call(466, fd, b"", EMPTY, b"user.there"),
    "file_setattr": lambda fd, path: call(469, fd, b"", attributes, 24, EMPTY),
    "xflags": ioctl(0x401C5820, struct.pack("I", 0x80) + bytes(24)),
    "version": ioctl(0x40087602, struct.pack("Q", 77)),
    "ext4-version": ioctl(0x40086604, struct.pack("Q", 77)),
    "verity": ioctl(0x40806685, struct.pack("IIIIQIIQ", 1, 1, 4096, 0, 0, 0, 0, 0) + bytes(88)),
    "migrate": ioctl(0x6609, 0),
    "defragment": ioctl(0x40309410, bytes(48)),
    "dedupe": deduped,
    "name_to_handle_at": handle,
}


def tell(path, fd):
    """What is known of a file: by its path, and by a descriptor."""
    told = []
    for place in (path, fd):
        data = os.stat(place)
        names = sorted(name for name in os.listxattr(place) if name.startswith("user.") and "overlay" not in name)
        told.append((oct(data.st_mode), data.st_uid, data.st_gid, data.st_size, data.st_nlink, names, is_not_dumped(place),
                     int(data.st_mtime) if data.st_mtime < 100 else "-"))
    return told


def make(lower):
    os.makedirs(lower, exist_ok=True)
    for name in [*CHANGES, *REFUSED]:
        path = os.path.join(lower, name)
        with open(path, "wb") as file:
            if name == "execveat":
                file.write(open("/bin/true", "rb").read())
            else:
                file.write(b"lower" * 2000)
        os.chmod(path, 0o755 if name == "execveat" else 0o644)
        os.setxattr(path, "user.there", b"yes")


def main():
    if sys.argv[1] == "--make":
        return make(sys.argv[2])
    shown = os.fsencode(sys.argv[1])
    only_safe = "--safe" in sys.argv
    for name, change in (REFUSED if only_safe else CHANGES).items():
        path = os.path.join(shown, name.encode())
        fd = os.open(path, os.O_RDONLY)
        try:
            change(fd, path)
            result = "done"
        except OSError as error:
            result = errno.errorcode.get(error.errno, str(error.errno))
        if only_safe:
            print(name, result)
            continue
        by_path, by_descriptor = tell(path, fd)
        with open(path, "rb") as file:
            content = file.read(5)
        print(name, result, *by_path, content)
        print(name, "by descriptor", *by_descriptor)


main()
