#!/bin/bash
# Descriptors of files below, opened to read: whatever changes an inode through one changes the view, and leaves the file below as it is.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
cd "$TMP" || exit 1
export LC_ALL=C.UTF-8
umask 022

view() { timeout -k 1 60 "$VEDUTA" run -N "$@"; }
if ! view -- true >/dev/null 2>&1; then
    skip "views: this machine allows none ($HOW)"
    exit
fi
if ! command -v python3 >/dev/null; then
    skip "descriptors: python3"
    exit
fi
lent() { python3 "$TESTS/lent.py" "$@" 2>&1; }
# All that a file has but the time of its last reading.
state() {
    (cd "$1" && find . -printf '%p %y %m %U %G %n %s %T@ %C@ %l\n' | sort; find . -type f -print0 | sort -z | xargs -0r sha256sum
        getfattr -Rhd -m - . 2>/dev/null; lsattr -Rv . 2>/dev/null)
}
untouched() { same "$1: what is below is as it was" "$before" "$(state low)"; }

lent --make low && mkdir m native
cp -a low/. native
before=$(state low)
# On a tree of one's own the calls do what they are to do in a view.
expected=$(lent native)
check "each change is tried" [ "$(wc -l <<<"$expected")" -gt 80 ]

# --- each change, where the view shows the tree in its place, and elsewhere; however calls are caught
number=0
for how in VEDUTA_FAST=1 VEDUTA_FAST=0 VEDUTA_TRAP=trace VEDUTA_TRAP=ptrace VEDUTA_PLANE=emulated; do
    number=$((number + 1)); mkdir "up$number" "over$number"
    if ! (export "${how?}"; view -- true) >/dev/null 2>&1; then
        skip "$how: not possible here" fine
        continue
    fi
    # What a process has opened by itself, on the host, and was removed in the view, cannot be told any more (on overlayfs it is EEXIST).
    gone=$([ "$how" = VEDUTA_FAST=1 ] && echo '^re\(moved\|placed\) ')
    same "$how: in its place" "$(grep -v "${gone:-^$}" <<<"$expected")" "$(export "${how?}"; view --cow "up$number" --over low -- python3 "$TESTS/lent.py" low 2>&1 | grep -v "${gone:-^$}")"
    untouched "$how: in its place"
    same "$how: elsewhere" "$expected" \
        "$(export "${how?}"; view --mount "viewfs:none:m:lowerdir=low,upperdir=over$number" -- python3 "$TESTS/lent.py" m 2>&1)"
    untouched "$how: elsewhere"
    # What is refused as a whole.
    (export "${how?}"; view --cow "up$number" --over low -- python3 "$TESTS/lent.py" low --safe >refused 2>&1)
    same "$how: other ways to change a file are refused" "" "$(grep -v ' \(ENOTSUP\|ENOTTY\|EPERM\|EOPNOTSUPP\|ENOSYS\|EINVAL\)$' refused)"
    untouched "$how: other ways"
done

# --- trees that are only read: nothing is changed, and nothing is said to be
for tree in "bind:low:m:ro" "viewfs:none:m:lowerdir=low" "viewfs:low:m:merge"; do
    said=$(view --mount "$tree" -- python3 "$TESTS/lent.py" m 2>/dev/null)
    same "$tree: nothing is changed" "execveat done" "$(grep -o '^[a-z0-9_-]* done' <<<"$said")"
    untouched "$tree"
done

# --- other ways to the files below
mkdir up
cow() { view --cow up --over low -- "$@" 2>&1; }
exec 8<low/fchmod 9<low
same "a descriptor from before the view stands for the view's file" "0o100640 0o100640 0o40750" \
    "$(cow python3 -c 'import os
os.fchmod(8, 0o640); os.fchmod(9, 0o750)
print(*[oct(os.stat(place).st_mode) for place in (8, "low/fchmod", 9)])')"
exec 8<&- 9<&-
untouched "from before"
mkdir over
cp /bin/sleep low/open-append; chmod 755 low/open-append; before=$(state low)
# shellcheck disable=SC2016 # the view's shell expands
same "a program that runs is changed in the view alone" 700 \
    "$(view --mount viewfs:none:m:lowerdir=low,upperdir=over -- bash -c 'm/open-append 5 & sleep 0.3; chmod 700 /proc/$!/exe; stat -c %a m/open-append; kill $!' 2>&1)"
untouched "programs"
if unshare -rm true 2>/dev/null; then
    mkdir -p elsewhere
    refuse 1 "denied|permitted" "a bind in a namespace of its own is no way around" \
        timeout -k 1 60 "$VEDUTA" run -N --cow up --over low -- unshare -rm sh -c 'mount --bind low elsewhere || exit 1; echo leak >elsewhere/fchmod'
    refuse 1 "denied|permitted" "nor is one of a directory above" \
        timeout -k 1 60 "$VEDUTA" run -N --cow up --over low -- unshare -rm sh -c 'mount --bind . elsewhere || exit 1; echo leak >elsewhere/low/fchmod'
    # shellcheck disable=SC2016 # the view's shell expands
    check "a namespace of its own sees the view" \
        timeout -k 1 60 "$VEDUTA" run -N --cow up --over low -- unshare -rm sh -c 'echo view >low/chmod; [ "$(cat low/chmod)" = view ]'
    same "chroot(2) to a directory above leads to the view" view \
        "$(cow unshare -r python3 -c 'import os; os.chroot("."); open("/low/utime", "w").write("view"); print(open("/low/utime").read())')"
    untouched "namespaces"
else
    skip "namespaces of users: not allowed here" fine
fi
if [ "$(id -u)" = 0 ] && [ "$HOW" = root ]; then
    same "chroot(2) by root to a directory above leads to the view" view \
        "$(cow python3 -c 'import os; os.chroot("."); open("/low/utime", "w").write("view"); print(open("/low/utime").read())')"
    same "a handle leads to the view" "done" "$(cow python3 -c 'import ctypes, os, struct
libc = ctypes.CDLL(None, use_errno=True)
box = ctypes.create_string_buffer(struct.pack("IiII", 8, 1, os.stat("low/chown").st_ino & 0xFFFFFFFF, 0) + bytes(128))
fd = libc.open_by_handle_at(os.open("low/..", os.O_RDONLY), box, os.O_RDWR)
if fd >= 0:
    os.write(fd, b"LEAK!")
print("done")')"
    untouched "root"
fi
case $(cat /proc/sys/kernel/core_pattern) in
    "|"*) skip "core files: they go to a program here" fine ;;
    *)
        (ulimit -S -c "$(ulimit -H -c)"; cow bash -c 'cd low; ulimit -c unlimited; sh -c "kill -SEGV \$\$"' >/dev/null)
        untouched "core files" ;;
esac

# --- the same layers as a mount
if "$VEDUTA" doctor --json | grep -q '"can_mount": true'; then
    mkdir layer
    if check "a union is mounted" "$BIN/umviewfs" -o "lowerdir=$TMP/low,upperdir=$TMP/layer" none "$TMP/m"; then
        said=$(lent m)
        for name in fchmod fsetxattr utimensat open-write linkat; do
            same "in a mount, $name" "$(grep "^$name " <<<"$expected")" "$(grep "^$name " <<<"$said")"
        done
        untouched "in a mount"
        umount m 2>/dev/null || fusermount3 -u m 2>/dev/null || "$VEDUTA" umount m
    fi
fi
