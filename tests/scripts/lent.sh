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
    same "$how: in its place" "$expected" "$(export "${how?}"; view --cow "up$number" --over low -- python3 "$TESTS/lent.py" low 2>&1)"
    untouched "$how: in its place"
    same "$how: elsewhere" "$expected" \
        "$(export "${how?}"; view --mount "viewfs:none:m:lowerdir=low,upperdir=over$number" -- python3 "$TESTS/lent.py" m 2>&1)"
    untouched "$how: elsewhere"
    # What is refused as a whole.
    (export "${how?}"; view --cow "up$number" --over low -- python3 "$TESTS/lent.py" low --safe >refused 2>&1)
    same "$how: other ways to change a file are refused" "" "$(grep -v ' \(ENOTSUP\|ENOTTY\|EPERM\|EOPNOTSUPP\|ENOSYS\|EINVAL\)$' refused)"
    untouched "$how: other ways"
done
