#!/bin/bash
# ext2, ext3 and ext4, written through a mount, and judged by e2fsck and the kernel.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
fsx=$(realpath "$(dirname "$0")/../fsx")
cd "$TMP" || exit 1
export PATH=$PATH:/usr/sbin:/sbin LC_ALL=C.UTF-8
mkdir m k
m=$TMP/m k=$TMP/k

if ! "$VEDUTA" doctor --json | grep -q '"can_mount": true'; then
    skip "mounts: this machine allows none ($HOW)"
    exit
fi
if ! command -v mke2fs >/dev/null; then
    skip "ext: e2fsprogs is missing"
    exit
fi

unmount() { umount "$m" 2>/dev/null || fusermount3 -u "$m" 2>/dev/null || "$VEDUTA" umount "$m"; }
# The image is free when the server has let go of it.
settled() { until_true 10 bash -c "! pgrep -f 'umfuseext2 .* $m( |\$)'"; }
remount() { unmount && settled && "$BIN/umfuseext2" v.img "$m" -o rw; }
record() { (cd "$1" && find . -not -path './lost+found*' -printf '%p %y %m %U %G %n %T@ %l\n' | sort &&
    find . -type f -not -path './lost+found*' -print0 | sort -z | xargs -0 sha256sum); }

volume() { # NAME SIZE OPTION...
    local name=$1 size=$2 sum
    shift 2
    rm -f v.img
    # Old content everywhere, for those who show it.
    yes 'old content' | head -c "$size" >v.img
    mke2fs -q -F -E "root_owner=$(id -u):$(id -g),nodiscard" "$@" v.img
    check "$name: is mounted" "$BIN/umfuseext2" v.img "$m" -o rw
    mkdir -p "$m/dir/sub" "$m/a long name"
    head -c 100000 /dev/urandom >content
    cp content "$m/dir/Größe.bin"
    cp -a "$m/dir" "$m/a long name/copy"
    check "$name: a copy is the same" cmp content "$m/a long name/copy/Größe.bin"
    ln "$m/dir/Größe.bin" "$m/hard"
    ln -s "$(printf 'x%.0s' {1..200})" "$m/symbolic"
    same "$name: a hard link counts" 2 "$(stat -c %h "$m/hard")"
    check "$name: a directory moves" mv "$m/dir" "$m/a long name/moved"
    check "$name: nanoseconds are kept" touch -d '1960-02-03 04:05:06.789012345 UTC' "$m/hard"
    same "$name: a full copy of a tree" "$(cp -a "$m/a long name/copy" "$m/again" && record "$m/a long name/copy")" "$(record "$m/again")"
    sum=$("$fsx" "$m/fsx" "${SEED:-1}" 2000 1000000) || fail "$name: fsx" "$sum"
    check "$name: is mounted again" remount
    same "$name: what fsx wrote is there" "$sum" "$(sha256sum "$m/fsx" | cut -d ' ' -f 1)"
    exec 9<"$m/fsx"
    rm "$m/fsx"
    same "$name: a removed file that is open reads on" "$sum" "$(sha256sum <&9 | cut -d ' ' -f 1)"
    exec 9<&-
    record "$m" >ours
    check "$name: is unmounted" unmount
    settled
    check "$name: e2fsck finds nothing" e2fsck -fn v.img
    if [ "$(id -u)" = 0 ] && mount -o loop,ro v.img "$k" 2>/dev/null; then
        same "$name: the kernel shows the same" "$(cat ours)" "$(record "$k")"
        umount "$k"
    else
        skip "$name: the kernel's mount ($HOW)" fine
    fi
}

volume ext2 8M -t ext2 -b 1024
volume ext3 16M -t ext3 -b 1024
volume ext4 32M -t ext4
volume ext4-bigalloc 64M -t ext4 -O bigalloc
volume ext4-inline 32M -t ext4 -O inline_data

# The server dies at a random moment: what was synced is there, and the volume is clean after the replay.
rm -f v.img
truncate -s 64M v.img
mke2fs -q -F -t ext4 -E "root_owner=$(id -u):$(id -g)" v.img
for round in $(seq 1 "${KILLS:-4}"); do
    "$BIN/umfuseext2" v.img "$m" -o rw -f 2>/dev/null &
    server=$!
    until_true 10 mounted "$m"
    (
        head -c $((RANDOM * 30)) /dev/urandom >"$m/synced $round"
        sync "$m/synced $round" && sha256sum <"$m/synced $round" >"sum.$round"
        number=0
        while number=$((number + 1)); do
            mkdir "$m/dir $round $number" && head -c $((RANDOM * 4)) /dev/urandom >"$m/dir $round $number/file" &&
                mv "$m/dir $round $number/file" "$m/file $number" && rmdir "$m/dir $round $number" || exit
            [ $((number % 3)) != 0 ] || rm -f "$m/file $((number / 2))"
        done
    ) 2>/dev/null &
    worker=$!
    until_true 20 test -s "sum.$round"
    sleep "0.$((RANDOM % 9 + 1))"
    kill -9 "$server"
    wait "$server" 2>/dev/null
    # Before the mount goes: afterwards it would go on in the directory below.
    kill "$worker" 2>/dev/null
    wait "$worker" 2>/dev/null
    umount -l "$m" 2>/dev/null || fusermount3 -uz "$m" 2>/dev/null
    until_true 10 not_mounted "$m"
    check "killed $round: is mounted, the journal replayed" "$BIN/umfuseext2" v.img "$m" -o rw
    for before in $(seq 1 "$round"); do
        same "killed $round: what was synced in round $before is there" "$(cat "sum.$before")" "$(sha256sum <"$m/synced $before")"
    done
    unmount
    settled
    check "killed $round: e2fsck finds nothing" e2fsck -fn v.img
done
