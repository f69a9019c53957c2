#!/bin/bash
# What was changed in an upper layer: shown, kept, thrown away, packed and unpacked (B4), and layers with a name.
# shellcheck source=tests/lib.sh disable=SC2010,SC2011 # names are plain here
. "$(dirname "$0")/../lib.sh"
cd "$TMP" || exit 1
export LC_ALL=C.UTF-8 XDG_DATA_HOME=$TMP/data
V=$BIN/umviewfs
umask 022

if ! "$VEDUTA" doctor --json | grep -q '"can_mount": true'; then
    skip "mounts: this machine allows none ($HOW)"
    exit
fi

unmount() {
    umount "$1" 2>/dev/null || fusermount3 -u "$1" 2>/dev/null || "$VEDUTA" umount "$1"
    until_true 10 bash -c "! pgrep -f 'umviewfs .*$1( |\$)'"
}
# Everything of a tree: names, types, modes, owners, links, sizes, times (of files), targets, content, attributes.
tree_hash() {
    (cd "$1" && find . -mindepth 1 \( -type d -printf '%p %y %m %U %G\n' -o -printf '%p %y %m %U %G %n %s %T@ %l\n' \) | sort
        find . -type f -print0 | sort -z | xargs -0r sha256sum
        getfattr -Rhd -m '^user\.' . 2>/dev/null | grep -v overlay)
}
fresh() {
    rm -rf u b m && mkdir -p u m b/etc b/lib/deep b/old
    echo lower >b/etc/conf; seq 50 >b/etc/lines; echo keep >b/etc/keep; echo gone >b/old/gone; echo more >b/old/more
    echo one >b/x; ln b/x b/y; ln -s etc/conf b/link; echo deep >b/lib/deep/file; printf 'a\0b' >b/binary
}
over() { "$V" -o "lowerdir=$TMP/b,upperdir=$TMP/u" none "$TMP/m"; }
change() {
    echo upper >>m/etc/conf
    sed -i 's/^25$/twenty-five/' m/etc/lines
    chmod 600 m/etc/keep
    setfattr -n user.k -v v m/etc/keep 2>/dev/null
    rm -r m/old
    mkdir m/new m/new/sub; echo new >m/new/file; ln m/new/file m/new/link; ln -s file m/new/sym
    mv m/lib m/library
    echo two >>m/x
    rm m/link; mkdir m/link; echo in >m/link/in
    printf 'a\0c' >m/binary
    truncate -s 3M m/new/holes
    touch -d 2001-02-03 m/new/file
}

# --- diff
fresh; over; change
check "diff of a layer that is mounted" "$VEDUTA" diff u
unmount "$TMP/m"
expected='A library/
A library/deep/
A library/deep/file
A link/in
A new/
A new/file
A new/holes
A new/link
A new/sub/
A new/sym
D lib/
D old/
M binary
M etc/conf
M etc/lines
M x
M y
P etc/keep 0644 -> 0600
T link/ symbolic link -> directory'
same "diff: exactly the changes" "$expected" "$("$VEDUTA" diff u | grep -v '^X' | sort)"
check "diff: an attribute" bash -c "'$VEDUTA' diff u | grep -q 'X etc/keep user.k' || ! getfattr -n user.k u/etc/keep 2>/dev/null"
same "diff: of a path" "M etc/lines" "$("$VEDUTA" diff u /etc/lines)"
same "diff --stat: the sums" "10 added, 7 changed, 2 deleted" "$("$VEDUTA" diff --stat u | tail -n 1 | sed 's/;.*//')"
check "diff --json: is JSON" bash -c "'$VEDUTA' diff --json u | python3 -c 'import json, sys; [json.loads(line) for line in sys.stdin]'"
cp -r b patched; chmod -R u+w patched
"$VEDUTA" diff -p u etc >p.diff
check "diff -p: patch(1) takes it" bash -c "cd patched && { ! command -v patch || patch -sp1 <../p.diff; } >/dev/null"
if command -v patch >/dev/null; then same "diff -p: and makes the same of it" twenty-five "$(sed -n 25p patched/etc/lines)"; fi
rm -rf patched

# --- over itself, as the family has it: SOURCE TARGET. What lies below is covered as long as it is mounted.
fresh; "$V" -o cow u b; echo mine >>b/etc/conf; rm b/etc/keep; echo new >b/new
expected='M etc/conf
D etc/keep
A new'
same "diff of what covers its own lower layer" "$expected" "$("$VEDUTA" diff u)"
same "diff of what covers its own lower layer: from within" "$expected" "$(cd b/lib && "$VEDUTA" diff ../../u)"
mkdir u2
# fusermount3 mounts nothing on a mount of FUSE.
if [ "$HOW" != user ]; then
    "$V" -o cow u2 b; rm b/new
    same "diff of a second one on top of it" "D new" "$("$VEDUTA" diff u2)"
    same "diff of the first one below that" "$expected" "$("$VEDUTA" diff u)"
    check "umount of that returns when its layer is free" bash -c "'$VEDUTA' umount b && '$VEDUTA' commit -n u2 >/dev/null"
fi
check "umount returns when the layer is free" bash -c "'$VEDUTA' umount b && '$VEDUTA' commit u"
same "and then it can be committed" "lower mine new" "$(cat b/etc/conf b/new | xargs)"
same "a layer is free soon after umount(8), too" "1 2 3 4 5" "$(for n in 1 2 3 4 5; do "$V" -o cow u b || break; echo $n >b/n; cat b/n; umount b 2>/dev/null || fusermount3 -u b; done | xargs)"
until_true 10 "$VEDUTA" discard u >/dev/null
# A plain umount(8) does not wait for a server that still writes to the disk; who comes next does.
if [ "$HOW" = user ]; then
    skip "a layer is waited for while its mount still writes: a traced program cannot use fusermount3" fine
elif ! command -v strace >/dev/null; then
    skip "strace is missing"
else
    strace -f -o "$TMP/trace" -e trace=syncfs -e inject=syncfs:delay_enter=4000000 "$V" -o cow u b &
    until_true 10 mounted "$TMP/b"; echo slow >b/n; umount b; until_true 10 grep -q syncfs "$TMP/trace"
    same "a layer is waited for while its mount still writes to the disk" "slow" "$("$V" -o cow u b && cat b/n; unmount "$TMP/b")"
    wait; rm -f "$TMP/trace"
    check "and is free then" "$VEDUTA" discard u
    # Who was killed while he left has not left it marked for those who come later.
    mkdir u/.veduta-work; echo leaving >u/.veduta-work/lock; "$V" -o cow u b
    refuse 32 'in use by another mount' "an upper layer whose earlier mount was killed at its end, twice" "$V" -o "lowerdir=$TMP/b,upperdir=$TMP/u" none "$TMP/m"
    unmount "$TMP/b"
fi
if timeout -k 1 20 "$VEDUTA" run -N -- true 2>/dev/null; then
    refuse 2 'covered by a mount on .*/b;' "diff within the view whose mount covers what lies below says so" \
        timeout -k 1 20 "$VEDUTA" run -N --cow u --over b -- sh -c "echo more >b/more; '$VEDUTA' diff u"
    same "diff of that afterwards" "A more" "$("$VEDUTA" diff u)"
fi
rm -rf u2

# --- commit
fresh; over; change; unmount "$TMP/m"
over; merged=$(tree_hash m); unmount "$TMP/m"
before=$(tree_hash b)
check "commit --dry-run" "$VEDUTA" commit --dry-run u
same "commit --dry-run: does nothing" "$before" "$(tree_hash b)"
over
refuse 2 'in use' "commit of a layer that is mounted" "$VEDUTA" commit u
unmount "$TMP/m"
check "commit of one path" "$VEDUTA" commit u etc/conf
same "commit of one path: is done" "lower upper" "$(xargs <b/etc/conf)"
same "commit of one path: and no other" 50 "$(grep -c '^[0-9]*$' b/etc/lines)"
same "commit of one path: is no change any more" "" "$("$VEDUTA" diff u | grep conf)"
check "commit of the rest" "$VEDUTA" commit u
same "commit: below is what was seen" "$merged" "$(tree_hash b)"
same "commit: hard links are links" "2 2" "$(stat -c %h b/x b/new/file | xargs)"
check "commit: holes are holes" test "$(stat -c %b b/new/holes)" -lt 100
same "commit: nothing is left" "" "$(ls -A u)"
over; same "commit: and the tree is the same" "$merged" "$(tree_hash m)"; unmount "$TMP/m"

# --- conflicts
fresh; over; echo mine >>m/etc/conf; rm m/etc/keep; echo also >>m/x; unmount "$TMP/m"
sleep 0.01; echo theirs >>b/etc/conf; echo theirs >>b/etc/keep
refuse 3 'etc/conf: it was changed below' "a conflict is found" "$VEDUTA" commit u
refuse 3 'etc/keep: it was changed below after it was removed' "so is one with a deletion" "$VEDUTA" commit u
same "and nothing was done" one "$(cat b/x)"
check "commit --force" "$VEDUTA" commit --force u
same "commit --force: ours" "lower mine" "$(xargs <b/etc/conf)"

# --- discard
fresh; over; change; unmount "$TMP/m"
before=$(tree_hash b)
check "discard of a path" "$VEDUTA" discard u etc/conf
refuse 2 'nothing was changed there' "discard of what was not changed" "$VEDUTA" discard u etc/none
over; same "discard of a path: it is as below" lower "$(cat m/etc/conf)"; unmount "$TMP/m"
check "discard of everything" "$VEDUTA" discard u
same "discard: nothing is left" "" "$(ls -A u)"
same "discard: below is as it was" "$before" "$(tree_hash b)"

# --- killed while it commits
fresh; for n in $(seq 30); do head -c 1000000 /dev/zero | tr '\0' A >b/f$n; done
over; for n in $(seq 30); do tr A B <m/f$n >t && cat t >m/f$n; done; echo two >>m/x; rm -r m/old; mkdir m/z; unmount "$TMP/m"
over; merged=$(tree_hash m | grep -v ' [fd] .* [fd]$'); unmount "$TMP/m"
for n in 1 2 3 4 5 6; do
    "$VEDUTA" commit u 2>/dev/null &
    sleep 0.0$n
    kill -9 $! 2>/dev/null
    wait $! 2>/dev/null
done
bad=0
for n in $(seq 30); do case $(tr -s AB <b/f$n) in A | B) ;; *) bad=1 ;; esac; [ "$(stat -c %s b/f$n)" = 1000000 ] || bad=1; done
same "killed while it commits: no file is half old" 0 $bad
check "the next commit completes it" "$VEDUTA" commit u
same "and nothing is missing" "$merged" "$(tree_hash b)"
same "and nothing is left of the work" "" "$(find u b -name '.veduta*')"

# The same before chosen calls, after random changes: before each that changes something with KILL_POINTS=all.
if [ "$HOW" != root ]; then
    skip "killed before single system calls: root's" fine
elif ! command -v strace >/dev/null; then
    skip "strace is missing"
else
    mkdir kill
    points=${KILL_POINTS:-3}
    # shellcheck disable=SC2046 # no word, or one
    check "random changes are committed as they were seen, also after a kill before a call that changes something" \
        "$(realpath "$TESTS/union-kill")" "$V" "$TMP/kill" commits "${SEED:-1}" "${KILL_SEEDS:-8}" $([ "$points" = all ] || echo "$points")
fi

# --- What a commit changes is also what it reads: directories that changed places, or moved over each other
fresh; mkdir b/one b/two; echo 1 >b/one/f; echo 2 >b/two/f; echo only >b/two/only
over; mv m/one m/t; mv m/two m/one; mv m/t m/two; mv m/lib m/old/lib; mv m/etc m/lib; merged=$(tree_hash m); unmount "$TMP/m"
check "commit of directories that changed places" "$VEDUTA" commit u
same "commit of directories that changed places: below is what was seen" "$merged" "$(tree_hash b)"
same "and nothing is left in the layer" "" "$(ls -A u)"
fresh; over; rm -r m/etc; mkdir m/etc; echo new >m/etc/new; unmount "$TMP/m"
check "commit of a path in a directory that was made again" "$VEDUTA" commit u etc/new
over; same "commit of a path in a directory that was made again: it is still seen" new "$(ls m/etc)"; unmount "$TMP/m"
check "commit of the rest of it" "$VEDUTA" commit u
same "commit of the rest of it: is done" new "$(ls b/etc)"
fresh; mkdir b/d; ln b/x b/d/link; over; echo three >>m/x; mv m/d m/e; unmount "$TMP/m"
check "commit of a directory that was moved with a hard link in it" "$VEDUTA" commit u
same "commit of a directory that was moved with a hard link in it: it is there" "one three 3" "$(xargs <b/e/link) $(stat -c %h b/x)"
fresh; over; echo two >>m/x; unmount "$TMP/m"
check "commit of one of two hard links" "$VEDUTA" commit u x
check "commit of the other: finds no conflict with the first" "$VEDUTA" commit u
same "commit of the other: they are links again" "one two 2 2" "$(xargs <b/y) $(stat -c %h b/x b/y | xargs)"
fresh; over; echo same >m/old/gone; mv m/old/gone m/etc/conf; unmount "$TMP/m"
check "commit of a file that was moved over another" "$VEDUTA" commit u
same "commit of a file that was moved over another: is done" "same more" "$(cat b/etc/conf) $(ls b/old)"

# --- export, import
fresh; over; change; unmount "$TMP/m"
over; merged=$(tree_hash m); unmount "$TMP/m"
check "export" "$VEDUTA" export u -o layer.tar
check "export: tar reads it" tar -tf layer.tar
same "export: deletions as whiteouts" ".wh.lib .wh.old" "$(tar -tf layer.tar | grep '\.wh\.' | sort | xargs)"
check "export, packed" "$VEDUTA" export u -o layer.tar.zst
check "export, packed: zstd reads it" bash -c "zstd -dc layer.tar.zst | cmp - layer.tar"
mv u u1; mkdir u
check "import" "$VEDUTA" import --lower b u layer.tar.zst
over; same "import: the same tree" "$merged" "$(tree_hash m)"; unmount "$TMP/m"
# Holes: of every shape, and in every form that others write.
fresh; over
{ truncate -s 3M m/h1; printf x | dd of=m/h1 bs=1 seek=1000000 conv=notrunc
  truncate -s 5000001 m/h2; printf tail >>m/h2; truncate -s 70000 m/h3
  for n in $(seq 0 60); do echo "$n"; done >m/h4; truncate -s 2M m/h4; printf y | dd of=m/h4 bs=1 seek=1500000 conv=notrunc
  truncate -s 20G m/h5; printf z | dd of=m/h5 bs=1 seek=10G conv=notrunc; : >m/h6; } 2>/dev/null
name=$(printf 'long%.0s' $(seq 50)); mkdir -p "m/$name" && truncate -s 1M "m/$name/$name"
sums() { (cd "$1" && rm -f h5 && find h? long* -type f -exec sha256sum {} + | sort -k 2); }
unmount "$TMP/m"
check "export --sparse" "$VEDUTA" export --sparse u -o sparse.tar
same "export --sparse: holes are left out" yes "$([ "$(stat -c %s sparse.tar)" -lt 200000 ] && echo yes)"
mkdir u.tar u.bsd; tar --xattrs -C u.tar -xf sparse.tar
same "export --sparse: tar makes the same files" "$(find u -name 'h?' -printf '%f %s\n' | sort)" "$(find u.tar -name 'h?' -printf '%f %s\n' | sort)"
same "export --sparse: byte for byte, also of 20 GiB" "z" "$(dd if=u.tar/h5 bs=1 skip=10G count=1 status=none)"
holes() { find "$1" -size +100k -type f -printf '%b\n' | awk '$1 > 300 { print }'; }
same "export --sparse: tar makes holes" "" "$(holes u.tar)"
if command -v bsdtar >/dev/null; then
    bsdtar -C u.bsd -xf sparse.tar
    same "export --sparse: bsdtar makes the same files" "$(sums u.tar)" "$(sums u.bsd)"
    bsdtar --format=pax -C u.tar -cf form-bsd.tar .
else
    skip "bsdtar is missing"
fi
mv u kept
for form in 1.0 0.1 0.0; do tar --format=pax --sparse --sparse-version="$form" -C u.tar -cf "form-$form.tar" .; done
tar --format=gnu --sparse -C u.tar -cf form-gnu.tar .
for archive in sparse.tar form-*.tar; do
    rm -rf u; mkdir u
    check "import of $archive" "$VEDUTA" import --lower b u "$archive"
    same "import of $archive: makes holes" "" "$(holes u)"
    same "import of $archive: the same files" "$(sums u.tar)" "$(sums u)"
done
rm -f kept/h5; check "export: in full without --sparse" "$VEDUTA" export --lower b kept -o full.tar
same "export: in full: every reader has the content" "$(sums kept)" "$(rm -rf u; mkdir u; python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])' full.tar u; sums u)"
same "export --sparse: tar made the same content" "$(sums kept)" "$(sums u.tar)"
same "export: in full: no entry has a map" 0 "$(grep -ac GNU.sparse full.tar)"
rm -rf u; mkdir u; check "import of that" "$VEDUTA" import --lower b u full.tar
same "import of that: makes holes of zeros" "" "$(holes u)"
same "import of that: the same files" "$(sums kept)" "$(sums u)"
rm -rf kept u.tar u.bsd; fresh
mkdir -p oci/d; : >oci/d/.wh..wh..opq; echo n >oci/d/n; tar -C oci -cf opq.tar d/.wh..wh..opq d/n
rm -rf u; mkdir u b/d; echo o >b/d/o
check "import of an opaque directory" "$VEDUTA" import --lower b u opq.tar
over; same "import of an opaque directory: shows nothing of those below" n "$(ls m/d)"; unmount "$TMP/m"
python3 - <<'P'
import io, tarfile
for name, member in [("up.tar", "../evil"), ("wh.tar", "a/.wh..."), ("link.tar", "l")]:
    with tarfile.open(name, "w") as archive:
        info = tarfile.TarInfo(member)
        if name == "link.tar":
            info.type, info.linkname = tarfile.SYMTYPE, "/tmp"
            archive.addfile(info)
            info = tarfile.TarInfo("l/evil")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"x"))
P
refuse 2 'leads out' "import: a name that leads out" "$VEDUTA" import --lower b u up.tar
refuse 2 'without a name' "import: a deletion of .." "$VEDUTA" import --lower b u wh.tar
refuse 2 'Not a directory' "import: nothing goes through a symbolic link" "$VEDUTA" import --lower b u link.tar
check "import: nothing was made outside" bash -c "! test -e ../evil && ! test -e /tmp/evil"

# --- layers with a name
fresh
check "layer create" "$VEDUTA" layer create work --over "$TMP/b"
refuse 2 'such a layer already' "layer create: twice" "$VEDUTA" layer create work --over "$TMP/b"
check "layer: is mounted" "$V" -o stacked "$("$VEDUTA" layer path work)" "$TMP/m"
echo more >>m/etc/conf; rm m/old/gone; echo again >>m/x; unmount "$TMP/m"
same "layer: diff by its name" "M etc/conf D old/gone M x M y" "$("$VEDUTA" diff @work | xargs)"
check "layer clone" "$VEDUTA" layer clone work copy
same "layer clone: has the same changes" "$("$VEDUTA" diff @work)" "$("$VEDUTA" diff @copy)"
check "layer create on top of another" "$VEDUTA" layer create top --over @work
"$V" -o stacked "$("$VEDUTA" layer path top)" "$TMP/m"
same "layer on top: sees what is below" "lower more" "$(xargs <m/etc/conf)"
echo top >m/etc/conf; unmount "$TMP/m"
same "layer on top: has its own changes" "M etc/conf" "$("$VEDUTA" diff @top)"
check "layer on top: commits to the layer below" "$VEDUTA" layer list
same "layer list" "copy top work" "$("$VEDUTA" layer list | cut -d ' ' -f 1 | xargs)"
check "layer delete" "$VEDUTA" layer delete copy
same "layer delete: is gone" "top work" "$("$VEDUTA" layer list | cut -d ' ' -f 1 | xargs)"
refuse 2 'no such layer' "a layer that is not there" "$VEDUTA" diff @copy
check "commit of a layer by its name" "$VEDUTA" commit @work
same "commit of a layer: is done" "lower more" "$(xargs <b/etc/conf)"
refuse 1 'not known what lies below' "a directory that is no layer" "$VEDUTA" diff "$TMP/m"
