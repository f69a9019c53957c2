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
    # The kernel learns how many blocks there are, though nobody closes the file.
    exec 9>"$m/grows"
    head -c 100000 content >&9
    stat "$m/grows" >seen
    sync -d "$m/grows"
    check "$name: a file that somebody writes to shows its blocks" until_true 5 bash -c "[ \"\$(stat -c %b '$m/grows')\" -ge 196 ]"
    exec 9>&-
    rm "$m/grows"
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

# Fast commits that the kernel left in a journal: replayed by us as by the kernel.
rm -f v.img
truncate -s 64M v.img
if [ "$(id -u)" = 0 ] && mke2fs -q -F -t ext4 -O fast_commit v.img 2>/dev/null && mount -o loop v.img "$k" 2>/dev/null; then
    mkdir "$k/dir" "$k/old"
    for number in $(seq 12); do head -c $((number * 3000)) /dev/urandom >"$k/dir/f$number"; done
    sync -f "$k"
    # Each sync of a file is a fast commit.
    head -c 50000 /dev/urandom >"$k/dir/new" && sync "$k/dir/new"
    printf later | dd of="$k/dir/new" bs=1 seek=100000 conv=notrunc,fsync status=none
    ln "$k/dir/f1" "$k/hard" && sync "$k/hard"
    mv "$k/dir/f2" "$k/renamed" && sync "$k/renamed"
    rm "$k/dir/f3"
    truncate -s 5000 "$k/dir/f4" && sync "$k/dir/f4"
    fallocate -o 30000 -l 100000 "$k/dir/f5" && sync "$k/dir/f5"
    ln -s target "$k/dir/link"
    mkdir "$k/made"
    for number in $(seq 40); do echo "$number" >"$k/made/many $number"; done
    mv "$k/dir/f6" "$k/dir/f7"
    chmod 600 "$k/dir/f8" && sync "$k/made/many 40" "$k/dir/f8"
    commits=$(awk '/ commits$/ { print $1; exit }' "/proc/fs/ext4/$(basename "$(findmnt -no SOURCE "$k")")/fc_info" 2>/dev/null)
    cp v.img theirs.img
    cp v.img ours.img
    umount "$k"
    if [ "${commits:-0}" = 0 ]; then
        skip "fast commits: the kernel makes none"
    else
        # The kernel replays its copy when it is mounted, ours is replayed by us; then both are only looked at.
        mount -o loop theirs.img "$k" && umount "$k"
        check "fast commits: the volume is mounted to be written" "$BIN/umfuseext2" ours.img "$m" -o rw
        check "fast commits: and is written" touch "$m/written"
        rm "$m/written"
        unmount
        settled
        check "fast commits: e2fsck finds nothing" e2fsck -fn ours.img
        mount -o loop,ro theirs.img "$k" && (record "$k") >theirs && umount "$k"
        mount -o loop,ro ours.img "$k" && (record "$k") >ours && umount "$k"
        # The kernel gives directories the time of the replay, and the root was changed by us since.
        plain() { sed -E '/^\. /d; s/^(.* d [0-9 ]+ )[0-9.]+ $/\1/' "$1"; }
        same "fast commits: the tree is the kernel's" "$(plain theirs)" "$(plain ours)"
    fi
    rm -f theirs.img ours.img
else
    skip "fast commits: the kernel's mount ($HOW)" fine
fi

# A file longer than the memory: the driver's own does not grow with it.
if [ -n "${LONG:-}" ]; then
    rm -f v.img
    truncate -s 24G v.img
    mke2fs -q -F -t ext4 -E "root_owner=$(id -u):$(id -g)" v.img
    "$BIN/umfuseext2" v.img "$m" -o rw -f 2>/dev/null &
    server=$!
    until_true 10 mounted "$m"
    check "20 GiB: are written" dd if=/dev/zero of="$m/long" bs=1M count=20480 conv=fsync status=none
    most=$(awk '/^VmHWM/ { print $2 }' "/proc/$server/status")
    same "20 GiB: less than 100 MB of memory ($most KiB)" yes "$([ "$most" -lt 100000 ] && echo yes)"
    unmount
    wait "$server" 2>/dev/null
    check "20 GiB: e2fsck finds nothing" e2fsck -fn v.img
    rm -f v.img
fi

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

# A plain umount(8) does not wait for a server that still writes to the disk; who comes next does.
if [ "$HOW" = user ]; then
    skip "an image is waited for while its mount still writes: a traced program cannot use fusermount3" fine
elif ! command -v strace >/dev/null; then
    skip "strace is missing"
else
    strace -f -o "$TMP/trace" -e trace=fdatasync -e inject=fdatasync:delay_enter=600000 "$BIN/umfuseext2" v.img "$m" -o rw -f &
    tracer=$!
    until_true 20 mounted "$m"; echo slow >"$m/slow"; umount "$m"
    refuse 32 'still writes, was ended: Interrupted' "a wait for an image can be interrupted" timeout --preserve-status -s INT 2 "$BIN/umfuseext2" v.img "$m" -f
    check "an image is waited for while its mount still writes to the disk" "$BIN/umfuseext2" v.img "$m" -o rw
    same "and has what that wrote" slow "$(cat "$m/slow")"
    wait $tracer
    unmount
    settled
    check "and e2fsck finds nothing" e2fsck -fn v.img
    rm -f "$TMP/trace"
fi
