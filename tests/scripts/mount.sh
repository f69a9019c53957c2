#!/bin/bash
# Mounting for real: `veduta mount` and the driver programs, as a person, as mount(8) and as fstab use them.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
cd "$TMP" || exit 1
truth=$TESTS/../images/truth
mkdir m
: >file
m=$TMP/m

if ! "$VEDUTA" doctor --json | grep -q '"can_mount": true'; then
    skip "mounts: this machine allows none ($HOW)"
    exit
fi
img=$IMAGES/ext4-4k.img iso=$IMAGES/iso-rr.img
[ -e "$iso" ] || iso=$(find "$IMAGES" -name 'iso-*rock*.i*' -o -name 'iso-rr*.i*' | sort | head -n 1)

server() { # the process that serves the mount at $m
    local pid
    for pid in $(cd /proc && echo [0-9]*); do
        case $(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null) in *" $m "* | *" $m") echo "$pid" ;; esac
    done
}

# --- once through everything ---
check "an ext4 image is mounted, its type found by looking" "$VEDUTA" mount -o ro "$img" "$m"
check "the mount answers when the command returns" mounted "$m"
check "/proc/mounts shows type and source" grep -q "^$img $m fuse.umfuseext2 ro" /proc/self/mounts
refuse 1 'Read-only' "nothing can be written" touch "$m/new"
if [ "$HOW" = root ]; then
    "$truth" dir "$m" >got.jsonl
    check "the mounted tree is what debugfs sees" "$truth" compare "$IMAGES/ext4-4k.truth.jsonl" got.jsonl --ignore holes,blocks
    [ ! -e "$IMAGES/ext4-4k.kernel.jsonl" ] ||
        check "the mounted tree is what the kernel shows" "$truth" compare "$IMAGES/ext4-4k.kernel.jsonl" got.jsonl
fi
# fusermount3 wants the mount point to be writable by the user, and the root of the first mount is not.
if [ "$HOW" != user ]; then
    check "a second mount on the same directory stacks" "$VEDUTA" mount -o ro "$IMAGES/ext2-empty.img" "$m"
    same "it hides the first" lost+found "$(ls "$m")"
    check "it is ended first" "$VEDUTA" umount "$m"
    check "the first is there again" test -e "$m/hello.txt"
fi
check "veduta umount ends it" "$VEDUTA" umount "$m"
check "nothing is mounted afterwards" not_mounted "$m"
check "the server has ended" until_true 5 bash -c "! pgrep -f ' $m( |\$)'"
refuse 1 'not a mount point|not mounted' "umount of what is not mounted says so" "$VEDUTA" umount "$m"

# --- the driver program, and how it ends ---
check "umfuseext2 SOURCE DIR" "$BIN/umfuseext2" "$img" "$m" -o ro
check "fusermount3 or umount ends it" bash -c 'umount "$1" 2>/dev/null || fusermount3 -u "$1" 2>/dev/null || "$2" umount "$1"' _ "$m" "$VEDUTA"
check "unmounted from outside, the server ends" until_true 5 bash -c "! pgrep -f ' $m( |\$)'"

for signal in TERM INT; do
    "$BIN/umfuseext2" "$img" "$m" -o ro -f &
    pid=$!
    until_true 10 mounted "$m"
    kill -$signal $pid
    wait $pid
    same "SIG$signal ends a server in the foreground cleanly" 0 $?
    check "SIG$signal leaves no mount" not_mounted "$m"
done

"$BIN/umfuseext2" "$img" "$m" -o ro -f 2>/dev/null &
pid=$!
until_true 10 mounted "$m"
kill -KILL $pid
wait $pid 2>/dev/null
check "a server that is killed leaves no stale mount" until_true 10 not_mounted "$m"

# --- a server that does not answer ---
for how in "" -l; do
    "$BIN/umfusetmpfs" none "$m" -f & server=$!
    until_true 10 mountpoint -q "$m"
    kill -STOP $server
    # shellcheck disable=SC2086 # no word, or one
    check "umount${how:+ }$how does not wait for a server that does not answer" timeout -k 1 20 "$VEDUTA" umount $how "$m"
    kill -CONT $server
    wait $server
    check "and the mount is gone" not_mounted "$m"
done

# --- busy ---
"$VEDUTA" mount -o ro "$img" "$m"
(cd "$m" && sleep 60) &
holder=$!
sleep 0.2
refuse 32 'in use|busy' "a mount in use is not ended, and why is said" "$VEDUTA" umount "$m"
check "umount -l detaches it all the same" "$VEDUTA" umount -l "$m"
kill $holder
wait $holder 2>/dev/null
check "the server of a detached mount ends with its last user" until_true 10 bash -c "! pgrep -f ' $m( |\$)'"

# --- ISO ---
if [ -n "$iso" ] && [ -e "$iso" ]; then
    check "an ISO image is mounted" "$VEDUTA" mount "$iso" "$m"
    check "its type is shown" grep -q " $m fuse.umfuseiso9660 ro" /proc/self/mounts
    check "umount of it" "$VEDUTA" umount "$m"
    check "options in the words of mount(8) are taken" "$BIN/umfuseiso9660" "$iso" "$m" -o norock,uid=1234,mode=0400
    check "umount again" "$VEDUTA" umount "$m"
else
    skip "ISO: no image is there"
fi

# --- fstab and mount(8) ---
if [ "$HOW" = root ] && command -v mount.fuse3 >/dev/null; then
    # mount(8) looks in the usual places only; ours is made one of them, in this namespace.
    mount -t tmpfs -o mode=755 none /usr/local/bin && ln -s "$BIN/umfuseext2" /usr/local/bin/
    check "mount -t fuse.umfuseext2" mount -t fuse.umfuseext2 -o ro "$img" "$m"
    check "umount(8)" umount "$m"
    echo "$img $m fuse.umfuseext2 ro,noauto,user,nofail,x-systemd.automount,_netdev 0 0" >fstab
    check "a line of fstab mounts" mount -T "$TMP/fstab" "$m"
    check "and is unmounted" umount "$m"
    umount /usr/local/bin
else
    skip "fstab: only root asks mount(8)" fine
fi

# --- mistakes ---
refuse 32 'no-such-dir' "a mount point that is not there is named" "$VEDUTA" mount "$img" "$TMP/no-such-dir"
refuse 32 'not a directory' "a mount point that is a file is named" "$VEDUTA" mount "$img" "$TMP/file"
refuse 1 'unknown option "wrong"' "a wrong option is named" "$VEDUTA" mount -o wrong "$img" "$m"
refuse 1 'norecovery' "and the right ones are listed" "$BIN/umfuseext2" "$img" "$m" -o wrong
refuse 1 'source' "a driver without arguments shows its usage" "$BIN/umfuseext2"
refuse 32 'ext2: .*noise.img: ' "a wrong image is refused with type, source and reason" \
    bash -c 'head -c 100000 /dev/urandom >noise.img; "$1" noise.img "$2"' _ "$BIN/umfuseext2" "$m"
check "a mistake leaves nothing mounted" not_mounted "$m"
