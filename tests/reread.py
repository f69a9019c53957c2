"""Has files of a lower layer open while they are changed, in every way in which a process may have one open. Used by tests/scripts/reread.sh.

reread.py --make LOWER       makes the files, one for each kind
reread.py SHOWN [KIND...]    prints a line for each kind, with what is read by the descriptor from before
reread.py --storm SHOWN N    N files that processes have open which start others all the time, while some copy them up
reread.py --stress SHOWN N   readers with threads and forks, and a writer that copies N files up one after another, while they are read

The same lines are to come from a view, from the kernel's overlayfs, and from a plain directory."""
import ctypes, errno, fcntl, os, select, signal, socket, struct, subprocess, sys, tempfile, threading, time

libc = ctypes.CDLL(None, use_errno=True)
OLD = b"one two three\n"
NEW = b"four\n"


def more(path):
    with open(path, "ab") as file:
        file.write(NEW)


def by_other(path):
    """Another process writes."""
    subprocess.run(["sh", "-c", 'echo four >>"$0"', path], check=True)


def own(path):
    fd = os.open(path, os.O_RDONLY)
    first = os.read(fd, 4)
    more(path)
    return first, os.read(fd, 99), os.fstat(fd).st_size


def other(path):
    fd = os.open(path, os.O_RDONLY)
    first = os.read(fd, 4)
    by_other(path)
    return first, os.read(fd, 99), os.fstat(fd).st_size


def at_end(path):
    fd = os.open(path, os.O_RDONLY)
    os.read(fd, 99)
    by_other(path)
    return os.read(fd, 99), os.pread(fd, 3, 0), os.lseek(fd, 0, os.SEEK_END)


def twins(path):
    """Two descriptions, of which one has two numbers."""
    one = os.open(path, os.O_RDONLY)
    two = fcntl.fcntl(one, fcntl.F_DUPFD, 50)
    alone = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    os.read(one, 4)
    by_other(path)
    read = os.read(one, 4), os.read(two, 4), os.read(alone, 4)
    return read, os.lseek(one, 0, os.SEEK_CUR), [fcntl.fcntl(fd, fcntl.F_GETFD) for fd in (one, two, alone)]


def flags(path):
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_APPEND | os.O_NOATIME)
    before = fcntl.fcntl(fd, fcntl.F_GETFL)
    by_other(path)
    return fcntl.fcntl(fd, fcntl.F_GETFL) == before, len(os.read(fd, 99))


def family(path):
    """A child shares the position, and writes."""
    fd = os.open(path, os.O_RDONLY)
    (ready, tell), (again, tell_again) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        more(path)
        os.read(fd, 4)
        os.write(tell, b"x")
        os.read(again, 1)
        os._exit(os.lseek(fd, 0, os.SEEK_CUR))
    os.read(ready, 1)
    read = os.read(fd, 10), os.read(fd, 99)
    os.write(tell_again, b"x")
    return read, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def inherited(path):
    """It is had through exec, and by a grandchild."""
    fd = os.dup2(os.open(path, os.O_RDONLY), 8)
    script = f'read a <&{fd}; echo go; read b; cat <&{fd}'
    with subprocess.Popen(["sh", "-c", f"({script})"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[fd]) as reader:
        reader.stdout.readline()
        more(path)
        return reader.communicate(b"\n")[0]


def spawned(path):
    """A child that has our memory opens it to write."""
    fd = os.open(path, os.O_RDONLY)
    opens = [(os.POSIX_SPAWN_OPEN, 1, path, os.O_WRONLY | os.O_APPEND, 0)]
    child = os.posix_spawn("/bin/echo", ["echo", "four"], os.environ, file_actions=opens)
    os.waitpid(child, 0)
    time.sleep(0.1)
    return os.read(fd, 99)


def cut(path):
    fd = os.open(path, os.O_RDONLY)
    os.read(fd, 4)
    os.truncate(path, 7)
    return os.read(fd, 99), os.fstat(fd).st_size


def anew(path):
    """It is written anew, and removed."""
    fd = os.open(path, os.O_RDONLY)
    with open(path, "wb") as file:
        file.write(b"new")
    os.unlink(path)
    return os.read(fd, 99), os.fstat(fd).st_nlink


def mode(path):
    """What copies it up is no writing."""
    fd = os.open(path, os.O_RDONLY)
    os.chmod(path, 0o640)
    more(path)
    return os.read(fd, 99), oct(os.fstat(fd).st_mode)


def renamed(path):
    fd = os.open(path, os.O_RDONLY)
    os.rename(path, path + "-2")
    more(path + "-2")
    return os.read(fd, 99)


def linked(path):
    fd = os.open(path, os.O_RDONLY)
    os.link(path, path + "-2")
    more(path + "-2")
    return os.read(fd, 99), os.fstat(fd).st_nlink


def locked(path):
    """flock(2) of a reader keeps writers out, before and after."""
    fd = os.open(path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    script = "import fcntl, sys\nfile = open(sys.argv[1], 'ab')\ntry: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB); print('taken')\nexcept BlockingIOError: print('refused')"
    said = [subprocess.check_output([sys.executable, "-c", script, path])]
    fcntl.flock(fd, fcntl.LOCK_UN)
    said.append(subprocess.check_output([sys.executable, "-c", script, path]))
    return said


def locked_part(path):
    """The same for F_OFD_SETLK."""
    lock = lambda kind: struct.pack("hhxxxxqqi4x", kind, 0, 2, 5, 0)
    fd = os.open(path, os.O_RDONLY)
    fcntl.fcntl(fd, 37, lock(fcntl.F_RDLCK))
    writer = os.open(path, os.O_RDWR)
    said = []
    for start in (0, 3):
        try:
            fcntl.fcntl(writer, 37, struct.pack("hhxxxxqqi4x", fcntl.F_WRLCK, 0, start, 2, 0))
            said.append("taken")
        except BlockingIOError:
            said.append("refused")
    return said


def locked_by_process(path):
    """The same for F_SETLK, which is not the description's."""
    (ready, tell), (again, tell_again) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        fd = os.open(path, os.O_RDONLY)
        fcntl.lockf(fd, fcntl.LOCK_SH, 5, 2)
        os.write(tell, b"x")
        os.read(again, 1)
        os._exit(len(os.read(fd, 99)))
    os.read(ready, 1)
    said = []
    with open(path, "r+b") as writer:
        for start in (0, 3):
            try:
                fcntl.lockf(writer, fcntl.LOCK_EX | fcntl.LOCK_NB, 2, start)
                said.append("taken")
            except BlockingIOError:
                said.append("refused")
        writer.write(b"one")
    os.write(tell_again, b"x")
    return said, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def stopped(path):
    """It stands, by job control, and still does afterwards."""
    (ready, tell) = os.pipe()
    child = os.fork()
    if child == 0:
        fd = os.open(path, os.O_RDONLY)
        os.write(tell, b"x")
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(len(os.read(fd, 99)))
    os.read(ready, 1)
    os.waitpid(child, os.WUNTRACED)
    by_other(path)
    time.sleep(0.05)
    state = open(f"/proc/{child}/stat").read().rsplit(")")[1].split()[0].upper()
    os.kill(child, signal.SIGCONT)
    return state, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def waiting(path):
    """Threads wait in all sorts of calls while the descriptor is changed, and none is told so."""
    fd = os.open(path, os.O_RDONLY)
    never, _never = os.pipe()
    epoll = select.epoll()
    epoll.register(never, select.EPOLLIN)
    number = {"nanosleep": 35, "poll": 7, "epoll_wait": 232, "futex": 202, "rt_sigtimedwait": 128, "select": 23, "read": 0, "epoll_pwait": 281}
    half = struct.pack("qq", 0, 400_000_000)
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("qq", 0, 400_000))
    mask = struct.pack("Q", 1 << (signal.SIGUSR1 - 1))
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    calls = [
        ("nanosleep", half, None),
        ("poll", struct.pack("ihh", never, 1, 0), 1, 400),
        ("epoll_wait", epoll.fileno(), ctypes.create_string_buffer(64), 4, 400),
        ("epoll_pwait", epoll.fileno(), ctypes.create_string_buffer(64), 4, 400, None, 8),
        ("futex", ctypes.create_string_buffer(8), 0, 0, half),
        ("rt_sigtimedwait", mask, None, half, 8),
        ("select", 0, None, None, None, struct.pack("qq", 0, 400_000)),
        ("read", ours.fileno(), ctypes.create_string_buffer(8), 8),
    ]
    said, times = {}, {}

    def wait(name, *args):
        words = [a if isinstance(a, (ctypes.Array, bytes)) or a is None else ctypes.c_long(a) for a in args]
        ctypes.set_errno(0)
        since = time.monotonic()
        result = libc.syscall(ctypes.c_long(number[name]), *words)
        times[name] = time.monotonic() - since
        said[name] = errno.errorcode[ctypes.get_errno()] if result < 0 else result

    threads = [threading.Thread(target=wait, args=call) for call in calls]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    by_other(path)
    read = os.read(fd, 99)
    for thread in threads:
        thread.join()
    ended = [name for name in times if times[name] < 0.35]
    return read, sorted(said.items()), ended


def full(path):
    """No number is free."""
    import resource
    fd = os.open(path, os.O_RDONLY)
    (ready, tell), (again, tell_again) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        try:
            while True:
                os.dup(0)
        except OSError:
            os.write(tell, b"x")
        os.read(again, 1)
        os._exit(len(os.read(fd, 99)))
    os.read(ready, 1)
    more(path)
    limit = resource.prlimit(child, resource.RLIMIT_NOFILE)
    os.write(tell_again, b"x")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), limit


KINDS = [own, other, at_end, twins, flags, family, inherited, spawned, cut, anew, mode, renamed, linked, locked, locked_part, locked_by_process, stopped, waiting, full]


def stress(shown, count):
    """Each file holds numbered lines. Readers read them all, with threads that share a position and forks that do; a writer changes each line in place in a copy
    (which must be read as the old or the new one, each once and in order) and adds some. Prints what was wrong."""
    wrong = []
    for number in range(count):
        path = f"{shown}/stress-{number}"
        lines = 400
        fd = os.open(path, os.O_RDONLY)
        start, seen, lock = threading.Event(), [], threading.Lock()
        pipes = []

        def read(sink):
            while True:
                try:
                    line = os.read(fd, 8)
                except OSError as error:
                    sink(("error", error.errno))
                    return
                if not line:
                    return
                sink((line, None))
                time.sleep(0)

        def thread():
            mine = []
            start.wait()
            read(mine.append)
            with lock:
                seen.extend(mine)

        children = []
        for _ in range(2):
            ready, tell = os.pipe()
            child = os.fork()
            if child == 0:
                mine = []
                os.read(ready, 0)
                read(mine.append)
                with os.fdopen(tell, "wb") as out:
                    for line, error in mine:
                        out.write(line if error is None else b"E%06d\n" % error)
                os._exit(0)
            os.close(tell)
            children.append((child, ready))
        threads = [threading.Thread(target=thread) for _ in range(3)]
        for each in threads:
            each.start()
        start.set()
        time.sleep(0.0003 * (number % 9))
        with open(path, "r+b") as writer:
            writer.seek(0, os.SEEK_END)
            writer.write(b"".join(b"%07d\n" % line for line in range(lines, lines + 20)))
        for each in threads:
            each.join()
        for child, ready in children:
            with os.fdopen(ready, "rb") as source:
                data = source.read()
            seen.extend((data[at:at + 8], None) for at in range(0, len(data), 8))
            if os.waitpid(child, 0)[1]:
                wrong.append(f"{path}: a child failed")
        # Readers that came to the end before the writer leave the rest.
        read(seen.append)
        got = sorted(line for line, _ in seen)
        expected = [b"%07d\n" % line for line in range(lines + 20)]
        if got != expected:
            twice = [line for line in set(got) if got.count(line) > 1]
            missing = [line for line in expected if line not in got]
            other = [line for line in got if line not in expected]
            wrong.append(f"{path}: twice {twice[:5]}, missing {missing[:5]}, other {other[:5]}")
        os.close(fd)
    return wrong


def storm(shown, count):
    """Processes have all files open, each at its own place, and start others; writers change the files. Afterwards all is where it was, and shows the copy."""
    paths = [f"{shown}/storm-{number}" for number in range(count)]
    (ready, tell), (over, tell_over) = os.pipe(), os.pipe()
    readers = []
    for _ in range(3):
        child = os.fork()
        if child:
            readers.append(child)
            continue
        fds = [os.open(path, os.O_RDONLY | (os.O_CLOEXEC if number % 2 else 0)) for number, path in enumerate(paths)]
        for number, fd in enumerate(fds):
            os.set_inheritable(fd, number % 2 == 0)
            os.lseek(fd, number % 7, os.SEEK_SET)
        ended = threading.Event()

        def start():
            while not ended.is_set():
                if os.waitpid(os.posix_spawn("/bin/true", ["true"], os.environ), 0)[1]:
                    os._exit(3)
                if subprocess.run(["sh", "-c", "exit 5"], close_fds=False).returncode != 5:
                    os._exit(4)

        threads = [threading.Thread(target=start) for _ in range(2)]
        for thread in threads:
            thread.start()
        os.write(tell, b"x")
        os.close(tell_over)
        os.read(over, 1)
        ended.set()
        for thread in threads:
            thread.join()
        wrong = []
        deadline = time.monotonic() + 10
        for number, fd in enumerate(fds):
            # Those of a process that waits for its child are changed a moment later.
            while os.pread(fd, 99, 0) != OLD + NEW and time.monotonic() < deadline:
                time.sleep(0.01)
            seen = os.pread(fd, 99, 0), os.lseek(fd, 0, os.SEEK_CUR), os.get_inheritable(fd)
            if seen != (OLD + NEW, number % 7, number % 2 == 0):
                wrong.append((number, seen))
        if wrong:
            print("wrong", wrong[:5], flush=True)
        os._exit(bool(wrong))
    for _ in readers:
        os.read(ready, 1)
    writers = []
    for turn in range(3):
        child = os.fork()
        if child == 0:
            for path in paths[turn::3]:
                fd = os.open(path, os.O_RDONLY)
                more(path)
                if os.read(fd, 99) != OLD + NEW:
                    os._exit(1)
                os.close(fd)
            os._exit(0)
        writers.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in writers]
    os.close(tell_over)
    codes += [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in readers]
    return [] if not any(codes) else [f"ended with {codes}"]


if __name__ == "__main__":
    if sys.argv[1] == "--make":
        for kind in KINDS:
            with open(f"{sys.argv[2]}/{kind.__name__}", "wb") as file:
                file.write(OLD)
        for number in range(int(sys.argv[3]) if len(sys.argv) > 3 else 0):
            with open(f"{sys.argv[2]}/stress-{number}", "wb") as file:
                file.write(b"".join(b"%07d\n" % line for line in range(400)))
            with open(f"{sys.argv[2]}/storm-{number}", "wb") as file:
                file.write(OLD)
    elif sys.argv[1] in ("--stress", "--storm"):
        wrong = (stress if sys.argv[1] == "--stress" else storm)(sys.argv[2], int(sys.argv[3]))
        print("\n".join(wrong) or "fine")
    else:
        for kind in KINDS:
            if len(sys.argv) > 2 and kind.__name__ not in sys.argv[2:]:
                continue
            child = os.fork()
            if child == 0:
                try:
                    said = kind(f"{sys.argv[1]}/{kind.__name__}")
                except Exception as error:
                    said = repr(error)
                print(kind.__name__, said, flush=True)
                os._exit(0)
            os.waitpid(child, 0)
