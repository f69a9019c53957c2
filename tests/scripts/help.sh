#!/bin/bash
# Help, manual pages, completions: there, well formed, and true.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
cd "$TMP" || exit 1

for command in mount umount info ls cat cp disk doctor types tour completions man; do
    check "veduta $command --help" "$VEDUTA" $command --help
    check "veduta --help tells of $command" bash -c '"$1" --help | grep -q "^  $2"' _ "$VEDUTA" $command
done
refuse 1 'Usage' "veduta alone shows its usage" "$VEDUTA"
refuse 1 "unrecognized subcommand 'mout'" "a mistyped command is named" "$VEDUTA" mout
for shell in bash zsh fish; do check "completions for $shell" "$VEDUTA" completions $shell; done
"$VEDUTA" completions bash >c.bash
check "bash reads its completions" bash -n c.bash
check "all manual pages are written" "$VEDUTA" man --out pages
for page in veduta veduta-mount veduta-cp veduta-disk veduta-disk-convert umfuseext2 umfuseiso9660 umfusessh umdevmbr umdevramdisk; do
    check "the page $page.1 is there" test -s "pages/$page.1"
done
check "a driver's page tells its options" grep -q norecovery pages/umfuseext2.1
if command -v man >/dev/null; then
    check "man(1) formats a page without a word" bash -c '! man --warnings -l pages/veduta.1 2>&1 >/dev/null | grep .'
else
    skip "man(1) is not installed" fine
fi
check "types lists every type" bash -c '"$1" types | grep -q "^iso9660" && "$1" types | grep -q "^ext2"' _ "$VEDUTA"
check "types TYPE tells its options" bash -c '"$1" types iso9660 | grep -q norock' _ "$VEDUTA"
check "types --json is JSON" bash -c '"$1" types --json | python3 -m json.tool' _ "$VEDUTA"
for driver in umfuseext2 umfuseiso9660 umfusehello umfusetmpfs umdevmbr umdevramdisk umdevnull umfusessh; do
    check "$driver -h" "$BIN/$driver" -h
    check "$driver -V" "$BIN/$driver" -V
done
ln -s "$VEDUTA" umfuseext2
same "veduta under a driver's name is that driver" "$("$BIN/umfuseext2" -V)" "$(./umfuseext2 -V)"
check "doctor answers" "$VEDUTA" doctor
check "doctor --json is JSON" bash -c '"$1" doctor --json | python3 -m json.tool' _ "$VEDUTA"
if "$VEDUTA" doctor --json | grep -q '"ok": true'; then
    out=$("$VEDUTA" doctor)
    for words in /dev/fuse 'user namespaces' ptrace 'virtual network cards' 'by notification.*VEDUTA_TRAP=notify' 'files by the kernel' 'fast path' 'passed to the kernel'; do
        check "B8: doctor tells of: $words" grep -q "$words" <<<"$out"
    done
    same "B8: it counts every system call that veduta syscalls lists" "$("$VEDUTA" syscalls --json | python3 -c '
import json, platform, sys
print(sum(row[platform.machine()] is not None for row in json.load(sys.stdin)))')" "$(awk '/^ *[0-9]+  / { n += $1 } END { print n }' <<<"$out")"
fi
