#!/bin/bash
# Trees laid over each other in a view: the family's scenarios S10 to S20, S22 and S23, and B4, with no privilege, no /dev/fuse and no
# namespaces; and a commit over `/` by a user who may write only what is his.
# shellcheck source=tests/lib.sh disable=SC2010,SC2011,SC2016 # names are plain here; the view's shell expands
. "$(dirname "$0")/../lib.sh"
cd "$TMP" || exit 1
export LC_ALL=C.UTF-8 TMP
umask 022

mkdir names
for name in vumount vuumount; do ln -s "$VEDUTA" "names/$name"; done
PATH=$TMP/names:$PATH

# in_view SCRIPT: what a shell script says in a view.
in_view() { timeout -k 1 60 "$VEDUTA" run -N -- bash -c "$1" 2>&1; }
if ! in_view true >/dev/null; then
    skip "views: this machine allows none ($HOW)"
    exit
fi
tree_hash() { (cd "$1" && find . -printf '%p %m %n %s %T@ %l\n' | sort && find . -type f -print0 | sort -z | xargs -0r sha256sum) | sha256sum; }
fresh() {
    rm -rf a b && mkdir a b b/d b/d/sub
    echo lower >b/f; echo below >b/d/g; echo deep >b/d/sub/h
    echo one >b/x; ln b/x b/y; ln -s f b/link
}

# --- S10 to S13: the modes
fresh; echo A >a/n
same "S10 bind: A's content is in B" n "$(in_view 'vumount -t vufs a b; ls b; echo w >b/w')"
same "S10 bind: what was written is in A" "n w" "$(ls a | xargs)"
same "S10 bind: and B is as it was outside" "d f link x y" "$(ls b | xargs)"

fresh; echo A >a/n; echo upper >a/f
same "S11 merge: all names, A wins, A is not written, new files are in B" "d f link n x y
upper
Read-only
Read-only
new" "$(in_view 'vumount -t vufs -o merge a b; ls b | xargs; cat b/f
    (echo z >>b/f) 2>&1 | grep -o Read-only; rm -f b/n 2>&1 | grep -o Read-only; echo new >b/new; cat b/new')"
same "S11 merge: A is as it was, B has what is new" "A upper new" "$(cat a/n a/f b/new | xargs)"

fresh; before=$(tree_hash b)
same "S12 cow: the changes are seen" "f link n z
lower more" "$(in_view 'vumount -t vufs -o cow a b; echo more >>b/f; rm b/x; rm -r b/d; echo new >b/n; mv b/y b/z
    ls b | xargs; xargs <b/f')"
same "S12 cow: B is as it was" "$before" "$(tree_hash b)"
same "S12 cow: mounted again, the changes are there" "f link n z" "$(in_view 'vumount -t vufs -o cow a b; ls b | xargs')"

fresh
same "S13 mincow: what is permitted is done in B" "" "$(in_view 'vumount -t vufs -o mincow a b; echo more >>b/f; echo new >b/n; rm b/x; mv b/d b/e')"
same "S13 mincow: outside too" "e f link n y" "$(ls b | xargs)"
same "S13 mincow: and A has nothing of it" "" "$(ls -A a)"
if [ "$(id -u)" != 0 ] && [ -r /etc/passwd ] && [ ! -w /etc/passwd ]; then
    mkdir new; user=$(id -un 2>/dev/null || echo nobody)
    same "S16 mincow over /: one's own line is gone, and with it one's name" "0
$(id -u)" "$(in_view "vumount -t vufs -o mincow,except=$TMP,except=/proc,except=/dev,except=/sys,except=/tmp new /
        grep -v '^$user:' /etc/passwd >/etc/passwd.new; cat /etc/passwd.new >/etc/passwd; grep -c '^$user:' /etc/passwd; id -u")"
    check "S16 mincow: outside it is there" grep -q "^$user:" /etc/passwd
    rm -rf new; mkdir new
    same "S17 mincow: a file of root's is removed" "No such file" \
        "$(in_view "vumount -t vufs -o mincow,except=$TMP,except=/proc,except=/dev new /; rm -f /etc/group; ls /etc/group 2>&1 | grep -o 'No such file'")"
    check "S17 mincow: outside it is there" test -e /etc/group
    rm -rf new; mkdir new
    same "S18 mincow: chmod of a file of root's" 600 \
        "$(in_view "vumount -t vufs -o mincow,except=$TMP,except=/proc,except=/dev new /; chmod 600 /etc/passwd; stat -c %a /etc/passwd")"
    rm -rf new
else
    skip "S16 to S18 are for an ordinary user" fine
fi

# --- S14, S15: parts that show through
fresh; mkdir a/d; echo A >a/n
same "S14 except: only what A has, but the real content there" "d n
g sub" "$(in_view 'vumount -t vufs -o bind,except=/d a b; ls b | xargs; ls b/d | xargs; echo in >b/d/in')"
same "S14 except: written through" in "$(cat b/d/in)"
mkdir -p home/me home/you tmphome/me; echo mine >home/me/f
same "S15: the homes of others are hidden" "me
mine" "$(in_view 'vumount -t vufs home/me tmphome/me; vumount -t vufs tmphome home; ls home; cat home/me/f')"

# --- S19, S20: whiteouts, renames, links
fresh; mkdir b/many; (cd b/many && seq 10000 | xargs touch)
same "S19: a directory that was made again is empty" "empty" \
    "$(in_view 'vumount -t vufs -o cow a b; rm -r b/d; mkdir b/d; [ -z "$(ls -A b/d)" ] && echo empty')"
same "S19: also in another view" "empty" "$(in_view 'vumount -t vufs -o cow a b; [ -z "$(ls -A b/d)" ] && echo empty')"
same "S20: ten thousand names, a rename, links, O_TRUNC" "10000 10000
10000
2
one two
0
gone" "$(in_view 'vumount -t vufs -o cow a b
    echo $(ls -f b/many | grep -c "^[0-9]") $(ls b/many | sort -u | wc -l)
    mv b/many b/moved; ls b/moved | wc -l
    echo two >>b/x; stat -c %h b/y; xargs <b/y; : >b/f; stat -c %s b/f; ls b/many/1 2>/dev/null || echo gone')"
same "S20: all of it in another view" "one two 10000" "$(in_view 'vumount -t vufs -o cow a b; echo $(cat b/y) $(ls b/moved | wc -l)')"

# --- The cases of unionmount
fresh
same "a file from below that is open is read after its removal, a rename over a whiteout, rmdir of what is not empty" "below
new
not empty
exists" "$(in_view 'vumount -t vufs -o cow a b
    exec 9<b/d/g; rm b/d/g; cat <&9; exec 9<&-
    echo new >t; mv t b/d/g; cat b/d/g; rmdir b/d/sub 2>&1 | grep -o "not empty"; mkdir b/x 2>&1 | grep -o exists')"

# --- Killed while it copies up
rm -rf a b; mkdir a b
for n in $(seq 20); do head -c 2000000 /dev/zero | tr '\0' A >b/$n; done
for moment in 0.05 0.1 0.2; do
    "$VEDUTA" run -N --mount "viewfs:$TMP/a:$TMP/b:cow" -- sh -c 'for n in $(seq 20); do echo B >>b/$n; done' >/dev/null 2>&1 &
    command=$!
    sleep $moment
    engine=$(pgrep -P $command)
    [ -z "$engine" ] || kill -9 "$engine"
    wait $command 2>/dev/null
done
same "the engine killed while it copies up: every file is whole" 20 "$(in_view 'vumount -t vufs -o cow a b; whole=0
    for n in $(seq 20); do [ "$(head -c 2000000 b/$n | tr -d A | wc -c)" = 0 ] && [ "$(stat -c %s b/$n)" -ge 2000000 ] && whole=$((whole + 1)); done; echo $whole')"

# --- S22, S23: virtual owners and devices, a distribution
mkdir alien
same "S22: an ordinary user's archive has root's files, another's, and a device" "root/root dir/rootfile
2000/4000 dir/file2000
crw" "$(timeout -k 1 60 "$VEDUTA" run -N --root -- bash -c 'mkdir up; vumount -t vufs -o cow,vstat up alien; cd alien; mkdir dir
    echo ciao >dir/rootfile; echo 20004000 >dir/file2000; chown root:root dir/rootfile; chown 2000:4000 dir/file2000; mknod dir/device c 42 44
    tar cf ../dir.tar dir; tar tvf ../dir.tar | sort -r >../dir.list
    awk "/rootfile|file2000/ { print \$2, \$NF }" ../dir.list | sort -r; grep "42,44" ../dir.list | cut -c 1-3' 2>&1)"
if busybox=$(command -v busybox) && ! ldd "$busybox" >/dev/null 2>&1; then
    rm -rf a b; mkdir -p a b/bin b/etc; cp "$busybox" b/bin/busybox; echo 3.12.0 >b/etc/alpine-release
    same "S23: a tree of a distribution, as anybody" "3.12.0" "$(timeout -k 1 60 "$VEDUTA" run -N --root -- bash -c 'vumount -t vufs -o cow a b
        ln -s busybox b/bin/sh; ln -s busybox b/bin/cat; PATH=$PATH:/usr/sbin:/sbin chroot b /bin/sh -c "cat /etc/alpine-release"' 2>&1)"
    same "S23: below is as it was" busybox "$(ls b/bin)"
else
    skip "S23: a static busybox is missing"
fi

# --- B4: the whole tree, tried and kept, by a user who may not write `/`
rm -rf mine try; mkdir -p mine/conf mine/old; echo one >mine/conf/file; echo keep >mine/conf/keep; echo gone >mine/old/gone; chmod 640 mine/conf/keep
timeout -k 1 60 "$VEDUTA" run -N --cow try -- sh -c 'cd "$TMP/mine"; echo two >>conf/file; chmod 600 conf/keep; rm -r old; mkdir -p new/deep; echo new >new/deep/file
    ln conf/file conf/hard; ln -s file conf/sym' >log 2>&1 || fail "B4: the command in the view" "$(cat log)"
at=${TMP#/}/mine
expected="A $at/conf/hard
A $at/conf/sym
A $at/new/
A $at/new/deep/
A $at/new/deep/file
D $at/old/
M $at/conf/file
P $at/conf/keep 0640 -> 0600"
same "B4 over /: exactly the changes" "$expected" "$("$VEDUTA" diff try | sort)"
cp -a try again
check "B4 over /: is committed" "$VEDUTA" commit try
same "B4 over /: and is there" "one two
600
new
2
file" "$(xargs <mine/conf/file; stat -c %a mine/conf/keep; cat mine/new/deep/file; stat -c %h mine/conf/hard; readlink mine/conf/sym)"
check "B4 over /: what was deleted is gone" test ! -e mine/old
same "B4 over /: nothing is left of the work" "" "$(find mine try -name '.veduta*')"
# What is copied up stays the file that it was, by name and by descriptor: git looks at a file before it links it and after.
rm -rf mine try; mkdir -p mine/d try; echo one >mine/f; echo two >mine/g; echo three >mine/d/h; chmod 444 mine/g
# numbers PATH...: as stat(2) tells them, as readdir(3) does, and as fstat(2) does.
cat >numbers.sh <<'END'
numbers() { for name; do echo $(stat -c '%d %i' "$name") $(ls -id "$name") $(stat -L -c '%d %i' - <"$name"); done; }
cd "$TMP/mine"; numbers f g d
END
before=$(bash numbers.sh)
same "B4 over /: numbers of files stay when they are changed, linked or get other names" "$before
$before
$before
two more 2
one more" "$(timeout -k 1 60 "$VEDUTA" run -N --cow try -- bash -c '. ./numbers.sh; echo more >>f; ln g k; chmod u+w g; echo more >>k; echo new >d/n; numbers f g d
    cp f c && cp c f && mv f e && mv e f && rm d/h; numbers f g d; echo $(cat g) $(stat -c %h k); cp -p f c && mv c d/n && xargs <d/n' 2>&1)"
same "B4 over /: a file that takes the number of a removed one has its own" same "$(timeout -k 1 60 "$VEDUTA" run -N --cow try -- bash -c 'cd "$TMP/mine"; rm -f k g f; for n in 1 2 3 4 5 6 7 8; do
    echo $n >new$n; [ "$(stat -c "%d %i" new$n)" = "$(stat -L -c "%d %i" - <new$n)" ] || echo "new$n differs"; done; echo same' 2>&1)"
if command -v git >/dev/null; then
    rm -rf mine try try2; mkdir mine try try2
    (cd mine && git init -q repo && cd repo && git config user.email a@b && git config user.name n && echo 1 >f && git add f && git commit -qm one) >log 2>&1
    same "B4 over /: git clone of what lies beside" "one 1" "$(timeout -k 1 60 "$VEDUTA" run -N --cow try -- sh -c 'cd "$TMP/mine"; HOME=$TMP git clone -q repo copy && cd copy && echo $(git log --format=%s; cat f)' 2>&1)"
    same "git clone of what lies beside, over one directory" "one 1" "$(timeout -k 1 60 "$VEDUTA" run -N --cow try2 --over mine -- sh -c 'cd "$TMP/mine"; HOME=$TMP git clone -q repo copy && cd copy && echo $(git log --format=%s; cat f)' 2>&1)"
else
    skip "no git here" fine
fi
rm -rf mine try; mkdir mine try; mkdir -m 0 mine/closed
[ "$(id -u)" = 0 ] || same "B4 over /: a directory that may not be read is not opened" "ls: cannot open directory '$TMP/mine/closed': Permission denied" \
    "$(timeout -k 1 60 "$VEDUTA" run -N --mount "viewfs:try:$TMP/mine:cow" -- ls "$TMP/mine/closed" 2>&1)"
rmdir mine/closed
# What the view has not laid anything over, by paths that are not written as they are.
if [ -w /dev/shm ]; then
    same "B4 over /: a file is moved to a directory of the host" "one two" "$(timeout -k 1 60 "$VEDUTA" run -N --cow try -- bash -c 'cd "$TMP/mine"; d=$(mktemp -d -p /dev/shm); echo one >f; echo two >g
        mv f $d/ && cd / && mv "$TMP/mine/g" ${d#/} && cat $d/f $d/g | xargs; rm -r $d' 2>&1)"
fi
# What an owner has taken from himself, also of a file that is open on the emulated plane.
[ "$(id -u)" = 0 ] || same "B4 over /: one's own file that may not be written" "no
no
one" "$(for plane in emulated backing; do VEDUTA_PLANE=$plane timeout -k 1 60 "$VEDUTA" run -N --cow try -- bash -c 'cd "$TMP/mine"; rm -f k; echo one >k; chmod 444 k; [ ! -w k ] || echo writable; (echo two >>k) 2>/dev/null || echo no'; done; timeout -k 1 60 "$VEDUTA" run -N --cow try -- cat mine/k)"
# Deeper than a path may be long.
! command -v python3 >/dev/null || same "B4 over /: files far down are told of by their descriptors" "1 1" "$(timeout -k 1 60 "$VEDUTA" run -N --cow try -- python3 -c '
import os
os.chdir(os.environ["TMP"] + "/mine")
for n in range(200):
    os.mkdir("abcdefghijklmnopqrstuvwxyz"); os.chdir("abcdefghijklmnopqrstuvwxyz")
f = open("f", "w"); f.write("x"); f.flush()
print(os.fstat(f.fileno()).st_size, os.stat("f").st_size)' 2>&1)"
# Killed at any point: a file is the old or the new one, and the next commit completes it.
rm -rf mine try; mkdir mine try; for n in $(seq 12); do mkdir "mine/$n"; head -c 600000 /dev/zero | tr '\0' A >"mine/$n/file"; done
timeout -k 1 60 "$VEDUTA" run -N --cow try -- sh -c 'cd "$TMP/mine"; for n in */; do tr A B <$n/file >t; cat t >$n/file; done; rm t; mkdir 1/new' >log 2>&1
for n in 1 2 3 4 5; do
    "$VEDUTA" commit try 2>/dev/null &
    sleep "0.0$n"
    kill -9 $! 2>/dev/null
    wait $! 2>/dev/null
done
bad=0
for n in $(seq 12); do
    case $(tr -s AB <"mine/$n/file") in A | B) ;; *) bad=1 ;; esac
    [ "$(stat -c %s "mine/$n/file")" = 600000 ] || bad=1
done
same "B4 over /: killed while it commits, no file is half old" 0 $bad
check "B4 over /: the next commit completes it" "$VEDUTA" commit try
same "B4 over /: and nothing is missing" "B" "$(cat mine/*/file | tr -s B)"
check "B4 over /: a directory too" test -d mine/1/new
same "B4 over /: nothing is left of the work then" "" "$(find mine -name '.veduta*')"
# Over some trees only: each has a layer of its own in the directory, and they are worked with together.
rm -rf try one two; mkdir one two one/d; echo 1 >one/f; echo 2 >two/f
timeout -k 1 60 "$VEDUTA" run -N --cow try --over one --over two -- sh -c 'cd "$TMP"; echo more >>one/f; rm -r one/d; rm two/f; echo new >two/n' >log 2>&1
in_short() { sed "s|${TMP#/}/||" | sort | xargs; }
same "B4 over two trees: diff tells of both" "A two/n D one/d/ D two/f M one/f" "$("$VEDUTA" diff try | in_short)"
same "B4 over two trees: of a path" "D one/d/ M one/f" "$("$VEDUTA" diff try "$TMP/one" | in_short)"
check "B4 over two trees: a path of one is discarded" "$VEDUTA" discard try "$TMP/two/n"
echo theirs >>two/f
refuse 3 'two/f: it was changed below' "B4 over two trees: a conflict in one" "$VEDUTA" commit try
same "B4 over two trees: then nothing is committed in the other" "1" "$(cat one/f)"
check "B4 over two trees: commit of one" "$VEDUTA" commit try "$TMP/one"
same "B4 over two trees: commit of one: is done" "f 1 more" "$(ls one) $(xargs <one/f)"
same "B4 over two trees: the other is left" "D two/f" "$("$VEDUTA" diff try | in_short)"
if [ "$(id -u)" != 0 ] && [ ! -w /etc/hostname ] && [ -r /etc/hostname ]; then
    rm -rf try; mkdir try
    timeout -k 1 60 "$VEDUTA" run -N --cow try -- sh -c 'echo more >>/etc/hostname' >log 2>&1
    same "B4: the owner that a user's copy cannot keep is no change" "M etc/hostname" "$("$VEDUTA" diff try)"
    refuse 2 'Permission denied' "B4: what may not be written is not committed" "$VEDUTA" commit try
    same "B4: and is still in the layer" "M etc/hostname" "$("$VEDUTA" diff try)"
fi
