#!/bin/bash
# Disks in files of all formats, mounted, converted and served: S42, B5 and B9, judged by qemu-img and libnbd.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
cd "$TMP" || exit 1
export PATH=$PATH:/usr/sbin:/sbin LC_ALL=C.UTF-8
m=$TMP/m
mkdir "$m" fs

for program in sfdisk mkfs.ext4 mkfs.fat mcopy eatmydata qemu-img nbdinfo nbdcopy; do
    command -v $program >/dev/null || { skip "images: $program is missing"; exit; }
done
can_mount=$("$VEDUTA" doctor --json | grep -c '"can_mount": true')
unmount() { umount "$1" 2>/dev/null || fusermount3 -u "$1" 2>/dev/null || "$VEDUTA" umount "$1"; }
released() { until_true 30 bash -c "exec 9<>'$1'; flock -n 9"; }

# A disk with a FAT and an ext4.
truncate -s 48M disk.raw
printf 'label: gpt\nsize=16M, name=boot\nname=root\n' | eatmydata sfdisk -q disk.raw >/dev/null 2>&1
mkfs.fat --offset 2048 -n BOOT disk.raw 16384 >/dev/null 2>&1
echo 'in the image' >readme
mcopy -i disk.raw@@1M readme ::
truncate -s 30M root.raw
mkdir tree
head -c 3000000 /dev/urandom >tree/noise
mkfs.ext4 -q -L root -d tree root.raw
dd if=root.raw of=disk.raw bs=1M seek=17 conv=notrunc status=none

# --- conversions both ways
for format in qcow2 vdi vhd vhd-fixed vhdx vmdk; do
    qemu=$format
    case $format in vhd | vhd-fixed) qemu=vpc ;; esac
    check "$format: is made from a raw image" "$VEDUTA" disk convert -f $format disk.raw d.$format
    check "$format: qemu-img finds the same in it" qemu-img compare -f $qemu -F raw d.$format disk.raw
    [ $qemu = vpc ] || check "$format: and nothing wrong" qemu-img check -q -f $qemu d.$format
    check "$format: back to raw" "$VEDUTA" disk convert -f raw d.$format back.raw
    check "$format: nothing is lost" cmp back.raw disk.raw
    rm -f back.raw
    check "B5: $format: info names it" bash -c "'$VEDUTA' info --json d.$format | grep -q '\"format\": \"${format%-fixed}\"'"
    check "B5: $format: a file of a partition is read without a mount" bash -c "'$VEDUTA' cat d.$format#1:/readme | cmp - readme"
done
refuse 2 'exists' "what is there is not written over" "$VEDUTA" disk convert -f qcow2 disk.raw d.qcow2
refuse 1 'unknown format' "an unknown format is named" "$VEDUTA" disk convert -f nonsense disk.raw x
check "a compressed image is read" bash -c "gzip -k d.qcow2 && '$VEDUTA' cat d.qcow2.gz#1:/readme | cmp - readme"
check "B5: info lists the layers" bash -c "'$VEDUTA' info --json d.qcow2.gz | tr -d ' \n' | grep -q '\"format\":\"gzip\".*\"format\":\"qcow2\".*\"format\":\"gpt\"'"
same "disk list --json has the filesystems" "vfat ext4" \
    "$("$VEDUTA" disk list --json d.vdi | python3 -c 'import json, sys; print(*[p["filesystem"] for p in json.load(sys.stdin)["partitions"]])')"
check "disk create makes an image over another" "$VEDUTA" disk create -f qcow2 -b d.vmdk top.qcow2
check "qemu-img finds the same in it" qemu-img compare -f qcow2 -F raw top.qcow2 disk.raw
check "disk create: and one of 1 TiB" "$VEDUTA" disk create -f qcow2 1T big.qcow2
check "qemu-img finds nothing wrong" qemu-img check -q big.qcow2
refuse 1 'size' "disk create wants a size" "$VEDUTA" disk create -f qcow2 none.qcow2
qemu-img create -q -f qcow2 -F raw -b gone.raw orphan.qcow2 1M 2>/dev/null || qemu-img create -q -u -f qcow2 -F raw -b gone.raw orphan.qcow2 1M
refuse 32 'gone.raw' "an image whose base is gone says so" "$VEDUTA" info orphan.qcow2
qemu-img create -q -u -f qcow2 -F qcow2 -b loop.qcow2 pool.qcow2 1M
qemu-img create -q -u -f qcow2 -F qcow2 -b pool.qcow2 loop.qcow2 1M
refuse 32 'below each other' "images over each other are refused" "$VEDUTA" info loop.qcow2

# --- NBD
serve() { # OPTION... SOURCE
    "$VEDUTA" disk serve --nbd "$TMP/sock" "$@" &
    server=$!
    until_true 10 test -S "$TMP/sock"
}
ended() { # SENTENCE
    kill "$server"
    wait "$server"
    same "$1" 0 $?
}
serve d.vhdx
same "NBD: nbdinfo tells the size" $((48 << 20)) "$(nbdinfo --size "nbd+unix:///?socket=$TMP/sock")"
check "NBD: and the holes" bash -c "nbdinfo --map 'nbd+unix:///?socket=$TMP/sock' | grep -q hole"
check "NBD: nbdcopy copies it" nbdcopy "nbd+unix:///?socket=$TMP/sock" copy.raw
check "NBD: the copy is the same" cmp copy.raw disk.raw
check "NBD: qemu-img attaches" qemu-img compare -f raw -F raw "nbd+unix:///?socket=$TMP/sock" disk.raw
ended "NBD: the server ends on a signal"
check "NBD: and its socket is gone" test ! -e "$TMP/sock"
"$VEDUTA" disk create -f qcow2 48M served.qcow2
serve served.qcow2
check "NBD: nbdcopy writes to it, with several connections" nbdcopy disk.raw "nbd+unix:///?socket=$TMP/sock"
ended "NBD: the server ends"
check "NBD: what was written is there" qemu-img compare -f qcow2 -F raw served.qcow2 disk.raw
check "NBD: qemu-img finds nothing wrong" qemu-img check -q served.qcow2
serve --read-only --once d.vdi
refuse 1 'read.only|Read-only|not permitted|not allowed' "NBD: a read-only disk is not written" \
    nbdcopy disk.raw "nbd+unix:///?socket=$TMP/sock"
until_true 10 test ! -e "$TMP/sock"
wait "$server"
same "NBD: --once ends with its client" 0 $?

truncate -s 4G large.raw
check "an image of nothing but holes is made" "$VEDUTA" disk convert -f vdi large.raw large.vdi
check "and is small" test "$(du -m large.vdi | cut -f 1)" -lt 4
head -c 200M /dev/urandom >noise.raw
"$VEDUTA" disk convert -f qcow2 noise.raw interrupted.qcow2 &
server=$!
until_true 5 bash -c 'find . -name ".veduta-*" | grep -q .'
kill $server
wait $server
same "a conversion that is ended leaves nothing" "" "$(find . -name '.veduta-*' -o -name interrupted.qcow2)"
rm -f noise.raw

if [ "$can_mount" = 0 ]; then
    skip "mounts: this machine allows none ($HOW)"
    exit
fi

# --- S42: each format mounted, with its partitions, and written
for format in qcow2 vdi vhd vhdx vmdk; do
    qemu=$format
    [ $format = vhd ] && qemu=vpc
    check "S42: $format: is mounted as a disk" "$BIN/umdevmbr" d.$format "$m"
    same "S42: $format: with its partitions" "disk disk1 disk2" "$(cd "$m" && echo disk*)"
    same "S42: $format: by label" ../disk2 "$(readlink "$m/by-label/root")"
    check "S42: $format: the whole is the same" cmp "$m/disk" disk.raw
    unmount "$m"
    released d.$format
    check "B5: $format: a partition is mounted" "$VEDUTA" mount d.$format#1 "$m"
    check "B5: $format: read" cmp "$m/readme" readme
    check "B5: $format: and written" cp tree/noise "$m/noise"
    unmount "$m"
    released d.$format
    check "B5: $format: what was written is there" bash -c "'$VEDUTA' cat d.$format#1:/noise | cmp - tree/noise"
    [ $qemu = vpc ] || check "B5: $format: qemu-img finds nothing wrong" qemu-img check -q -f $qemu d.$format
done
# mke2fs on 1 TiB touches megabytes.
for image in big.qcow2 big.raw; do
    [ $image = big.qcow2 ] || truncate -s 1T $image
    "$BIN/umdevmbr" $image "$m" 2>/dev/null
    check "mke2fs works on a $image of 1 TiB" mkfs.ext4 -q -E lazy_itable_init=1 "$m/disk"
    unmount "$m"
    released $image
    check "and touches megabytes of it" test "$(du -m $image | cut -f 1)" -lt 300
    echo "# $image after mke2fs: $(du -m $image | cut -f 1) MiB"
done
check "qemu-img finds nothing wrong with it" qemu-img check -q big.qcow2
refuse 1 '#1 .*#2 ' "B5: several filesystems are listed" "$VEDUTA" mount disk.raw "$m"
check "B5: -o part= takes one" "$VEDUTA" mount -o part=2 disk.raw "$m"
check "B5: and shows it" cmp "$m/noise" tree/noise
unmount "$m"
released disk.raw
truncate -s 48M one.raw
printf 'label: gpt\nsize=16M\nname=root\n' | eatmydata sfdisk -q one.raw >/dev/null 2>&1
dd if=root.raw of=one.raw bs=1M seek=17 conv=notrunc status=none
check "B5: the only filesystem of a disk is mounted" "$VEDUTA" mount one.raw "$m"
check "B5: it is that one" cmp "$m/noise" tree/noise
unmount "$m"
released one.raw
sum=$(sha256sum <d.qcow2)
check "a throw-away layer is mounted" "$VEDUTA" mount -o snapshot d.qcow2#1 "$m"
check "it is written" cp tree/noise "$m/more"
check "and shows what was written" cmp tree/noise "$m/more"
unmount "$m"
released d.qcow2
same "the image is as it was" "$sum" "$(sha256sum <d.qcow2)"
refuse 32 'being written' "an image that is being written is refused" bash -c \
    "exec 9<>d.qcow2; flock 9; '$VEDUTA' mount d.qcow2#1 '$m'"
