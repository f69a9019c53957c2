#!/bin/bash
# A file of a lower layer is open while it is copied up: from then on the descriptor shows the copy, whoever has it.
# VEDUTA_TEST_LONG=N: N files in the stress run.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
cd "$TMP" || exit 1
export LC_ALL=C.UTF-8
umask 022
many=${VEDUTA_TEST_LONG:-6}

view() { timeout -k 1 60 "$VEDUTA" run -N "$@"; }
if ! view -- true >/dev/null 2>&1; then
    skip "views: this machine allows none ($HOW)"
    exit
fi
if ! command -v python3 >/dev/null; then
    skip "descriptors: python3"
    exit
fi
reread() { timeout -k 1 60 python3 "$TESTS/reread.py" "$@" 2>&1; }
content() { (cd "$1" && find . -type f -printf '%p %m %s %T@\n' | sort; find . -type f -print0 | sort -z | xargs -0r sha256sum); }

mkdir low native m
reread --make low "$many"
cp -a low/. native
before=$(content low)
expected=$(reread native)
check "each way is tried" [ "$(wc -l <<<"$expected")" -ge 19 ]
same "the stress run finds nothing in a plain directory" fine "$(reread --stress native "$many")"

# --- overlayfs itself
mkdir kernel kernel-up kernel-work
if [ "$HOW" = root ] && mount -t overlay overlay -o lowerdir=low,upperdir=kernel-up,workdir=kernel-work kernel 2>/dev/null; then
    same "overlayfs does the same" "$expected" "$(reread kernel)"
    umount kernel
else
    skip "overlayfs: only root may mount it, and not everywhere" fine
fi

# --- in a view, in the place of the tree and elsewhere, however calls are caught and data moves
number=0
hows="VEDUTA_FAST=1 VEDUTA_FAST=0 VEDUTA_TRAP=trace VEDUTA_TRAP=ptrace VEDUTA_PLANE=fuse VEDUTA_PLANE=emulated"
# In a user namespace nothing of it differs but who may.
[ "$HOW" != userns ] || hows="VEDUTA_FAST=1 VEDUTA_TRAP=trace"
for how in $hows; do
    number=$((number + 1)); mkdir "up$number" "over$number"
    if ! (export "${how?}"; view --mount "viewfs:none:m:lowerdir=low" -- cat m/own) >/dev/null 2>&1; then
        skip "$how: not possible here" fine
        continue
    fi
    in_place() { (export "${how?}"; view --cow "up$number" --over low -- python3 "$TESTS/reread.py" "$@" 2>&1); }
    elsewhere() { (export "${how?}"; view --mount "viewfs:none:m:lowerdir=low,upperdir=over$number" -- python3 "$TESTS/reread.py" "$@" 2>&1); }
    same "$how: in its place" "$expected" "$(in_place low)"
    same "$how: elsewhere" "$expected" "$(elsewhere m)"
    same "$how: in its place, with many readers" fine "$(in_place --stress low "$many")"
    same "$how: elsewhere, with many readers" fine "$(elsewhere --stress m "$many")"
    same "$how: in its place, while processes come and go" fine "$(in_place --storm low "$many")"
    same "$how: what is below is as it was" "$before" "$(content low)"
done

# --- tail(1), which watches the file
mkdir logs
for options in "-f" "-F" "-f ---disable-inotify -s 0.05"; do
    echo one >logs/log; rm -rf up; mkdir up
    # shellcheck disable=SC2016 # the view's shell expands
    same "tail $options goes on in the copy" "one two three four" \
        "$(view --cow up --over logs -- bash -c '
            tail $1 logs/log >tailed 2>/dev/null & tail=$!
            for word in two three four; do
                for _ in {1..200}; do [ "$(wc -l <tailed)" -ge "${lines:=1}" ] && break; sleep 0.02; done
                echo $word >>logs/log; lines=$((lines + 1))
            done
            for _ in {1..200}; do [ "$(wc -l <tailed)" -ge 4 ] && break; sleep 0.02; done
            kill $tail' view "$options" 2>/dev/null; xargs <tailed)"
    same "tail $options: below is as it was" one "$(cat logs/log)"
done

# --- a mapping goes on showing what is below, as on overlayfs
echo one >logs/map; rm -rf up; mkdir up
same "a mapping is as it was" "one one one two" "$(view --cow up --over logs -- python3 -c '
import mmap
file = open("logs/map", "rb")
area = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
print(area[:3].decode(), end=" ")
open("logs/map", "ab").write(b"two\n")
print(area[:3].decode(), *file.read().decode().split())' 2>&1)"

# --- files of somebody else, where nobody tells whether they are open
rm -rf up; mkdir up
# shellcheck disable=SC2016 # the view's shell expands
same "a file of somebody else" "last" \
    "$(view --root --cow up --over /etc -- bash -c 'exec 3</etc/passwd; mapfile -t -u 3 lines; echo last >>/etc/passwd; cat <&3' 2>&1)"

# --- a view within a view, by either of them
rm -rf up inner; mkdir up inner; echo one >logs/log
# shellcheck disable=SC2016 # the view's shell expands
same "within a view, the inner one changes it" "one two|one" \
    "$(view --cow up --over logs -- bash -c '"$VEDUTA" run -N --cow inner --over logs -- bash -c "exec 3<logs/log; echo two >>logs/log; cat <&3" | xargs; cat logs/log' 2>&1 | paste -sd '|')"
# shellcheck disable=SC2016
same "within a view, what is below is changed in the outer one" "one|one two" \
    "$(view --cow up --over logs -- bash -c 'exec 3<logs/log; "$VEDUTA" run -N -- bash -c "echo two >>logs/log"; "$VEDUTA" run -N --cow inner --over logs -- cat logs/log | sed s/two/three/ >/dev/null; head -n 1 <&3; exec 3<logs/log; xargs <&3' 2>&1 | paste -sd '|')"

# --- the same layers as a mount
if "$VEDUTA" doctor --json | grep -q '"can_mount": true'; then
    mkdir layer
    if check "a union is mounted" "$BIN/umviewfs" -o "lowerdir=$TMP/low,upperdir=$TMP/layer" none "$TMP/m"; then
        same "in a mount" "$expected" "$(reread m)"
        same "in a mount, with many readers" fine "$(reread --stress m "$many")"
        umount m 2>/dev/null || fusermount3 -u m 2>/dev/null || "$VEDUTA" umount m
    fi
fi
