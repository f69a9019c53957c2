#!/bin/bash
# Drivers together, in a view: images in encrypted directories in remote ones, and copy on write over the whole tree. No FUSE, no
# namespace and no privilege is used, so every part runs as root and as an ordinary user alike.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
cd "$TMP" || exit 1
PATH=$(dirname "$VEDUTA"):/usr/sbin:/sbin:$PATH
view() { timeout -k 2 60 "$VEDUTA" run --no-rc "$@"; }
sftp=
for place in /usr/lib/openssh/sftp-server /usr/libexec/openssh/sftp-server; do [ -x "$place" ] && sftp=$place; done

# S24: an ext2 image, made, mounted, written and checked by an ordinary user with ordinary programs.
cat >s24.sh <<'END'
set -e
truncate -s 10M img.ext2; mkfs.ext2 -q -F img.ext2
mount -t ext2 -o rw+ img.ext2 mnt; ls mnt
echo ciao >mnt/greetings; umount mnt; ls mnt
mount -t ext2 -o rw+ "$PWD/img.ext2" mnt; cat mnt/greetings; umount mnt
END
mkdir mnt
same "S24 ext2 image written by mount(8), echo and umount(8)" $'lost+found\nciao' "$(view -- sh s24.sh 2>&1)"
check "S24 it is clean for e2fsck" e2fsck -fn img.ext2
same "S24 one file more than the eleven of an empty image" 12 "$(e2fsck -fn img.ext2 2>/dev/null | sed -n 's|.*: \([0-9]*\)/.* files.*|\1|p')"
same "S24 outside nothing is mounted" "" "$(ls mnt)"

# S31: an encrypted directory, read and written in a view, and read by its own program.
printf 'secret\n' >pw
mkdir enc plain remote
check "an encrypted directory is made" "$VEDUTA" encfs init --passfile pw --scrypt-cost 10 enc
mkdir -p tree; echo hallo >tree/ciao; truncate -s 8M tree/linux.img; mkfs.ext2 -q -F tree/linux.img
same "S31 files are copied into it in a view" $'ciao\nlinux.img' \
    "$(view --mount "encfs:$TMP/enc:$TMP/plain:passfile=$TMP/pw" -- sh -c 'cp tree/* plain/ && ls plain' 2>&1)"
same "the password is what a program outside prints" $'ciao\nlinux.img' \
    "$(view --mount "encfs:$TMP/enc:$TMP/plain:extpass=cat $TMP/pw" -- ls plain 2>&1)"
same "or what one inside prints" $'ciao\nlinux.img' \
    "$(view -- bash -c "mount -t encfs -o passfile=<(cat '$TMP/pw') '$TMP/enc' '$TMP/plain' && ls plain" 2>&1)"
same "a program that a mount inside names is not run" refused \
    "$(view -- sh -c "mount -t encfs -o 'extpass=touch $TMP/ran; cat $TMP/pw' '$TMP/enc' '$TMP/plain' || echo refused; ls plain" 2>&1 | grep -v 'is not run:\|^mount: \|^ *dmesg(1)'; ls ran 2>/dev/null)"
same "S31 outside there is only what is encrypted" "" "$(ls plain; grep -rl hallo enc)"

# S30 and S32: the same over SFTP; and an image in it, mounted over the mount point of the remote tree itself.
if [ -n "$sftp" ]; then
    printf '#!/bin/sh\nexec %s\n' "$sftp" >ssh
    chmod 755 ssh
    cat >s32.sh <<'END'
set -e
mount -t umfusessh -o "ssh_command=$PWD/ssh" "localhost:$PWD/enc" "$PWD/remote"
test -f remote/gocryptfs.conf
mount -t umfuseencfs -o "pre=,passfile=$PWD/pw" "$PWD/remote" "$PWD/plain"
ls plain
mount -t umfuseext2 -o rw+ "$PWD/plain/linux.img" "$PWD/remote"
ls remote
echo deep >remote/deep; sync; cat remote/deep
umount remote; test -f remote/gocryptfs.conf; umount plain; umount remote
END
    same "S32 ext2 in encfs in sshfs, over the sshfs mount point" $'ciao\nlinux.img\nlost+found\ndeep' "$(view -- sh s32.sh 2>&1)"
    same "S32 what was written went all the way down" $'lost+found\ndeep' \
        "$(view --mount "encfs:$TMP/enc:$TMP/plain:passfile=$TMP/pw" -- sh -c 'veduta ls plain/linux.img | sort -r' 2>&1)"
    # In most containers every process has a filter: a driver's own program is not taken for one of the view.
    same "a view in a container ends, though ssh still runs" ciao "$(timeout -k 2 20 "${0%/*}/../filtered" \
        "$VEDUTA" run --no-rc -- sh -c 'mount -t umfusessh -o ssh_command=$PWD/ssh "localhost:$PWD/tree" remote; ls remote | head -n 1' 2>&1)"
else
    skip "S32 needs an SFTP server"
fi

# B4, S17: a copy-on-write layer over a directory, and over the whole tree.
mkdir base; echo one >base/one; echo two >base/two; echo three >base/three
cat >b4.sh <<'END'
echo more >>base/one; rm base/two; mkdir base/new; echo x >base/new/file; chmod 600 base/three; ln -s one base/link
ls base; cat base/one
END
same "B4 the command sees what it changed" $'link\nnew\none\nthree\none\nmore' "$(view --cow try --over "$TMP/base" -- sh b4.sh 2>&1)"
same "B4 outside nothing has changed" $'one\nthree\ntwo' "$(ls base)"
same "B4 veduta diff tells exactly that" $'A link\nA new/\nA new/file\nD two\nM one\nP three' \
    "$("$VEDUTA" diff try 2>&1 | sed 's/ -> .*//; s/\(P [^ ]*\) .*/\1/' | sort)"
check "B4 and commits it" "$VEDUTA" commit try
same "B4 which is then there" $'link\nnew\none\nthree\nmore' "$(ls base; tail -n 1 base/one)"
same "S17 a file of the system is gone in the view" "gone" "$(view --cow try2 -- sh -c 'rm -f /etc/hostname && test ! -e /etc/hostname && echo gone' 2>&1 | tail -n 1)" 
check "S17 and there outside" test -e /etc/hostname
check "B4 what is not wanted is thrown away" "$VEDUTA" discard try2

# A root of its own, for somebody who is root only in the view.
if busybox=$(command -v busybox) && ! ldd "$busybox" 2>/dev/null | grep -q '=>'; then
    mkdir -p root/bin root/etc
    cp "$busybox" root/bin/busybox
    for name in sh ls cat pwd; do ln -s busybox "root/bin/$name"; done
    echo 3.12.0 >root/etc/alpine-release
    same "S23 chroot into a tree, in a view, as anybody" $'/\n3.12.0\nbin\netc' \
        "$(view --root --mount "bind:$TMP/root:$TMP/mnt" -- chroot mnt /bin/sh -c 'pwd; cat etc/alpine-release; ls /' 2>&1)"
else
    skip "S23 needs a static busybox"
fi
