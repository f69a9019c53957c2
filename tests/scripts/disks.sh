#!/bin/bash
# Disks without a view: partitions and ramdisks as files, with fdisk and mkfs working on them. S36 to S42, B5 and B9 as far as FUSE goes.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
cd "$TMP" || exit 1
export PATH=$PATH:/usr/sbin:/sbin LC_ALL=C.UTF-8
m=$TMP/m
mkdir "$m" fs

if ! "$VEDUTA" doctor --json | grep -q '"can_mount": true'; then
    skip "mounts: this machine allows none ($HOW)"
    exit
fi
for program in sfdisk sgdisk parted mkfs.ext4 mkfs.fat eatmydata blkid; do
    command -v $program >/dev/null || { skip "disks: $program is missing"; exit; }
done
unmount() { umount "$1" 2>/dev/null || fusermount3 -u "$1" 2>/dev/null || "$VEDUTA" umount "$1"; }
# The image is free when the server has let go of it.
released() { until_true 30 bash -c "exec 9<>'$1'; flock -n 9"; }
quiet() { "$@" >/dev/null 2>&1; }

# --- S36: a ramdisk
check "S36: a ramdisk is mounted" "$BIN/umdevramdisk" -o size=10M none "$m"
same "S36: it has its size" $((10 << 20)) "$(stat -c %s "$m/disk")"
same "S36: and is all zeros" 50000000 "$(od -x "$m/disk" | tail -n 1)"
check "S36: mkfs.ext2 makes a filesystem on it" mkfs.ext2 -q "$m/disk"
check "S36: which is mounted from there" "$VEDUTA" mount -o ro "$m/disk" fs
same "S36: with its lost+found" lost+found "$(ls fs)"
unmount fs
released "$m/disk"
check "S36: the ramdisk is unmounted" unmount "$m"
refuse 1 'size' "a ramdisk has at least a sector" "$BIN/umdevramdisk" -o size=1 none "$m"
check "a ramdisk of 1 TiB is mounted" "$BIN/umdevramdisk" -o size=1T none "$m"
check "mke2fs works on it" mkfs.ext4 -q -E lazy_itable_init=1 "$m/disk"
memory=$(for pid in $(pgrep -f "umdevramdisk.* $m\$"); do
    for fd in "/proc/$pid/fd"/*; do case $(readlink "$fd") in *memfd:ramdisk*) stat -L -c '%b' "$fd" ;; esac; done
done | sort -n | tail -n 1)
echo "# 1 TiB ramdisk after mke2fs: ${memory:-?} sectors of memory"
check "and it costs megabytes" test "${memory:-999999999}" -lt 600000
unmount "$m"

# --- S37: GPT by sfdisk, made and used
truncate -s 200M disk.img
check "S37: sfdisk makes a GPT" bash -c 'printf "label: gpt\nsize=100M, name=first\nname=second\n" | eatmydata sfdisk -q disk.img'
check "S37: the disk is mounted" "$BIN/umdevmbr" disk.img "$m"
same "S37: with its partitions" "by-label by-partuuid by-uuid disk disk1 disk2 info" "$(cd "$m" && echo *)"
same "S37: of the right size" "$((100 << 20))" "$(stat -c %s "$m/disk1")"
check "S37: mkfs.ext4 makes a filesystem in one" mkfs.ext4 -q -L root "$m/disk2"
check "S37: mkfs.fat in the other" mkfs.fat -n BOOT "$m/disk1"
same "the links name them" "../disk1 ../disk2" "$(readlink "$m/by-label/BOOT" "$m/by-label/root" | xargs)"
same "by UUID as blkid has it" ../disk2 "$(readlink "$m/by-uuid/$(blkid -p -o value -s UUID "$m/disk2")")"
same "by PARTUUID as sfdisk has it" ../disk1 "$(readlink "$m/by-partuuid/$(sfdisk --part-uuid disk.img 1 | tr A-F a-f)")"
check "info names them" grep -q 'disk2: .*fstype=ext4 label="root"' "$m/info"
check "S37: a filesystem is mounted from its partition" "$VEDUTA" mount -o ro "$m/disk2" fs
same "S37: with its lost+found" lost+found "$(ls fs)"
unmount fs
released "$m/disk2"
refuse 1 'Permission|not permitted' "info is not to be written" bash -c "echo x >'$m/info'"
refuse 1 'space' "nothing is written behind the end" dd if=/dev/zero of="$m/disk1" bs=1M count=2 seek=99 conv=notrunc status=none
check "a partition is zeroed by fallocate" fallocate -p -o 0 -l 1M "$m/disk1"
check "and reads so" cmp -n 1048576 "$m/disk1" /dev/zero

# --- S38: the table is rewritten in place, and the partitions follow
exec 9<"$m/disk1"
printf 'label: gpt\nsize=20M\nsize=30M\nsize=40M\n' | quiet eatmydata sfdisk --no-reread --no-tell-kernel "$m/disk"
same "S38: partitions stay while one is open" $((100 << 20)) "$(stat -c %s "$m/disk1")"
refuse 1 'busy' "S38: and asking for them is refused" blockdev --rereadpt "$m/disk"
exec 9<&-
until_true 5 test -e "$m/disk3"
same "S38: then they follow" "$((20 << 20)) $((30 << 20)) $((40 << 20))" "$(stat -c %s "$m"/disk[1-3] | xargs)"
quiet eatmydata sgdisk -n 4:0:+10M "$m/disk"
same "sgdisk's partition appears" $((10 << 20)) "$(stat -c %s "$m/disk4")"
quiet eatmydata parted -s "$m/disk" rm 1
same "parted's does not any more" "disk2 disk3 disk4" "$(cd "$m" && echo disk?)"
check "asking for what nobody has open is granted" blockdev --rereadpt "$m/disk"
unmount "$m"
released disk.img
check "sgdisk finds nothing wrong" eatmydata sgdisk -v disk.img

# --- B9: GPT from the backup, repaired on request; sectors of 4096 bytes
dd if=/dev/zero of=disk.img bs=512 count=1 seek=1 conv=notrunc status=none
check "B9: a GPT with a zeroed primary is mounted" "$BIN/umdevmbr" -o ro disk.img "$m"
same "B9: and lists" "disk2 disk3 disk4" "$(cd "$m" && echo disk?)"
unmount "$m"
released disk.img
check "B9: it is repaired on request" "$BIN/umdevmbr" -o repair disk.img "$m"
unmount "$m"
released disk.img
check "B9: sgdisk finds nothing wrong then" bash -c "eatmydata sgdisk -v disk.img | grep -q 'No problems found'"
dd if=/dev/zero of=disk.img bs=512 count=1 seek=409599 conv=notrunc status=none
check "B9: the backup too" "$BIN/umdevmbr" -o repair disk.img "$m"
unmount "$m"
released disk.img
check "B9: sgdisk agrees" bash -c "eatmydata sgdisk -v disk.img | grep -q 'No problems found'"
rm -f big.img
truncate -s 100M big.img
check "sectors of 4096 bytes: the disk is mounted" "$BIN/umdevramdisk" -o size=100M,mbr,sector=4096 none "$m"
unmount "$m"

# --- S39: MBR with a logical partition
truncate -s 10M mbr.img
check "S39: an empty image is mounted, with a word about it" bash -c "'$BIN/umdevmbr' mbr.img '$m' 2>&1 | grep -q 'no partition table'"
printf 'label: dos\nstart=2048, size=4096, type=83\nstart=6144, type=5\nstart=8192, size=8192, type=83\n' |
    quiet eatmydata sfdisk --no-reread --no-tell-kernel "$m/disk"
same "S39: the partitions appear" "disk1 disk2 disk5" "$(cd "$m" && echo disk?)"
check "S39: mkfs.ext3 works on the logical one" mkfs.ext3 -q "$m/disk5"
check "S39: it is mounted" "$VEDUTA" mount -o ro "$m/disk5" fs
same "S39: with its lost+found" lost+found "$(ls fs)"
unmount fs
released "$m/disk5"
unmount "$m"
released mbr.img
# The second logical partition's link leads back to the first.
truncate -s 20M loop.img
printf 'label: dos\nstart=2048, size=30000, type=5\nstart=4096, size=2048\nstart=8192, size=2048\n' | quiet eatmydata sfdisk loop.img
python3 - <<'PY'
with open("loop.img", "r+b") as f:
    f.seek(2048 * 512 + 446 + 16); link = bytearray(f.read(16))
    start = int.from_bytes(link[8:12], "little")
    f.seek((2048 + start) * 512 + 446 + 16); f.write(bytes(link))
PY
refuse 32 'turns back' "a chain that loops is refused by name" "$BIN/umdevmbr" loop.img "$m"
check "but can be looked at" "$BIN/umdevmbr" -o ro loop.img "$m"
unmount "$m"

# --- S41: a board image, one file of its boot partition changed
if command -v mcopy >/dev/null; then
    truncate -s 64M board.img
    printf 'label: dos\nstart=8192, size=65536, type=c\n' | quiet eatmydata sfdisk board.img
    mkfs.fat --offset 8192 -F 16 board.img 32768 >/dev/null 2>&1
    echo old >config.txt
    mcopy -i board.img@@4M config.txt ::
    cp board.img before.img
    check "S41: the board image is mounted" "$BIN/umdevmbr" board.img "$m"
    check "S41: and its boot partition from there" "$VEDUTA" mount "$m/disk1" fs
    check "S41: a file is edited" bash -c 'echo new >fs/config.txt'
    unmount fs
    released "$m/disk1"
    unmount "$m"
    released board.img
    same "S41: it stays changed" new "$(mtype -i board.img@@4M ::config.txt)"
    check "S41: what lies outside the partition is as it was" cmp -n 4194304 board.img before.img
    check "S41: behind it too" cmp -i $(((8192 + 65536) * 512)) board.img before.img
else
    skip "S41: mtools are missing"
fi
