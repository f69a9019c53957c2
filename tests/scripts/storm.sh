#!/bin/bash
# A short storm (tests/storm): random operations beside models, signals, forks, in views on the plane `emulated`. Root and a user try different
# trees; STORM_SECONDS makes it longer, and SEED repeats one. FSSTRESS names that program of the Linux Test Project, where there is one.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
command -v python3 >/dev/null || { skip "no python3 here"; exit 0; }
case $HOW in
    root) kinds="ext4 fat bind" ;;
    user) kinds="tmpfs cow" ;;
    self) kinds="ext4 fat tmpfs bind cow" ;;
    *) skip "what root and a user try" fine; exit 0 ;;
esac
PATH=$PATH:/usr/sbin:/sbin
export VEDUTA_PLANE=emulated
seconds=${STORM_SECONDS:-$((4 * $(wc -w <<<"$kinds")))}
# shellcheck disable=SC2086 # several words
check "a storm on $kinds: nothing differs, hangs or is left" timeout -k 5 $((seconds * 5 + 120)) "$TESTS/storm" "$VEDUTA" "$TMP" "$seconds" "${SEED:-$RANDOM}" $kinds
