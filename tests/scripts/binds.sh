#!/bin/bash
# Binds of the host on itself: paths lead through them as if they were not there, and all that a boundary between mounts forbids or tells is as the kernel has
# it, which is asked with `mount --bind` in a namespace. Needs python3; BINDS_SEEDS says how often random work is compared.
# shellcheck source=tests/lib.sh disable=SC2016 # other shells expand
. "$(dirname "$0")/../lib.sh"
cd "$TMP" || exit 1
export LC_ALL=C VEDUTA TMP
BINDS=$TESTS/binds

view() { timeout -k 1 60 "$VEDUTA" run -N "$@"; }
# Root asks the kernel in a namespace of mounts, others in one of users, too, with their own number.
if [ "$(id -u)" = 0 ]; then kernel=(unshare -m --propagation private)
else kernel=(unshare -c -m --keep-caps --propagation private); fi
if ! "${kernel[@]}" mount --bind "$TMP" "$TMP" 2>/dev/null; then skip "no mounts of the kernel here to compare with" fine; kernel=(); fi

fresh() {
    [ ! -e top ] || chmod -R u+rwx top; rm -rf top && mkdir -p top/b/sub top/b/dir top/b/m top/o/deep && (
        cd top && umask 022 && echo "text of f" >b/f && echo kept >b/keep && echo inner >b/sub/in && echo other >o/f && echo under >b/m/under && echo ro >b/ro && chmod 444 b/ro
        ln -s ../b/f o/into; ln -s ../o/f b/out; ln -s ../b/m o/into-m; ln -s m b/lm; ln -s sub b/lsub; mkfifo b/fifo; chmod 700 b/keep
        printf '#!/bin/sh\necho "script $0"\n' >b/script; chmod 755 b/script; cp b/script o/script; cp /bin/sh b/sh)
}
# alike SENTENCE SETUP WORDS...: SETUP makes the mounts, then the exerciser tries what WORDS say.
alike() {
    local sentence=$1 setup="cd '$TMP/top' && $2 && cd / && exec timeout -k 1 50 python3 '$BINDS' $3 '$TMP/top' ${*:4}" native shown
    [ "${#kernel[@]}" -gt 0 ] || return 0
    fresh; native=$("${kernel[@]}" sh -c "$setup" 2>&1; echo "status $?")
    fresh; shown=$(view -- sh -c "$setup" 2>&1; echo "status $?")
    same "$sentence" "$native" "$shown"
    # There, what the engine has just opened to write is open for a moment longer, so that a fifo has readers.
    fresh; shown=$(VEDUTA_FAST=0 view -- sh -c "$setup" 2>&1; echo "status $?")
    same "$sentence, without the fast path" "$(grep -v 'fifo' <<<"$native")" "$(grep -v 'fifo' <<<"$shown")"
}
alike "a directory bound on itself" 'mount --bind b b' rw
alike "what lies in one" 'mount --bind . . && cd "$PWD" && mount --bind b b' rw
alike "one that is only read" 'mount --bind b b && mount -o remount,bind,ro b' ro
alike "one that was" 'mount --bind b b && mount -o remount,bind,ro b && mount -o remount,bind,rw b' rw
alike "one without programs" 'mount --bind b b && mount -o remount,bind,noexec b' noexec
alike "another mount in it" 'mount --bind b b && mount -t tmpfs none b/m' below
alike "another mount in one that is only read" 'mount --bind b b && mount -t tmpfs none b/m && mount -o remount,bind,ro b' below
alike "a bind of something else in it" 'mount --bind b b && mount --bind o/deep b/m' below
for ((seed = 1; seed <= ${BINDS_SEEDS:-4}; seed++)); do
    alike "random work ($seed)" 'mount --bind b b' random "$seed" "${BINDS_STEPS:-300}"
done

case $(view --mount "bind:$TMP:$TMP" -- sh -c '"$VEDUTA" explain /etc/passwd') in *"fast path: on"*) quick=yes ;; *) quick=no ;; esac
cat >race.py <<'PY'
# Binds come and go, and mounts in them, while others look and write; when mount(2), or umount2(2), has returned, all see it.
import ctypes, errno, os, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
T, rounds = sys.argv[1] + "/b", int(sys.argv[2])
os.chdir(T)
def mount(source, target, flags):
    while libc.mount(source.encode(), target.encode(), b"none", flags, None):
        if ctypes.get_errno() != errno.EBUSY: raise OSError(ctypes.get_errno(), "mount " + target) # EBUSY: somebody is writing
def umount(target):
    if libc.umount2(target.encode(), 2): raise OSError(ctypes.get_errno(), "umount " + target)
def get(path):
    try: return open(path).read()
    except OSError as error: return errno.errorcode[error.errno]
def write(path):
    try: os.close(os.open(path, os.O_WRONLY)); return "fine"
    except OSError as error: return errno.errorcode[error.errno]
def rename(old, new):
    try: os.rename(old, new); os.rename(new, old); return "fine"
    except OSError as error: return errno.errorcode[error.errno]
def look(n):
    if n < 10: os.chdir(T) # all threads of a process are there
    here = os.open("sub", os.O_RDONLY)
    try:
        return [get("m/f"), get(T + "/m/f"), get("lm/f"), get("sub/../m/f"), os.path.exists("m/under"), write("sub/in"), write(T + "/lsub/in"), write(f"/proc/self/fd/{here}/in"),
                rename(f"sub/mine{n}", f"other{n}"), get("keep"), os.getcwd() == T]
    finally: os.close(here)
os.makedirs("from", exist_ok=True); open("from/f", "w").write("from")
children = []
for n in range(3):
    open(f"sub/mine{n}", "w").close(); open(f"sub/mine1{n}", "w").close()
    ask, asked = os.pipe(); say, said = os.pipe()
    if os.fork() == 0:
        os.close(asked)
        def noise():
            while True:
                try: look(10 + n)
                except OSError: pass # a directory of a mount that has gone
        threading.Thread(target=noise, daemon=True).start()
        while os.read(ask, 1): os.write(said, repr(look(n)).encode() + b"\n")
        os._exit(0)
    os.close(ask); children.append((asked, os.fdopen(say)))
wrong = 0
def all_see(*expected):
    global wrong
    expected = list(expected) + ["kept\n", True]
    for asked, _ in children: os.write(asked, b"x")
    for _, say in children:
        line = say.readline().strip()
        if line != repr(expected): wrong += 1; print(line, "is not", expected)
absent, there = ["ENOENT"] * 4 + [True], ["from"] * 4 + [False]
BIND, RO, REMOUNT = 4096, 1, 32
for i in range(rounds):
    all_see(*absent, *["fine"] * 4)
    mount(T, T, BIND); all_see(*absent, *["fine"] * 4)
    mount(T + "/from", T + "/m", BIND); all_see(*there, *["fine"] * 4)
    mount(T + "/sub", T + "/sub", BIND); all_see(*there, *["fine"] * 3, "EXDEV")
    mount("none", T + "/sub", REMOUNT | BIND | RO); all_see(*there, *["EROFS"] * 3, "EXDEV")
    umount(T + "/m"); all_see(*absent, *["EROFS"] * 3, "EXDEV")
    mount("none", T + "/sub", REMOUNT | BIND); all_see(*absent, *["fine"] * 3, "EXDEV")
    umount(T + "/sub"); all_see(*absent, *["fine"] * 4)
    umount(T)
for asked, _ in children: os.close(asked)
print("wrong", wrong)
PY
race() { fresh; view "$@" python3 race.py "$TMP/top" "${RACES:-8}" 2>&1; }
if [ ${#kernel[@]} -gt 0 ]; then fresh; same "the kernel, while others look" "wrong 0" "$(timeout -k 1 60 "${kernel[@]}" python3 race.py "$TMP/top" 2 2>&1)"; fi
same "after mount(2) and umount2(2) returned, all see it" "wrong 0" "$(race --)"
same "also where all is bound on itself" "wrong 0" "$(race --mount bind:/:/ --)"
same "and without the fast path" "wrong 0" "$(RACES=2 VEDUTA_FAST=0 race --)"
[ $quick = yes ] || { skip "the fast path is not on here" fine; exit 0; }

fresh
seen() { grep -cE "(open|openat|newfstatat|statx|access|faccessat2|readlink|execve) .*" "$1"; }
for how in "" :ro; do
    view --trace all --mount "bind:$TMP/top:$TMP/top$how" -- bash -c 'cd top; for i in 1 2 3 4 5 6 7 8 9 10; do cat b/f o/into >/dev/null; ls -lR b >/dev/null; b/script >/dev/null; test -e b/none; done' 2>trace
    check "what is bound on itself${how:+, to be read,} is not asked of the engine" test "$(seen trace)" -lt 150
done
# A bind where set-user-id programs shall not count is the engine's.
same "nosuid and nodev are told" "rw,nosuid,nodev" "$(view --mount "bind:$TMP/top:$TMP/top:nosuid" -- sh -c "grep ' $TMP/top ' /proc/self/mounts | cut -d' ' -f4")"
