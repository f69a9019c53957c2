#!/bin/bash
# FAT and exFAT, written through a mount, and judged by fsck and mtools.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
fsx=$(realpath "$(dirname "$0")/../fsx")
cd "$TMP" || exit 1
export PATH=$PATH:/usr/sbin:/sbin MTOOLS_SKIP_CHECK=1 LC_ALL=C.UTF-8
mkdir m
m=$TMP/m

if ! "$VEDUTA" doctor --json | grep -q '"can_mount": true'; then
    skip "mounts: this machine allows none ($HOW)"
    exit
fi

unmount() { umount "$m" 2>/dev/null || fusermount3 -u "$m" 2>/dev/null || "$VEDUTA" umount "$m"; }
# The image is free when the server has let go of it.
settled() { until_true 10 bash -c "! pgrep -f 'umfusefat .* $m( |\$)'"; }
remount() { unmount && settled && "$BIN/umfusefat" v.img "$m" "$@"; }

volume() { # NAME SIZE PROGRAM OPTION...
    local name=$1 size=$2 fsck=fsck.fat sum1 sum2
    shift 2
    [ "$1" = mkfs.fat ] || fsck=fsck.exfat
    if ! command -v "$1" >/dev/null || ! command -v mcopy >/dev/null; then
        skip "$name: $1 or mtools is missing"
        return
    fi
    # Old content everywhere, for those who show it.
    rm -f v.img
    yes 'old content' | head -c "$size" >v.img
    "$@" v.img >/dev/null 2>&1
    check "$name: is mounted" "$BIN/umfusefat" v.img "$m" -o umask=022
    mkdir -p "$m/dir/sub" "$m/a long name"
    head -c 100000 /dev/urandom >content
    cp content "$m/dir/Größe.bin"
    cp -r "$m/dir" "$m/a long name/copy"
    check "$name: a copy is the same" cmp content "$m/a long name/copy/Größe.bin"
    refuse 1 'not permitted' "$name: no symbolic links" ln -s a "$m/b"
    refuse 1 'not permitted' "$name: no hard links" ln "$m/dir/Größe.bin" "$m/b"
    refuse 1 'Invalid' "$name: no colon in a name" touch "$m/a:b"
    check "$name: a directory moves" mv "$m/dir" "$m/a long name/moved"
    check "$name: any case finds a file" cmp content "$m/A LONG NAME/Moved/GRößE.BIN"
    check "$name: chmod takes the write permission away" chmod a-w "$m/a long name/moved/Größe.bin"
    same "$name: and shows it" 555 "$(stat -c %a "$m/a long name/moved/Größe.bin")"
    sum1=$("$fsx" "$m/fsx one" "${SEED:-1}" 2000 1000000) || fail "$name: fsx, large" "$sum1"
    sum2=$("$fsx" "$m/FSX2" "${SEED:-2}" 2000 30000) || fail "$name: fsx, small" "$sum2"
    check "$name: is mounted again" remount
    same "$name: what fsx wrote is there" "$sum1 $sum2" "$(sha256sum "$m/fsx one" "$m/fsx2" | cut -d ' ' -f 1 | xargs)"
    # Nothing of it is where it was, but it is open.
    exec 9<"$m/fsx one"
    rm "$m/fsx one"
    same "$name: a removed file that is open reads on" "$sum1" "$(sha256sum <&9 | cut -d ' ' -f 1)"
    exec 9<&-
    check "$name: is unmounted" unmount
    settled
    check "$name: $fsck finds nothing" "$fsck" -n v.img
    if [ $fsck = fsck.fat ]; then
        check "$name: mtools reads a file" bash -c 'mtype -i v.img "::/a long name/moved/Größe.bin" | cmp - content'
    fi
}

volume fat12 1474560 mkfs.fat -F 12
volume fat16 20M mkfs.fat -F 16 -s 2
volume fat32 40M mkfs.fat -F 32 -s 1
volume fat32-4k 300M mkfs.fat -F 32 -S 4096 -s 1
volume exfat 16M mkfs.exfat -c 4096
volume exfat-64k 64M mkfs.exfat -c 65536

# The kernel's unmount does not wait for the server; ours does.
if command -v mkfs.fat >/dev/null; then
    truncate -s 8M w.img
    mkfs.fat w.img >/dev/null
    # shellcheck disable=SC2016
    check "veduta umount returns when the image is written" bash -c 'for i in 1 2 3 4 5 6 7 8; do
        "$1" mount w.img "$2" && echo $i >"$2/file$i" && "$1" umount "$2" && fsck.fat -n w.img || exit 1; done' _ "$VEDUTA" "$m"
fi

# Reading without a mount: a tree that forgets the nodes that nobody holds.
if command -v mkfs.fat >/dev/null && command -v mcopy >/dev/null; then
    mkdir -p tree/one/two/three tree/four/five
    for i in 1 2 3 4 5; do echo "$i" | tee "tree/one/file $i" "tree/one/two/three/file $i" >"tree/four/five/file $i"; done
    truncate -s 8M r.img
    mkfs.fat r.img >/dev/null
    mcopy -s -i r.img tree/one tree/four ::/
    check "cp copies all of a volume" "$VEDUTA" cp -r r.img:/ copied
    check "and the same" diff -r tree copied
    same "ls -R lists every directory" "$(find tree -mindepth 1 -type f | wc -l)" "$("$VEDUTA" ls -R r.img | grep -c '^file ')"
fi
