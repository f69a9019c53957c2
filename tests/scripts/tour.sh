#!/bin/bash
# The guided first run: works for root and for an ordinary user, with and without a mount, and leaves nothing behind.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
cd "$TMP" || exit 1

mkdir t
out=$(TMPDIR=$TMP/t "$VEDUTA" tour 2>&1)
same "veduta tour ends well" 0 $?
if "$VEDUTA" doctor --json | grep -q '"can_mount": true'; then
    check "it mounted" grep -q '^\$ veduta mount ' <<<"$out"
    check "and unmounted" grep -q '^\$ veduta umount ' <<<"$out"
else
    check "it read the image without a mount, and said what would allow more" grep -qi 'no mount' <<<"$out"
fi
same "it leaves no file behind" "" "$(ls t)"
out=$(TMPDIR=$TMP/t PATH=/nonexistent VEDUTA_TOUR_NO_MOUNT=1 "$VEDUTA" tour 2>&1)
same "where no mount is possible the tour still ends well" 0 $?
check "and shows the same by reading" grep -q '^\$ veduta cat ' <<<"$out"
same "and leaves no file behind either" "" "$(ls t)"
