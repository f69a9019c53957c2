#!/bin/bash
# A tree with changes laid over it, where it is: what does not differ is looked at on the host by the processes themselves, and nobody can tell. The same
# random work is done natively and in the view (THROUGH_SEEDS says how often). Needs python3.
# shellcheck source=tests/lib.sh disable=SC2016 # the view's shell expands
. "$(dirname "$0")/../lib.sh"
cd "$TMP" || exit 1
export LC_ALL=C VEDUTA TMP
WORK=$(dirname "$0")/../through
WORK=$(realpath "$WORK")

view() { timeout -k 1 60 "$VEDUTA" run -N "$@"; }
quick=no
mkdir -p base up; echo plain >base/file
case $(view --cow "$TMP/up" --over "$TMP/base" -- sh -c '"$VEDUTA" explain /etc/passwd') in *"fast path: on"*) quick=yes ;; esac

# like SEED STEPS: the work natively, then over the same tree in a view; what is below stays as it was.
like() {
    local dir=$TMP/like
    chmod -R u+rwx "$dir" 2>/dev/null
    rm -rf "$dir" && mkdir -p "$dir/in" && python3 "$WORK" make "$dir/in/tree" "$1" &&
        timeout -k 1 60 python3 "$WORK" work "$dir/in/tree" "$1" "$2" >"$dir/native" 2>&1 &&
        chmod -R u+rwx "$dir/in" && rm -rf "$dir/in" && mkdir "$dir/in" && python3 "$WORK" make "$dir/in/tree" "$1" &&
        python3 "$WORK" show "$dir/in/tree" >"$dir/before" || return
    view --cow "$dir/up" --over "$dir/in" -- python3 "$WORK" work "$dir/in/tree" "$1" "$2" >"$dir/view" 2>&1
    python3 "$WORK" show "$dir/in/tree" >"$dir/after" && diff "$dir/before" "$dir/after" >&2 && diff "$dir/native" "$dir/view" >&2
}
for ((seed = 1; seed <= ${THROUGH_SEEDS:-6}; seed++)); do
    check "random work over a tree is like work in it, and leaves it alone ($seed)" like "$seed" "${THROUGH_STEPS:-250}"
done
rm -rf like
VEDUTA_FAST=0 check "the same without the fast path" like 7 250
rm -rf like

if [ $quick = no ]; then skip "the fast path is not on here" fine; exit 0; fi
# Again and again, over what the last rounds have left: a layer that is not empty differs from the beginning.
mkdir -p again/a/b again/c; echo one >again/a/one; echo two >again/a/b/two; ln again/a/one again/c/one; ln -s a/b again/link; ln -s "$TMP/again/c" again/abs
over() { view --cow "$TMP/up2" --over "$TMP/again" -- sh -c "cd '$TMP/again' && $1"; }
over 'echo more >>a/one; rm a/b/two; echo new >a/b/new; mkdir c/d; rm c/one'
same "a layer that is not empty" "$(printf '%s\n' 'one more' new 'a/b: new' 'c: d' 'link: new' none none new)" "$(over '
    echo $(cat a/one); cat a/b/new; for dir in a/b c link; do echo $dir: $(ls $dir/); done; test -e link/two || echo none; test -e abs/one || echo none
    cat "$TMP/again/link/new"')"
over 'rm -r a c; mkdir a; echo other >a/one; ln -s a c'
same "directories that were replaced" "$(printf '%s\n' other other 'a: one' none none)" "$(over '
    cat a/one c/one; echo a: $(ls a); test -e link/two || echo none; test -e abs/b || echo none')"
same "what is below was left alone" "one one two" "$(cat again/a/one again/c/one again/a/b/two | paste -sd' ')"

mkdir -p where/in/deep; echo x >where/in/deep/file
same "a directory that is renamed goes on with those who work in it" "$(printf '%s\n' x "$TMP/where/out/deep" x y gone)" "$(
    view --cow "$TMP/up3" --over "$TMP/where" -- bash -c '
        cd where/in/deep && cat file && mv "$TMP/where/in" "$TMP/where/out" && /bin/pwd && cat file && echo y >file && cat "$TMP/where/out/deep/file"
        test -e "$TMP/where/in" || echo gone')"
same "a directory that was removed is empty, and its name another's" "$(printf '%s\n' gone none new)" "$(
    view --cow "$TMP/up4" --over "$TMP/where" -- bash -c '
        cd where/in/deep && rm -r "$TMP/where/in" && mkdir -p "$TMP/where/in/deep" && echo new >"$TMP/where/in/deep/file"
        /bin/pwd 2>/dev/null || echo gone; cat file 2>/dev/null || echo none; cat "$TMP/where/in/deep/file"')"
echo text >where/text; chmod 644 where/text; mkdir where/sub
same "what nobody may run is no program" "no yes" "$(
    view --cow "$TMP/up9" --over "$TMP/where" -- bash -c 'cd where; test -x text && echo yes || echo no; echo more >>text; chmod 755 text; test -x text && echo yes' | paste -sd' ')"
for plane in "" emulated; do
    mkdir files native-files
    # An emulated file does not know that it is open to be written when it is run.
    [ "$plane" = "" ] && but=none || but=busy
    same "files of a copy-on-write view are like the host's${plane:+, $plane}" "$(cd native-files && timeout -k 1 60 python3 "$TESTS/files.py" 2>&1 | grep -v "$but")" \
        "$(cd files && VEDUTA_PLANE=$plane view --cow "$TMP/up13$plane" -- python3 "$TESTS/files.py" 2>&1 | grep -v "$but")"
    rm -r files native-files
done
mkdir -p low upper there; echo below >low/f
same "explain tells what is seen through" "host, through it, not through it" "$(
    view --cow "$TMP/up14" --over "$TMP/low" -- bash -c 'echo new >low/new; "$VEDUTA" explain /etc/passwd low/f low/new; rm low/new' | sed 's/.*on the host; the kernel serves.*/host/; s/.*; not changed, so .*/through it/; s/.*in .*mounted on.*/not through it/' | paste -sd, | sed 's/,/, /g')"
same "descriptors have the path by which they were opened" "low/f there/f there/new there/new" "$(
    view --mount "viewfs:none:$TMP/there:lowerdir=$TMP/low,upperdir=$TMP/upper" -- bash -c 'exec 3<low/f 4<there/f 5>there/new 6<there/new; for n in 3 4 5 6; do readlink /proc/self/fd/$n; done' | sed "s|^$TMP/||" | xargs)"
mkdir -p rights
same "sockets and fifos are for whom their modes say" "$(id -u | sed 's/^0$/None None/; t; s/.*/EACCES EACCES/')" "$(
    view --cow "$TMP/up15" --over "$TMP/rights" -- python3 -c '
import errno, os, socket
os.chdir("rights"); s = socket.socket(socket.AF_UNIX); s.bind("s"); os.chmod("s", 0o500); s.listen(); os.mkfifo("f", 0o400); r = os.open("f", os.O_RDONLY | os.O_NONBLOCK)
def said(work):
    try: work()
    except OSError as error: return errno.errorcode[error.errno]
print(said(lambda: socket.socket(socket.AF_UNIX).connect("s")), said(lambda: os.open("f", os.O_WRONLY | os.O_NONBLOCK)))' 2>&1)"
mkdir -p locked/below
same "a directory that its owner may not read is still his" "0 0 700 0 gone full" "$(
    view --cow "$TMP/up14" --over "$TMP/locked" -- bash -c 'cd locked; mkdir d e; for n in d below; do chmod 0 $n; stat -c %a $n; done; chmod 700 d; stat -c %a d
        chmod 0 e; stat -c %a e; rmdir e && echo gone; touch d/x; chmod 0 d; rmdir d 2>/dev/null || echo full; chmod 700 d below' | xargs)"
mkdir -p anew/dir; echo first >anew/dir/f
same "a directory that others have made anew is the new one" "first second new" "$(
    view --cow "$TMP/up12" --over "$TMP/anew" -- bash -c '
        cd anew/dir && test -w . && cat f && cd / && touch "$TMP/ready"; for n in {1..100}; do [ ! -e "$TMP/over" ] || break; sleep 0.1; done
        cd "$TMP/anew/dir" && test -w . && cat f && echo new >g && cat g' >said &
    until_true 10 test -e ready; rm -r anew/dir; mkdir anew/dir; echo second >anew/dir/f; touch over; wait; paste -sd" " said)"
same "a fifo below is another than the host's" "said" "$(
    mkfifo where/fifo
    view --cow "$TMP/up5" --over "$TMP/where" -- bash -c 'cd where; (echo said >fifo) & timeout 10 cat fifo; wait')"

cat >list.py <<'PY'
# A directory that was opened before something was made in it, listed in small parts and changed meanwhile: each name once.
import ctypes, os, sys
libc, buffer = ctypes.CDLL(None), ctypes.create_string_buffer(96)
fd, names = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY), []
os.close(os.open(sys.argv[1] + "/new", os.O_CREAT | os.O_WRONLY))
os.unlink(sys.argv[1] + "/name3")
while (got := libc.syscall(217, fd, buffer, 96)) > 0:
    at = 0
    while at < got:
        size = int.from_bytes(buffer.raw[at + 16:at + 18], "little")
        names.append(buffer.raw[at + 19:at + size].split(b"\0")[0].decode())
        at += size
    os.fchmod(fd, 0o750 if len(names) % 2 else 0o755)
print(got, len(names), " ".join(sorted(names)))
PY
mkdir where/many && for n in 1 2 3 4 5 6 7 8 9; do echo $n >where/many/name$n; done
same "a directory is listed in parts while it is changed" "0 11 . .. name1 name2 name4 name5 name6 name7 name8 name9 new" \
    "$(view --cow "$TMP/up11" --over "$TMP/where" -- python3 list.py "$TMP/where/many" 2>&1)"

cat >watch.py <<'PY'
# One makes, changes, removes and renames; the other is told by a pipe and must see it. Directories are listed from the beginning.
import os, sys
base, rounds = sys.argv[1], int(sys.argv[2])
(ask, asked), (say, said) = os.pipe(), os.pipe()
os.chdir(base)
if os.fork() == 0:
    listing = os.open("many", os.O_RDONLY | os.O_DIRECTORY)
    bad = 0
    for number in range(rounds):
        os.read(ask, 1)
        name = f"many/{number}"
        seen = [open(name).read(), os.path.exists(f"many/new{number}"), os.path.exists(f"{base}/many/gone{number}"),
                f"new{number}" in os.listdir(listing), oct(os.stat(f"{base}/link/mode{number}").st_mode & 0o777)]
        if seen != ["changed", True, False, True, "0o600"]:
            bad += 1
            print(number, seen, flush=True)
        os.write(said, b"x")
    os._exit(bad != 0)
for number in range(rounds):
    with open(f"{base}/many/{number}", "w") as file:
        file.write("changed")
    os.close(os.open(f"many/new{number}", os.O_CREAT | os.O_WRONLY))
    os.unlink(f"many/gone{number}")
    os.chmod(f"many/mode{number}", 0o600)
    os.write(asked, b"x")
    os.read(say, 1)
sys.exit(os.wait()[1] != 0)
PY
mkdir -p race/many && ln -s many race/link
(cd race/many && for ((n = 0; n < 200; n++)); do echo old >"$n"; echo old >"gone$n"; echo old >"mode$n"; chmod 644 "mode$n"; done)
check "what one process changes, others see at once" view --cow "$TMP/up6" --over "$TMP/race" -- python3 watch.py "$TMP/race" 200
same "and the tree below has nothing of it" "600 old" "$(find race/many -type f | wc -l) $(sort -u race/many/*)"

seen() { grep -cE '(openat|newfstatat|statx|access) .*(descriptor|= 0)$' "$1"; }
mkdir -p lots; for ((n = 0; n < 100; n++)); do echo "$n" >"lots/$n"; done
view --trace all --cow "$TMP/up7" --over "$TMP/lots" -- sh -c 'cat lots/* >/dev/null; ls -l lots >/dev/null' 2>trace
check "what does not differ is not asked of the engine" test "$(seen trace)" -lt 40
check "programs of a tree that is looked through are the kernel's" view --cow "$TMP/up8" -- bash -c 'test "$(readlink /proc/self/exe)" = "$(realpath "$(command -v readlink)")"'
if command -v gdb >/dev/null; then
    said=$(view --cow "$TMP/up10" -- bash -c 'cp /bin/sh "$TMP/made" && timeout -k 1 30 gdb -nx -batch -ex run --args "$TMP/made" -c "exit 3"' 2>&1)
    case $said in *"exited with code 03"*) pass "gdb runs a program that was just made over all" ;; *) fail "gdb runs a program that was just made over all" "$said" ;; esac
else
    skip "no gdb here" fine
fi
