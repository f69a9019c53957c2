# Sourced by tests/scripts/*.sh: checks that are sentences, and a clean end.
# A script runs with $VEDUTA (the program), $BIN (the folder of all programs), $IMAGES (made by images/make) and $TMP (an empty
# folder of its own); what it leaves mounted or running is a failure of the script.
# shellcheck shell=bash
set -u
TESTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export TESTS
passed=0 failed=0 skipped=0

pass() { passed=$((passed + 1)); echo "ok - $1"; }
fail() { failed=$((failed + 1)); echo "not ok - $1"; [ $# -lt 2 ] || printf '%s\n' "$2" | head -n "${FAIL_LINES:-15}" | sed 's/^/    /'; }
# In CI a missing need is a failure, elsewhere a counted skip.
skip() {
    if [ "${CI-}" = true ] && [ "${2-}" != fine ]; then fail "$1: needs what is not here"; else
        skipped=$((skipped + 1)); echo "skip - $1"; fi
}

# check SENTENCE COMMAND...: the command succeeds.
check() {
    local sentence=$1 out
    shift
    if out=$("$@" 2>&1); then pass "$sentence"; else fail "$sentence" "$(printf '$ %s\n%s' "$*" "$out")"; fi
}

# refuse STATUS WORDS SENTENCE COMMAND...: the command fails with that exit status and says those words (a regular expression).
refuse() {
    local status=$1 words=$2 sentence=$3 out code=0
    shift 3
    out=$("$@" 2>&1) || code=$?
    if [ "$code" != "$status" ]; then fail "$sentence" "$(printf '$ %s\nexit status %s, not %s\n%s' "$*" "$code" "$status" "$out")"
    elif ! printf '%s' "$out" | grep -Eq -- "$words"; then fail "$sentence" "$(printf '$ %s\nsaid nothing of /%s/:\n%s' "$*" "$words" "$out")"
    else pass "$sentence"; fi
}

# same SENTENCE EXPECTED ACTUAL
same() { if [ "$2" = "$3" ]; then pass "$1"; else fail "$1" "$(diff <(printf '%s\n' "$2") <(printf '%s\n' "$3"))"; fi; }

# until_true SECONDS COMMAND...: waits for something that happens by itself.
until_true() {
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do [ "$SECONDS" -lt "$end" ] || return 1; sleep 0.05; done
}

mounted() { grep -qs " $1 " /proc/self/mounts; }
not_mounted() { ! mounted "$1"; }

# Ends whatever this script left, and counts it as a failure.
finish() {
    local dir left
    cd /
    left=$(awk -v tmp="$TMP/" 'index($2, tmp) == 1 { print $2 }' /proc/self/mounts | sort -r)
    for dir in $left; do
        fail "nothing stays mounted" "$dir"
        umount -l "$dir" 2>/dev/null || fusermount3 -uz "$dir" 2>/dev/null
    done
    echo "$passed passed, $failed failed, $skipped skipped"
    [ "$failed" = 0 ]
}
trap finish EXIT
