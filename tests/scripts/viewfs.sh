#!/bin/bash
# Trees laid over each other: the family's scenarios S10 to S20, S22 and S23, the cases of unionmount, and overlayfs as the judge.
# shellcheck source=tests/lib.sh disable=SC2010,SC2011 # names are plain here
. "$(dirname "$0")/../lib.sh"
oracle=$(realpath "$(dirname "$0")/../union-oracle")
kill=$(realpath "$(dirname "$0")/../union-kill")
fsx=$(realpath "$(dirname "$0")/../fsx")
filtered=$(realpath "$(dirname "$0")/../filtered")
cd "$TMP" || exit 1
export LC_ALL=C.UTF-8
V=$BIN/umviewfs
umask 022

if ! "$VEDUTA" doctor --json | grep -q '"can_mount": true'; then
    skip "mounts: this machine allows none ($HOW)"
    exit
fi

# A mount ends with its server: then the upper layer is free.
server() { pgrep -f "umviewfs .*$1( |\$)"; }
unmount() {
    umount "$1" 2>/dev/null || fusermount3 -u "$1" 2>/dev/null || "$VEDUTA" umount "$1"
    until_true 10 bash -c "! pgrep -f 'umviewfs .*$1( |\$)'"
}
tree_hash() { (cd "$1" && find . -printf '%p %m %n %s %T@ %l\n' | sort && find . -type f -print0 | sort -z | xargs -0r sha256sum) | sha256sum; }
fresh() {
    rm -rf a b && mkdir a b b/d b/d/sub
    echo lower >b/f; echo below >b/d/g; echo deep >b/d/sub/h
    echo one >b/x; ln b/x b/y; ln -s f b/link
    setfattr -n user.k -v v b/f 2>/dev/null
}

# --- S10 to S13: the modes
fresh; echo A >a/n
check "S10 bind: is mounted" "$V" "$TMP/a" "$TMP/b"
same "S10 bind: A's content is in B" n "$(ls b)"
echo w >b/w
unmount "$TMP/b"
same "S10 bind: what was written is in A" "n w" "$(ls a | xargs)"

fresh; echo A >a/n; echo upper >a/f; mkdir a/only
check "S11 merge: is mounted" "$V" -o merge "$TMP/a" "$TMP/b"
same "S11 merge: all names" "d f link n only x y" "$(ls b | xargs)"
same "S11 merge: A wins" upper "$(cat b/f)"
refuse 1 'Read-only' "S11 merge: A is not written" bash -c "echo z >>b/f"
refuse 1 'Read-only' "S11 merge: nor removed" rm -f b/n
echo new >b/new; echo in >b/only/in; echo more >>b/x
unmount "$TMP/b"
same "S11 merge: what is new is in B" "new in more" "$(cat b/new b/only/in | xargs) $(tail -n 1 b/x)"
same "S11 merge: A is as it was" "A upper" "$(cat a/n a/f | xargs)"
rm -rf b/only

fresh; before=$(tree_hash b)
check "S12 cow: is mounted" "$V" -o cow "$TMP/a" "$TMP/b"
echo more >>b/f; rm b/x; rm -r b/d; echo new >b/n; chmod 600 b/link 2>/dev/null; mv b/y b/z
same "S12 cow: the changes are seen" "f link n z" "$(ls b | xargs)"
same "S12 cow: the copy is whole" "lower more" "$(xargs <b/f)"
if command -v getfattr >/dev/null && getfattr -n user.k b/f >/dev/null 2>&1; then
    same "S12 cow: its attributes too" v "$(getfattr --only-values -n user.k b/f)"
fi
unmount "$TMP/b"
same "S12 cow: B is as it was" "$before" "$(tree_hash b)"
check "S12 cow: mounted again" "$V" -o cow "$TMP/a" "$TMP/b"
same "S12 cow: the changes are still there" "f link n z" "$(ls b | xargs)"
unmount "$TMP/b"

if [ "$HOW" = user ]; then
    # --- S13, S16 to S18: files of root's, edited by a user who may not
    rm -rf a; mkdir a
    passwd=$(id -un 2>/dev/null || echo nobody)
    rm -rf m; mkdir m
    check "S16 mincow: over /etc" "$V" -o "mincow,lowerdir=/etc" "$TMP/a" "$TMP/m"
    if [ -e /etc/passwd ]; then
        grep -v "^$passwd:" /etc/passwd >m/passwd.new && cat m/passwd.new >m/passwd
        same "S16 mincow: a line of a file of root's is gone" 0 "$(grep -c "^$passwd:" m/passwd)"
        check "S16 mincow: outside it is there" grep -q "^$passwd:" /etc/passwd
        check "S18 mincow: chmod of a file of root's" chmod 600 m/passwd
        same "S18 mincow: shows" 600 "$(stat -c %a m/passwd)"
    fi
    check "S17 mincow: a file of root's is removed" rm -f m/hostname m/group
    refuse 2 'No such file' "S17 mincow: and gone" ls m/group
    check "S17 mincow: outside it is there" test -e /etc/group
    unmount "$TMP/m"
    same "S13 mincow: the forbidden was done in A" "group passwd passwd.new" "$(ls a | grep -v hostname | xargs)"
    rm -rf m
fi
fresh
check "S13 mincow: is mounted" "$V" -o mincow "$TMP/a" "$TMP/b"
echo more >>b/f; echo new >b/n; rm b/x; mv b/d b/e
unmount "$TMP/b"
same "S13 mincow: what is permitted is done in B" "e f link n y" "$(ls b | xargs)"
same "S13 mincow: and A has nothing of it" "" "$(ls -A a)"
# --- S14, S15: parts that show through, or are hidden
fresh; mkdir a/d; echo A >a/n
check "S14 except: is mounted" "$V" -o "bind,except=/d" "$TMP/a" "$TMP/b"
same "S14 except: only what A has" "d n" "$(ls b | xargs)"
same "S14 except: but the real content there" "g sub" "$(ls b/d | xargs)"
echo in >b/d/in
unmount "$TMP/b"
same "S14 except: written through" in "$(cat b/d/in)"
fresh
check "hide: is mounted" "$V" -o "cow,hide=/d/g,hide=/x" "$TMP/a" "$TMP/b"
same "hide: is not listed" "d f link y" "$(ls b | xargs)"
refuse 1 'No such file' "hide: is not found" cat b/d/g
unmount "$TMP/b"
mkdir -p home/me home/you tmphome/me; echo mine >home/me/f
check "S15: one's own home" "$V" "$TMP/home/me" "$TMP/tmphome/me"
check "S15: over all homes" "$V" "$TMP/tmphome" "$TMP/home"
same "S15: the others are hidden" "me mine" "$(ls home) $(cat home/me/f)"
unmount "$TMP/home"; unmount "$TMP/tmphome/me"

# --- S19, S20: whiteouts, renames, links
fresh; mkdir b/many; (cd b/many && seq 10000 | xargs touch)
check "S19: is mounted" "$V" -o cow "$TMP/a" "$TMP/b"
rm -r b/d; mkdir b/d
same "S19: a directory that was made again is empty" "" "$(ls -A b/d)"
unmount "$TMP/b"
"$V" -o cow "$TMP/a" "$TMP/b"
same "S19: also after a new mount" "" "$(ls -A b/d)"
same "S20: ten thousand names, each once" "10000 10000" "$(ls -f b/many | grep -c '^[0-9]') $(ls b/many | sort -u | wc -l)"
check "S20: a directory from below is renamed" mv b/many b/moved
same "S20: and has all its content" 10000 "$(ls b/moved | wc -l)"
check "S20: so is one of its files" mv b/moved/77 b/moved/other
number=$(stat -c %i b/x)
same "S20: hard links from below" "$number 2" "$(stat -c '%i %h' b/y)"
echo two >>b/x
same "S20: are links still when one is written" "one two" "$(xargs <b/y)"
check "S20: a name that was not written itself is moved" mv b/y b/yy
same "S20: and is a link still" "$number 2" "$(stat -c '%i %h' b/yy)"
mv b/yy b/y
same "S20: with the same number" "$number $number 2" "$(stat -c %i b/x) $(stat -c '%i %h' b/y)"
: >b/f
same "S20: O_TRUNC" 0 "$(stat -c %s b/f)"
unmount "$TMP/b"
"$V" -o cow "$TMP/a" "$TMP/b"
same "S20: all of it after a new mount" "one two 9999 $number" "$(xargs <b/y) $(ls b/moved | grep -vc other) $(stat -c %i b/y)"
refuse 2 'No such file' "S20: the old name is gone" ls b/many/1
unmount "$TMP/b"

# --- The cases of unionmount
fresh
"$V" -o cow "$TMP/a" "$TMP/b"
exec 9<b/f
echo two >>b/f
same "a file that was open before it was copied up is read on" lower "$(head -n 1 <&9)"
exec 8<b/f
same "who opens it then reads the copy, also while the old one is open" "lower two" "$(xargs <&8)"
same "and may map the copy" "lower" "$(python3 -c 'import mmap; f = open("b/f", "rb"); print(mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE)[:5].decode())')"
exec 8<&- 9<&-
python3 - <<'P' && pass "when the old one is closed the copy is mapped and shared" || fail "a shared mapping of a copy"
import mmap
f = open("b/f", "r+b")
m = mmap.mmap(f.fileno(), 0)
m[:5] = b"LOWER"
m.flush()
assert open("b/f").read() == "LOWER\ntwo\n"
P
rm b/f
exec 9<b/d/g
rm b/d/g
same "a file from below that is open is read after its removal" below "$(cat <&9)"
exec 9<&-
echo new >t; mv t b/d/g
same "a rename over a whiteout" new "$(cat b/d/g)"
refuse 1 'exists' "RENAME_NOREPLACE over a name from below" python3 -c "
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.renameat2(-100, b'b/d/g', -100, b'b/x', 1): sys.exit(os.strerror(ctypes.get_errno()))"
refuse 1 'not empty' "rmdir of what is not empty below" rmdir b/d/sub
refuse 1 'exists' "mkdir over a name from below" mkdir b/x
python3 - <<'P' && pass "a directory that changes while it is read lists each name once" || fail "readdir while changing"
import os
names = []
with os.scandir("b/d") as listing:
    for n, entry in enumerate(listing):
        names.append(entry.name)
        open("b/d/more%d" % n, "w").close()
assert len(names) == len(set(names)) and {"g", "sub"} <= set(names), names
P
unmount "$TMP/b"
mkdir b/closed b/shut; echo content >b/shut/file; chmod 0 b/closed b/shut; "$V" -o cow "$TMP/a" "$TMP/b"
if [ "$HOW" = user ]; then
    refuse 1 'Permission denied' "rmdir of an empty directory below that nobody may look into" rmdir b/closed
else
    check "rmdir of an empty directory below that its owner may not look into" rmdir b/closed
    refuse 1 'not empty' "rmdir of one that is not empty" rmdir b/shut
fi
unmount "$TMP/b"; chmod 700 b/closed b/shut; rm -r b/closed b/shut
check "fsx on a copy" bash -c "head -c 300000 /dev/urandom >b/fsx; '$V' -o cow '$TMP/a' '$TMP/b' && '$fsx' b/fsx ${SEED:-1} 1500 400000"
rm -rf b/* 2>/dev/null
same "rm -rf leaves nothing" "" "$(ls -A b)"
unmount "$TMP/b"

# --- Killed while it copies up: no half of a file is seen
rm -rf a b; mkdir a b
for n in $(seq 40); do head -c 2000000 /dev/zero | tr '\0' A >b/$n; done
for moment in 0.01 0.03 0.06 0.1; do
    "$V" -o cow "$TMP/a" "$TMP/b" || fail "after a kill it does not mount again"
    (for n in $(seq 40); do echo B >>b/$n; chmod 600 b/$n; done) 2>/dev/null &
    writer=$!
    sleep $moment
    # shellcheck disable=SC2046
    kill -9 $(server "$TMP/b") 2>/dev/null
    wait $writer
    until_true 5 not_mounted "$TMP/b" || umount -l "$TMP/b" 2>/dev/null || fusermount3 -uz "$TMP/b"
done
check "after a kill it mounts again" "$V" -o cow "$TMP/a" "$TMP/b"
whole=0
for n in $(seq 40); do
    [ "$(head -c 2000000 b/$n | tr -d A | wc -c)" = 0 ] && [ "$(stat -c %s b/$n)" -ge 2000000 ] && whole=$((whole + 1))
done
same "after a kill every file is whole" 40 $whole
unmount "$TMP/b"
same "and nothing is left of the work" "" "$(find a -name '.veduta*')"

# At chosen calls: before each that changes something with KILL_POINTS=all, otherwise before some of them.
points=${KILL_POINTS:-1}
if [ "$HOW" != root ]; then
    skip "killed before single system calls: root's" fine
elif ! command -v strace >/dev/null; then
    skip "strace is missing"
else
    mkdir kill
    # shellcheck disable=SC2046 # no word, or one
    check "killed before a call that changes something, a new mount shows the tree from before or after" \
        "$kill" "$V" "$TMP/kill" copies "${SEED:-1}" $([ "$points" = all ] || echo "$points")
fi

# --- Power fails: the disk stops at once, with what the journal had written
# what_a_crash_leaves TYPE FSYNC: how many of 20 copies are there, and how many of these have not the content of the file.
what_a_crash_leaves() {
    local n there=0 bad=0
    truncate -s 400M disk && "mkfs.$1" -q disk && mount -o loop disk d || return
    mkdir d/l d/u
    for n in $(seq 20); do head -c 100000 /dev/zero | tr '\0' A >d/l/$n; done
    sync -f d
    "$V" -o "fsync=$2,lowerdir=$TMP/d/l,upperdir=$TMP/d/u" none "$TMP/m"
    for n in $(seq 10); do chmod 600 m/$n; done
    for n in $(seq 11 20); do echo B >>m/$n; done
    # FS_IOC_SHUTDOWN: write the journal, and nothing else any more.
    python3 -c 'import fcntl, os, struct; fcntl.ioctl(os.open("d", 0), 0x8004587d, struct.pack("I", 1))'
    unmount "$TMP/m" 2>/dev/null
    umount d && mount -o loop disk d
    for n in $(seq 20); do
        [ -e d/u/$n ] || continue
        there=$((there + 1))
        [ "$(head -c 100000 d/u/$n | tr -d '\0' | wc -c)" = 100000 ] || bad=$((bad + 1))
    done
    umount d; rm -f disk
    echo "$there there, $bad bad"
}
if [ "$HOW" != root ] || ! losetup -f >/dev/null 2>&1; then
    skip "power fails: needs root, and loop devices" fine
else
    mkdir -p d m
    same "power fails on ext4: each copy that is there has its content" "20 there, 0 bad" "$(what_a_crash_leaves ext4 auto)"
    same "power fails on ext4: so it is when each is waited for" "20 there, 0 bad" "$(what_a_crash_leaves ext4 strict)"
    # Whoever calls sync(2) meanwhile may save them all.
    empty() { for _ in 1 2 3 4 5; do what_a_crash_leaves ext4 volatile | grep -q ' 0 bad' || return 0; done; return 1; }
    check "power fails on ext4: volatile does not care (so this test would find it)" empty
    if command -v mkfs.xfs >/dev/null && grep -qw xfs /proc/filesystems; then
        same "power fails on XFS: each copy that is there has its content" "20 there, 0 bad" "$(what_a_crash_leaves xfs auto)"
    fi
fi
refuse 1 'expected one of auto' "a wrong word of fsync=" "$V" -o cow,fsync=maybe a b
refuse 1 'says otherwise' "volatile and strict" "$V" -o cow,volatile,fsync=strict a b

# --- S22: virtual owners and devices
mkdir t; rm -rf a b; mkdir a b
check "S22 vstat: is mounted" "$V" -o cow,vstat,dev "$TMP/a" "$TMP/b"
mkdir b/dir; echo ciao >b/dir/rootfile; echo 20004000 >b/dir/file2000
if [ "$HOW" != userns ]; then
    check "S22 vstat: a file is given away" chown 2000:4000 b/dir/file2000
    same "S22 vstat: and shows it" "2000 4000" "$(stat -c '%u %g' b/dir/file2000)"
    check "S22 vstat: tar keeps it" bash -c "tar -C b -cf t/dir.tar dir && tar --numeric-owner -tvf t/dir.tar | grep -q '2000/4000.*file2000'"
fi
if [ "$HOW" = root ]; then
    check "S22 vstat: a device is made" mknod b/dir/device c 42 44
    same "S22 vstat: and is one" "character special file 2a 2c" "$(stat -c '%F %t %T' b/dir/device)"
    check "S22 vstat: in the archive too" bash -c "tar -C b -cf t/dir.tar dir && tar -tvf t/dir.tar | grep -q '^c.*42,44'"
    check "S22 vstat: below it is a file" test -f a/dir/device
fi
unmount "$TMP/b"

# --- S23: a distribution
if [ "$HOW" = user ]; then
    skip "S23: an ordinary user cannot chroot" fine
elif ! command -v busybox >/dev/null; then
    skip "S23: busybox is missing"
else
    rm -rf a b; mkdir -p a b/bin b/etc
    cp "$(command -v busybox)" b/bin/busybox; echo 3.12.0 >b/etc/alpine-release
    check "S23: a tree of a distribution" "$V" -o cow,suid,dev "$TMP/a" "$TMP/b"
    ln -s busybox b/bin/sh; ln -s busybox b/bin/cat
    same "S23: runs in it" 3.12.0 "$(PATH=$PATH:/usr/sbin:/sbin chroot b /bin/sh -c 'cat /etc/alpine-release')"
    unmount "$TMP/b"
    same "S23: below is as it was" busybox "$(ls b/bin)"
fi

# --- fuse-overlayfs: each mounts the upper layers of the other, as root and as a user
shown() { (cd "$1" && find . -mindepth 1 \( -type d -printf '%p %y %m\n' -o -printf '%p %y %m %s %l\n' \) | sort && find . -type f -print0 | sort -z | xargs -0r sha256sum); }
changes() {
    echo more >>m/f; rm m/x; rm -r m/d; mkdir m/d; echo n >m/d/n; mkdir -p m/new/sub; echo new >m/new/file
    mv m/y m/z; chmod 600 m/z; rm m/link; mkdir m/link; rm -r m/e/sub; ln -s z m/sym; : >m/e/empty
}
layers() { fresh; rm -rf m w; mkdir m w b/e b/e/sub; echo in >b/e/sub/in; }
if ! command -v fuse-overlayfs >/dev/null; then
    skip "fuse-overlayfs is missing"
else
    foreign() { fuse-overlayfs -o "lowerdir=$TMP/b,upperdir=$TMP/a,workdir=$TMP/w" "$TMP/m" >/dev/null 2>&1; }
    end_foreign() { umount "$TMP/m" 2>/dev/null || fusermount3 -u "$TMP/m"; until_true 10 bash -c "! pgrep -f 'fuse-overlayfs .*$TMP/m\$'"; }
    layers
    check "fuse-overlayfs mounts" foreign
    changes; theirs=$(shown m); end_foreign
    same "fuse-overlayfs: an upper layer that it made is the same tree here" "$theirs" \
        "$("$V" -o "lowerdir=$TMP/b,upperdir=$TMP/a" none "$TMP/m"; shown m; unmount "$TMP/m")"
    layers
    # fuse-overlayfs knows neither renamed directories nor links of copies: without those it is told nothing that it does not know.
    "$V" -o "redirect_dir=off,index=off,lowerdir=$TMP/b,upperdir=$TMP/a" none "$TMP/m"
    changes; ours=$(shown m); unmount "$TMP/m"
    same "fuse-overlayfs: here the same changes give the same tree" "$theirs" "$ours"
    same "fuse-overlayfs: an upper layer that was made here is the same tree there" "$ours" "$(foreign; shown m; end_foreign)"
fi

# --- fuse-overlayfs's words about owners: the same as there
fresh; mkdir -p m w
if [ "$HOW" = root ] && command -v fuse-overlayfs >/dev/null; then
    chown 7:8 b/f; chown 3:3 b/d
    for words in squash_to_root squash_to_uid=12,squash_to_gid=13 uidmapping=0:1000:1:7:70:2,gidmapping=0:2000:100 static_nlink; do
        rm -rf a w; mkdir a w
        "$V" -o "$words,lowerdir=$TMP/b,upperdir=$TMP/a" none "$TMP/m"
        ours=$(stat -c '%n %u %g' m/f m/d m/x; stat -c %h m/d); unmount "$TMP/m"
        fuse-overlayfs -o "$words,lowerdir=$TMP/b,upperdir=$TMP/a,workdir=$TMP/w" "$TMP/m" >/dev/null 2>&1
        theirs=$(stat -c '%n %u %g' m/f m/d m/x; stat -c %h m/d); end_foreign
        same "$words: as fuse-overlayfs shows it" "$theirs" "$ours"
    done
    rm -rf a; mkdir a
    "$V" -o "uidmapping=0:1000:1:7:70:2,gidmapping=0:2000:100,lowerdir=$TMP/b,upperdir=$TMP/a" none "$TMP/m"
    check "uidmapping: a file is given to one who is shown" chown 71:2005 m/f
    refuse 1 'Invalid argument' "uidmapping: but not to one who is nobody below" chown 5 m/f
    unmount "$TMP/m"
    same "uidmapping: below it is somebody else's" "8 5" "$(stat -c '%u %g' a/f)"
    chown 0:0 b/f b/d
fi
refuse 1 'expected ID:SHOWN:COUNT' "uidmapping: wrong words" "$V" -o cow,uidmapping=1:2 a b
"$V" -o "squash_to_root,noacl,lowerdir=$TMP/b,upperdir=$TMP/a" none "$TMP/m"
same "squash_to_root: all is root's" "0 0" "$(stat -c '%u %g' m/f)"
check "squash_to_root: files are made" bash -c "echo n >m/n && rm m/n"
unmount "$TMP/m"
rm -rf a; mkdir a; mkdir b/acl; echo f >b/acl/f; chmod 640 b/acl/f
if setfacl -m u:1234:rw b/acl/f 2>/dev/null && setfacl -d -m u:1234:rwx b/acl; then
    "$V" -o "noacl,lowerdir=$TMP/b,upperdir=$TMP/a" none "$TMP/m"
    refuse 1 'not supported' "noacl: none is set" setfacl -m u:77:r m/f
    same "noacl: none is shown" "user::rw- group::rw- other::---" "$(getfacl -c m/acl/f 2>/dev/null | xargs)"
    same "noacl: not among the attributes either" "" "$(getfattr -dm 'system' m/acl m/acl/f 2>/dev/null)"
    (umask 027; echo new >m/acl/new; mkdir m/acl/d; echo t >m/acl/t)
    same "noacl: what is new has the mode that was asked for" "640 750 640" "$(stat -c %a m/acl/new m/acl/d m/acl/t | xargs)"
    chmod 600 m/acl/f
    unmount "$TMP/m"
    same "noacl: nothing was inherited above either" "user::rw- group::r-- other::--- user::rwx group::r-x other::---" \
        "$(getfacl -c a/acl/new a/acl/d 2>/dev/null | xargs)"
    same "noacl: a copy keeps its own" "user:1234:rw-" "$(getfacl -c a/acl/f 2>/dev/null | grep -o '^user:1234:rw-')"
else
    # A user namespace does not know the users of the list.
    skip "noacl: no ACLs here ($HOW)" "$([ "$HOW" != userns ] || echo fine)"
fi
rm -rf b/acl

# --- Whiteouts that are names: layers of an image unpacked as they are, and fuse-overlayfs where it may make no device
rm -rf a b l w m; mkdir -p a b/d/sub b/e b/g w m
for n in f h d/a d/b d/sub/x e/k g/old; do echo below >b/$n; done
mkdir -p l/d l/e l/g
: >l/.wh.f; : >l/d/.wh.a; : >l/d/.wh.sub; : >l/e/.wh..wh..opq; : >l/.wh.g; echo new >l/g/new; echo n >l/e/n
names() { (cd "$1" && find . -mindepth 1 | sort | xargs); }
check "whiteouts by name: is mounted" "$V" -o "lowerdir=$TMP/l:$TMP/b,upperdir=$TMP/a" none "$TMP/m"
same "whiteouts by name: a name, a directory, an opaque directory, one made anew" "./d ./d/b ./e ./e/n ./g ./g/new ./h" "$(names m)"
refuse 1 'No such file' "whiteouts by name: what is hidden is not found" cat m/f
refuse 1 'No such file' "whiteouts by name: nor are they" cat m/.wh.f
echo anew >m/f; mkdir m/d/sub; : >m/.wh.h; echo more >m/d/.wh.b
same "whiteouts by name: a file of a user's that is named so hides nothing" "./.wh.h ./d ./d/.wh.b ./d/b ./d/sub ./e ./e/n ./f ./g ./g/new ./h" "$(names m)"
mv m/.wh.h m/.wh.d; ln m/d/.wh.b m/.wh.e; : >m/.wh.e
all="./.wh.d ./.wh.e ./d ./d/.wh.b ./d/b ./d/sub ./e ./e/n ./f ./g ./g/new ./h"
same "whiteouts by name: nor does one that was renamed, or linked, to such a name" "$all" "$(names m)"
unmount "$TMP/m"
"$V" -o "lowerdir=$TMP/l:$TMP/b,upperdir=$TMP/a" none "$TMP/m"
same "whiteouts by name: all of it after a new mount" "$all" "$(names m)"
rm -r m/.wh.* m/d m/e m/f m/g m/h
same "whiteouts by name: rm -r leaves nothing" "" "$(names m)"
unmount "$TMP/m"
# As an upper layer: what it says, and that it is taken up.
same "whiteouts by name: diff knows them" "A e/n A g/new D d/a D d/sub/ D e/k D f D g/old" \
    "$("$VEDUTA" diff --lower b l | sort | xargs)"
check "whiteouts by name: one is discarded" "$VEDUTA" discard l f
check "whiteouts by name: the rest is committed" "$VEDUTA" commit --lower b l
same "whiteouts by name: and done below" "./d ./d/b ./e ./e/n ./f ./g ./g/new ./h" "$(names b)"
same "whiteouts by name: nothing is left of them" "" "$(find l b -name '.wh*')"
if command -v fuse-overlayfs >/dev/null && [ "$HOW" != user ] && [ "$(uname -m)" = x86_64 ]; then
    # Calls 133 and 259 are mknod and mknodat.
    foreign_named() { "$filtered" 133=1 259=1 fuse-overlayfs -o "lowerdir=$TMP/b,upperdir=$TMP/a,workdir=$TMP/w" "$TMP/m" >/dev/null 2>&1; }
    layers
    check "fuse-overlayfs without devices mounts" foreign_named
    changes; theirs=$(shown m); end_foreign
    check "fuse-overlayfs without devices: its whiteouts are names" test -e a/.wh.x
    same "fuse-overlayfs without devices: the same tree here" "$theirs" \
        "$("$V" -o "lowerdir=$TMP/b,upperdir=$TMP/a" none "$TMP/m"; shown m; unmount "$TMP/m")"
    "$V" -o "redirect_dir=off,index=off,lowerdir=$TMP/b,upperdir=$TMP/a" none "$TMP/m"
    echo again >m/x; mkdir m/y; rm m/f; rm -r m/e
    ours=$(shown m); unmount "$TMP/m"
    same "fuse-overlayfs without devices: what is changed here then is the same there" "$ours" "$(foreign_named; shown m; end_foreign)"
fi

# --- Write once
fresh
"$V" -o cow,worm "$TMP/a" "$TMP/b"
check "worm: a new file is written" bash -c "echo new >b/n && touch -d 2001-01-01 b/n"
refuse 1 'not permitted' "worm: an old one is not" bash -c "echo more >>b/f"
refuse 1 'not permitted' "worm: nor removed" rm -f b/f
refuse 1 'not permitted' "worm: nor renamed" mv b/f b/g
unmount "$TMP/b"

# --- The family's store, and wrong words
fresh; mkdir -p a/.-/d; : >a/.-/x; : >a/.-/d/g; printf 'mode=0600\n' >"a/.-/f$(printf '\177')"; cp b/f a/f
"$V" -o cow "$TMP/a" "$TMP/b"
same "a store of the family is read" "d f link y sub 600" "$(ls -A b | xargs) $(ls b/d | xargs) $(stat -c %a b/f)"
unmount "$TMP/b"
refuse 1 'only one' "two modes" "$V" -o cow,merge a b
refuse 32 'no such file' "a layer that is not there" "$V" -o lowerdir=/nowhere none b
refuse 1 'expected one of' "a wrong word" "$V" -o cow,metacopy=maybe a b
"$V" -o cow "$TMP/a" "$TMP/b"
refuse 32 'in use by another mount' "an upper layer twice" "$V" -o "lowerdir=$TMP/b,upperdir=$TMP/a" none "$TMP/t"
unmount "$TMP/b"

# --- The kernel as the judge
if [ "$HOW" = root ] && grep -q overlay /proc/filesystems; then
    mkdir oracle
    check "the same as overlayfs, and each mounts the other's layers" "$oracle" "$V" "$TMP/oracle" "${SEED:-1}" "${UNION_SEEDS:-4}" 300
fi
