#!/bin/bash
# What processes are told of virtual trees: names and attributes are decided in the process, and are what the engine would say, at every
# moment and to everybody. The oracle is the same call made where the fast path does not reach (syscall(2)), or the whole thing without it.
# SEEDS (2) and STEPS (300) make it longer. Needs python3 and mke2fs.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
cd "$TMP" || exit 1
export LC_ALL=C VEDUTA TMP
PATH=$PATH:/sbin:/usr/sbin
if ! command -v mke2fs >/dev/null; then skip "mke2fs is not here" e2fsprogs; exit 0; fi
mkdir -p mnt outer seed/src/sub seed/include seed/many
echo one >seed/src/file; echo deep >seed/src/sub/file; echo outside >outer/file
ln -s src/file seed/inside; ln -s ../outer/file seed/leads-out; ln -s /etc seed/absolute
for n in $(seq 300); do : >"seed/many/$n"; done
truncate -s 24M image && mke2fs -q -F -t ext4 -O ^has_journal -E root_owner="$(id -u):$(id -g)" -d seed image 2>/dev/null
M="ext4:$TMP/image:$TMP/mnt:rw"

view() { timeout -k 1 100 "$VEDUTA" run -N "$@"; }
case $(view --mount "$M" -- sh -c '"$VEDUTA" explain /etc/passwd') in
    *"fast path: on; "[1-9]*) ;;
    *) skip "no fast path here" fine; exit 0 ;;
esac

# How often something comes to the engine.
caught() { view --mount "$M" --trace all -- sh -c "$1" 2>&1 >/dev/null | grep -cE " ($2) "; }
few() {
    local count
    count=$(caught "$2" "$3")
    if [ "$count" -lt "$4" ]; then pass "$1"; else fail "$1" "$count calls"; fi
}
few "a directory of 300 files is looked at in few calls" 'cd mnt/many && ls -U >/dev/null && find . -size +9 >/dev/null' 'newfstatat|lstat' 60
few "what is known is not asked again" "cd mnt/src && for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do test -e file; test -e ../include; test -e '$TMP/mnt/src/none'; done" 'newfstatat|stat' 20

cat >oracle.py <<'END'
# Random changes of a tree, by one process; then all look at it by the C library and by syscall(2), which must agree. Threads look all the
# time in half of the runs, so that what they are told is of every age.
import ctypes, os, random, subprocess, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
T, seed, steps, can_mount = os.environ["TMP"] + "/mnt", int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "mount"
AT, NOFOLLOW, EMPTY = -100, 0x100, 0x1000
def call(function, *args):
    ctypes.set_errno(0)
    result = function(*args)
    return result if result >= 0 else -ctypes.get_errno()
def both(sys_number, name, args, out=None):
    """The call by both ways: what each returns, and what it wrote."""
    answers = []
    for function in (lambda *a: getattr(libc, name)(*a), lambda *a: libc.syscall(sys_number, *a)):
        buffer = ctypes.create_string_buffer(256)
        real = [buffer if a is out else a for a in args]
        result = call(function, *real)
        # Threads read, so the time of that may change in between.
        written = buffer.raw[:72] + buffer.raw[88:144]
        answers.append((result, written if result == 0 or (name.startswith("readlink") and result > 0) else b""))
    return answers
OUT = object()
def look(fd, path):
    """All that can be asked of a path; where the two ways differ."""
    p, wrong = path.encode(), []
    asked = [(262, "fstatat", (fd, p, OUT, 0), OUT), (262, "fstatat", (fd, p, OUT, NOFOLLOW), OUT), (269, "faccessat", (fd, p, 0, 0), None), (269, "faccessat", (fd, p, 4, 0), None),
             (267, "readlinkat", (fd, p, OUT, 200), OUT)]
    if fd == AT: asked += [(4, "stat", (p, OUT), OUT), (6, "lstat", (p, OUT), OUT), (21, "access", (p, 0), None), (89, "readlink", (p, OUT, 200), OUT)]
    for number, name, args, out in asked:
        quick, slow = both(number, name, args, out)
        if quick != slow: wrong.append((name, path, fd == AT, quick, slow))
    o = [call(libc.openat, fd, p, os.O_NONBLOCK), call(libc.syscall, 257, fd, p, os.O_NONBLOCK)]
    if min(o) < 0 and o[0] != o[1]: wrong.append(("openat", path, o))
    if o[0] >= 0:
        quick, slow = both(5, "fstat", (o[0], OUT), OUT)
        if quick != slow: wrong.append(("fstat", path, quick, slow))
    for number in o:
        if number >= 0: os.close(number)
    return wrong
names = ["a", "b", "c", "file", "x" * 43, "y" * 44, "d"]
def some(random):
    """A path: of names, dots, slashes."""
    parts = [random.choice(names + ["..", "."] * (random.random() < .3)) for _ in range(random.randrange(1, 4))]
    return random.choice(["", "", "", T + "/", "./"]) + "/".join(parts) + random.choice(["", "", "", "", "/", "/."])
def change(r):
    """One random change of the tree; what it was."""
    p, q, kind = some(r), some(r), r.choice([0, 0, 1, 2, 3, 3, 3, 4, 5, 6, 7, 7, 7, 8, 9, 10, 11, 12, 13])
    # Mostly something that is there, or it would come to nothing.
    if r.random() < .6: p, q = r.choice(sorted(os.listdir(T)) or ["a"]), r.choice(names)
    # Nothing outside is to be changed.
    for path in (p, q):
        where, above = os.path.realpath(path), os.path.realpath(os.path.dirname(path.rstrip("/.")) or ".")
        if not where.startswith(T + "/") or not (above + "/").startswith(T + "/"): return change(r)
    try:
        if kind == 0: os.close(os.open(p, os.O_CREAT | os.O_EXCL | os.O_WRONLY, r.choice([0o644, 0o600, 0])))
        elif kind == 1:
            with open(p, "ab") as f: f.write(b"x" * r.randrange(9000))
        elif kind == 2: os.mkdir(p, r.choice([0o755, 0o755, 0o700]))
        elif kind == 3: os.unlink(p)
        elif kind == 4: os.rmdir(p)
        elif kind in (5, 6): os.rename(p, q)
        elif kind == 7: os.link(p, q)
        elif kind == 8: os.symlink(r.choice(["a", "../a", T + "/b", T, ".", "none"]), p)
        elif kind == 9: os.chmod(p, r.choice([0o755, 0o644, 0o711, 0o700, 0o000]))
        elif kind == 10: os.truncate(p, r.randrange(100000))
        elif kind == 11: os.utime(p, (r.randrange(10**9), 5))
        elif kind == 12: libc.renameat2(AT, p.encode(), AT, q.encode(), 2)
        elif can_mount and kind == 13:
            if r.random() < .5: os.path.isdir(p) and libc.mount(b"none", p.encode(), b"tmpfs", 0, None)
            else: libc.umount2(p.encode(), 2)
    except OSError: pass
    return kind, p, q
def worker(n, ask, say):
    os.chdir(T)
    stop = []
    def noise():
        r = random.Random()
        while not stop:
            p = some(r)
            for follow in (True, False):
                try: os.stat(p, follow_symlinks=follow)
                except OSError: pass
            try:
                with open(p) as f: os.fstat(f.fileno()); f.read(10)
            except (OSError, UnicodeDecodeError): pass
    # Where all is asked all the time, what is wrong is soon put right: so only with odd seeds.
    if seed % 2: threading.Thread(target=noise, daemon=True).start()
    r = random.Random(seed * 100 + n)
    directory = os.open(".", os.O_RDONLY)
    while True:
        word = os.read(ask, 1)
        if not word: break
        wrong = []
        for name in r.sample(names, len(names)): wrong += look(r.choice([AT, directory]), name)
        for _ in range(4):
            wrong += look(AT, some(r)); wrong += look(directory, some(r))
        if r.random() < .1:
            try:
                os.chdir(r.choice(["a", "b", "d", "..", T]))
                if not os.path.realpath(os.getcwd()).startswith(T): os.chdir(T)
            except OSError:
                try: os.chdir(T)
                except OSError: pass
        os.write(say, (repr(wrong) + "\n").encode())
    os._exit(0)
def each():
    """Every kind of change, to what everybody has just been told of; then all is looked at, first by the C library."""
    write = lambda p, mode="w": open(p, mode).write("x" * 5000)
    changes = [lambda: os.rename("a", "b"), lambda: os.rename("a", "file"), lambda: os.unlink("a"), lambda: (os.link("a", "b"), os.unlink("a")), lambda: write("b"), lambda: write("a", "a"),
               lambda: os.truncate("a", 3), lambda: os.mkdir("b"), lambda: os.rmdir("d/c"), lambda: os.symlink("a", "b"), lambda: os.chmod("a", 0o600), lambda: os.utime("a", (1, 2)),
               lambda: os.rename("d", "b"), lambda: os.rename("d/c", "c"), lambda: libc.renameat2(AT, b"a", AT, b"d", 2), lambda: write("d/c/b"), lambda: os.mknod("b"), lambda: os.chmod("d", 0o700),
               lambda: os.chown("a", -1, os.getgid()), lambda: os.setxattr("a", "user.x", b"1"), lambda: open("a").read(), lambda: (os.rename("a", "b"), os.rename("b", "a"))]
    paths, wrong = ["a", "b", "c", "d", "file", "d/c", "d/c/..", "d/c/../..", "b/c", "d/c/b", T + "/a", T + "/b", "d/../a", "./file"], []
    for number, make in enumerate(changes):
        for backwards in (False, True):
            for left in ("a", "b", "c", "d", "file"): subprocess.run(["rm", "-rf", left])
            os.makedirs("d/c"); write("a"); write("file")
            for _ in range(3): [os.path.lexists(p) for p in paths]
            make()
            for path in reversed(paths) if backwards else paths:
                os.path.lexists(path); os.path.lexists(path)
            for path in paths: wrong += [(number, backwards, w) for w in look(AT, path)]
    print("differ", len(wrong), wrong[:2] or "")
os.chdir(T)
if sys.argv[3] == "each": each(); sys.exit()
workers = []
for n in range(3):
    ask, asked = os.pipe(); say, said = os.pipe()
    if os.fork() == 0:
        os.close(asked); worker(n, ask, said)
    os.close(ask); workers.append((asked, os.fdopen(say)))
os.chdir(T)
r, count, done = random.Random(seed), 0, []
for step in range(steps):
    done = (done + [change(r)])[-5:]
    for asked, _ in workers: os.write(asked, b"x")
    for _, say in workers:
        line = say.readline().strip()
        if line != "[]":
            count += 1
            if count < 4: print("seed", seed, "step", step, "after", done, ":", line[:1500])
for asked, _ in workers: os.close(asked)
print("differ", count)
END
fresh() { rm -f image; truncate -s 24M image && mke2fs -q -F -t ext4 -O ^has_journal -E root_owner="$(id -u):$(id -g)" -d seed image 2>/dev/null; }
same "every kind of change is told" "differ 0 " "$(view --mount "$M" -- python3 oracle.py 1 1 each 2>&1)"
for s in $(seq "${SEEDS:-2}"); do
    fresh
    same "random changes of an ext4 tree, seed $s" "differ 0" "$(view --mount "$M" -- python3 oracle.py "$s" "${STEPS:-300}" plain 2>&1)"
done
fresh
same "the same with mounts in it" "differ 0" "$(view --mount "$M" -- python3 oracle.py 77 "${STEPS:-300}" mount 2>/dev/null)"
same "and a tree in memory" "differ 0" "$(view --mount "tmpfs:none:$TMP/mnt" -- python3 oracle.py 5 "${STEPS:-300}" plain 2>&1)"
fresh
same "of which all is emulated" "differ 0" "$(VEDUTA_PLANE=emulated view --mount "$M" -- python3 oracle.py 6 "${STEPS:-300}" plain 2>&1)"

# alike SENTENCE OPTIONS SCRIPT: the same with and without the fast path.
alike() {
    local plain quick
    fresh
    # shellcheck disable=SC2086
    plain=$(VEDUTA_FAST=0 view $2 --mount "$M" -- bash -c "$3" 2>&1; echo "status $?")
    fresh
    # shellcheck disable=SC2086
    quick=$(view $2 --mount "$M" -- bash -c "$3" 2>&1; echo "status $?")
    same "$1" "$plain" "$quick"
}
S='stat -c "%n %F %s %h %a %u %g"'
alike "links that lead out of the tree, and back" "" "cd mnt; cat inside leads-out src/../inside; $S -L inside absolute; readlink absolute inside src; test -e absolute/passwd && echo there; ls leads-out/x"
alike "directories that move take those in them along" "" 'cd mnt/src/sub; cat file ../file; mv ../../src ../../moved; cat file ../file ../../moved/file; pwd; ls ../../src; cd ..; pwd; mkdir ../deep; mv ../moved ../deep; test -e ../../inside && echo up; pwd'
alike "mounts in the tree, made and taken away later" "" 'cd mnt; for n in 1 2 3; do cat src/sub/file; mount -t tmpfs none src/sub; ls -A src/sub; test -e src/sub/file || echo hidden; umount src/sub; cat src/sub/file; done'
alike "a tree that is unmounted, and mounted again elsewhere" "" "test -e mnt/src/file && echo 1; umount mnt; test -e mnt/src/file || echo 2; mount -t ext4 '$TMP/image' outer; cat outer/src/file; test -e mnt/src || echo 3; umount outer; ls outer"
alike "a tree that is mounted over" "" "test -e mnt/src/file && echo 1; cd mnt/src; mount --bind '$TMP/outer' '$TMP/mnt'; cat '$TMP/mnt/file' file; test -e '$TMP/mnt/src' || echo 2; umount '$TMP/mnt'; cat '$TMP/mnt/src/file'"
alike "a bind of a part has numbers of its own" "" "mount --bind mnt/src outer; stat -c %i outer/file mnt/src/file; a=\$(stat -c %d mnt/src/file); b=\$(stat -c %d outer/file); test \$a != \$b && echo two; exec 5<outer/file; test \"\$(stat -Lc %d /dev/fd/5)\" = \$b && echo same"
alike "a read-only mount" "" 'cd mnt; test -w src/file && echo may; mount -o remount,ro .; test -w src/file || echo may not; test -r src/file && echo read; echo x >src/file; cat src/file'
alike "the time when a file was read" "" 'mount -t tmpfs none outer; echo x >outer/f; touch -d @1000 outer/f; for n in 1 2 3; do find outer -name f -newerat @2000 -printf "read lately\n"; test -r outer/f; cat outer/f; done'
alike "roots of their own" "" "test -e mnt/src/file && echo 1; chroot mnt /none 2>&1 | grep -c .; test -e mnt/src/file && echo 2"
alike "all are root" "--root" "cd mnt; $S src src/file; chown 5:6 src/file; $S src/file; chmod 4755 src/file; $S src/file; ls -lan src | cut -c1-30"
alike "what descriptors are" "" 'cd mnt; exec 5<src/file 6<src; readlink /proc/self/fd/5 /proc/self/fd/6 /proc/self/cwd; '"$S"' -L /dev/fd/5 /dev/fd/6; mv src/file src/other; readlink /proc/self/fd/5; rm src/other; '"$S"' -L /dev/fd/5 | cut -c1-40'
alike "results that cannot be written" "" "cd mnt; python3 -c 'import ctypes as c
l = c.CDLL(None, use_errno=True)
for p in b\"src/file\", b\"src\", b\".\", b\"$TMP/mnt/src/file\", b\"none\", b\"\":
    for bad in 8, 0, -4096: print(p[:4], l.stat(p, c.c_void_p(bad)), c.get_errno(), l.fstatat(-100, p, c.c_void_p(bad), 256), c.get_errno(), l.readlink(p, c.c_void_p(bad), 9), c.get_errno())'"
if [ "$(id -u)" = 0 ]; then
    alike "directories in which not everybody may look" "" "cd mnt; chmod 700 src; test -e src/file && echo 1; setpriv --reuid 65534 --clear-groups test -e src/file || echo 2; chmod 711 src; setpriv --reuid 65534 --clear-groups test -e src/file && echo 3
        setfacl -m u:65534:--- src 2>/dev/null && { test -e src/file && echo 4; setpriv --reuid 65534 --clear-groups test -e src/file || echo 5; }"
fi
