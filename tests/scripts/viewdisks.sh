#!/bin/bash
# Disks in a view: fdisk, mkfs and mount on /dev/hda and its partitions, as whoever runs this. S36 to S42.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
cd "$TMP" || exit 1
export PATH=$PATH:/usr/sbin:/sbin LC_ALL=C.UTF-8

for program in fdisk gdisk parted sfdisk mkfs.ext4 blkid blockdev eatmydata; do
    command -v $program >/dev/null || { skip "disks in a view: $program is missing"; exit; }
done
if ! "$VEDUTA" run -- true 2>/dev/null; then
    skip "views: this machine allows none ($HOW)"
    exit
fi
# in_view SENTENCE: the script on standard input succeeds in a view; it prints `= WORDS EXPECTED` lines for what it compares.
in_view() {
    local out code=0
    cat >script
    out=$("$VEDUTA" run -- timeout 60 bash -e script 2>&1) || code=$?
    if [ "$code" = 0 ]; then pass "$1"; else fail "$1" "exit status $code
$(tail -n 12 <<<"$out")"; fi
}
FAIL_LINES=20
mkdir fs

in_view "S36: a ramdisk is a block device, and ext2 is made and mounted on it" <<'END'
mount -t vudevramdisk -o size=10M none /dev/ramdisk
[ "$(stat -c %A /dev/ramdisk)" = brw------- ]
[ "$(od -x /dev/ramdisk | tail -n 1)" = 50000000 ]
mkfs.ext2 -q /dev/ramdisk
mount -t vufuseext2 -o ro /dev/ramdisk fs
[ "$(ls fs)" = lost+found ]
umount fs
END

truncate -s 200M gpt.img
printf 'g\nn\n\n\n+100M\nn\n\n\n\nw\n' | eatmydata fdisk gpt.img >/dev/null
in_view "S37: a GPT by fdisk, an ext4 in its second partition" <<'END'
mount -t vudevpartx "$PWD/gpt.img" /dev/hda
mkfs.ext4 -q /dev/hda2
mount -t vufuseext2 -o ro /dev/hda2 fs
[ "$(ls fs)" = lost+found ]
[ "$(blkid -p -o value -s TYPE /dev/hda2)" = ext4 ]
END
check "S37: what was made is in the image" bash -c "'$VEDUTA' disk list gpt.img | grep -q ext4"

truncate -s 1G zero.img
in_view "S38: gdisk makes partitions inside the view, and each is used" <<'END'
mount -t vudevpartx "$PWD/zero.img" /dev/hda
printf 'o\ny\nn\n\n\n+200M\n\nn\n\n\n\n\nw\ny\n' | eatmydata gdisk /dev/hda >/dev/null
[ "$(echo /dev/hda?)" = '/dev/hda1 /dev/hda2' ]
[ "$(blockdev --getsize64 /dev/hda1)" = $((200 << 20)) ]
for n in 1 2; do
    mkfs.ext4 -q -F /dev/hda$n
    mount -t ext2 -o ro /dev/hda$n fs
    ! blockdev --rereadpt /dev/hda 2>/dev/null
    umount fs
    blockdev --rereadpt /dev/hda
done
END

truncate -s 10M mbr.img
in_view "S39: an MBR by fdisk, with a logical partition" <<'END'
mount -t umdevmbr "$PWD/mbr.img" /dev/hda 2>/dev/null
printf 'o\nn\np\n1\n\n+2M\nn\ne\n2\n\n\nn\n\n\nw\n' | eatmydata fdisk /dev/hda >said 2>&1
grep -q 'Calling ioctl() to re-read partition table' said
! grep -q 'failed' said
mkfs.ext2 -q /dev/hda1
mkfs.ext3 -q /dev/hda5 2>said
! grep -q 'geometry' said
mount -t umfuseext2 -o ro /dev/hda5 fs
[ "$(ls fs)" = lost+found ]
umount fs
umount /dev/hda
! test -e /dev/hda5
END

in_view "S40: a name that the host lacks, or has, is the disk's while it is mounted" <<'END'
! fdisk -l /dev/hdq 2>/dev/null
mount -t mbr "$PWD/gpt.img" /dev/hdq
fdisk -l /dev/hdq | grep -q '/dev/hdq2'
umount /dev/hdq
mount -t mbr "$PWD/gpt.img" /dev/null
sfdisk -l /dev/null | grep -q 'Disklabel type: gpt'
umount /dev/null
[ -c /dev/null ]
END

in_view "the ioctls of blockdev are answered" <<'END'
mount -t ramdisk -o size=64M,mbr,sector=4096,mode=640,major=3,minor=0 none /dev/hda
[ "$(stat -c '%A %t:%T' /dev/hda)" = 'brw-r----- 3:0' ]
[ "$(blockdev --getsz --getsize64 --getss --getpbsz --getiomin --getalignoff --getro --getra --getbsz /dev/hda | xargs)" = '131072 67108864 4096 4096 4096 0 0 256 4096' ]
blockdev --setra 512 --setro /dev/hda
[ "$(blockdev --getra --getro /dev/hda | xargs)" = '512 1' ]
! dd if=/dev/zero of=/dev/hda count=8 status=none 2>/dev/null
blockdev --setrw --flushbufs /dev/hda
dd if=/dev/zero of=/dev/hda count=8 status=none
END

in_view "parted adds and removes partitions one by one" <<'END'
mount -t ramdisk -o size=64M,mbr none /dev/hda
parted -s /dev/hda mklabel gpt mkpart one 1MiB 20MiB mkpart two 20MiB 40MiB
[ "$(echo /dev/hda?)" = '/dev/hda1 /dev/hda2' ]
parted -s /dev/hda rm 1
[ "$(echo /dev/hda?)" = /dev/hda2 ]
END

if command -v qemu-img >/dev/null; then
    for format in vdi vpc vmdk qcow2; do
        qemu-img convert -f raw -O $format gpt.img d.$format
    done
    in_view "S42: VDI, VHD, VMDK and qcow2 as block devices with partitions" <<'END'
for format in vdi vpc vmdk qcow2; do
    mount -t vudevvdi "$PWD/d.$format" /dev/hda
    [ "$(blkid -p -o value -s TYPE /dev/hda2)" = ext4 ]
    mkfs.ext2 -q -F -L "$format" /dev/hda1
    umount /dev/hda
done
END
    for format in vdi vmdk qcow2; do
        check "S42: $format: qemu-img finds nothing wrong" qemu-img check -q -f $format d.$format
        check "S42: $format: what was written is there" bash -c "'$VEDUTA' info d.$format | grep -q $format"
    done
fi
