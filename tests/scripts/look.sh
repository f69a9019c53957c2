#!/bin/bash
# Looking into images without a mount: info, ls, cat, cp. Compared with what debugfs and xorriso said when the images were made.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
cd "$TMP" || exit 1
truth=$TESTS/../images/truth

json() { python3 -c 'import json, sys; print(eval(sys.argv[1], {"d": json.load(sys.stdin)}))' "$1"; }

# A copy has inodes, sizes of directories, and times of its own; and a host filesystem may cut times at the edges of its range.
unkept=ino,size,atime_s,atime_ns,mtime_ns,ctime_s,ctime_ns,crtime_s,crtime_ns,blocks,flags,generation,data

for name in ext2-1k ext3-1k ext4-4k ext4-inline-zoo ext4-blockmapped ext4-dirty; do
    img=$IMAGES/$name.img
    if [ ! -e "$img" ]; then skip "cp -a of $name: the image is not there"; continue; fi
    rm -rf out
    if [ "$HOW" = root ]; then
        check "cp -a copies $name" "$VEDUTA" cp -a "$img:/" out
        "$truth" dir out >got.jsonl
        check "what cp -a copied from $name is what debugfs sees" \
            "$truth" compare "$IMAGES/$name.truth.jsonl" got.jsonl --ignore "$unkept"
    else
        check "cp -r copies $name as an ordinary user" "$VEDUTA" cp -r "$img:/" out
        # What nobody may read is made readable, to be compared; cp -r leaves devices and the like out, and says so.
        chmod -R u+rwX out
        "$truth" dir out >got.jsonl
        grep -vE '"type": ?"(fifo|sock|chr|blk)"' "$IMAGES/$name.truth.jsonl" >want.jsonl
        check "the names and contents that cp -r copied from $name are right" \
            "$truth" compare want.jsonl got.jsonl --only type,sha256,target,mtime_s
    fi
    chmod -R u+rwx out 2>/dev/null
done

for name in iso-rr iso-joliet iso-plain iso-zisofs; do
    img=$IMAGES/$name.iso
    if [ ! -e "$img" ]; then skip "cp of $name: the image is not there"; continue; fi
    rm -rf out
    check "cp copies $name" "$VEDUTA" cp -r "$img:/" out
    chmod -R u+rwX out
    "$truth" dir out >got.jsonl
    grep -vE '"type": ?"(fifo|sock|chr|blk)"' "$IMAGES/$name.truth.jsonl" >want.jsonl
    check "the names and contents that cp copied from $name are what xorriso extracts" \
        "$truth" compare want.jsonl got.jsonl --only type,sha256,target
done

img=$IMAGES/ext4-4k.img
if [ -e "$img" ]; then
    same "info --json names the format" ext4 "$("$VEDUTA" info --json "$img" | json 'd["format"]')"
    same "info --json gives the UUID that blkid gives" "$(/sbin/blkid -o value -s UUID "$img")" \
        "$("$VEDUTA" info --json "$img" | json 'd["uuid"]')"
    same "ls lists what debugfs lists" "$(/sbin/debugfs -R 'ls -p /' "$img" 2>/dev/null | cut -d/ -f6 | grep -vxE '\.{0,2}' | sort)" \
        "$("$VEDUTA" ls -a "$img" | sort)"
    check "ls -l, -R, -i and --json work together" "$VEDUTA" ls -laRi "$img"
    "$VEDUTA" ls --json "$img" | while read -r line; do json 'd["name"]' <<<"$line" >/dev/null || exit 1; done
    same "each line of ls --json is an object" 0 $?
    before=$(sha256sum <"$img")
    "$VEDUTA" ls -R "$img" >/dev/null
    same "looking changes nothing" "$before" "$(sha256sum <"$img")"
    refuse 2 'no-such: No such file' "a path that is not there is named" "$VEDUTA" ls "$img:/no-such"
    refuse 1 'is a directory \(-r' "cp of a directory says what is missing" "$VEDUTA" cp "$img:/lost+found" out
    "$VEDUTA" ls -R "$img" | head -n 1 >/dev/null
    same "a reader that has seen enough is no error" "0 0" "${PIPESTATUS[0]} ${PIPESTATUS[1]}"
else
    skip "ls and info: the images are not there"
fi

refuse 32 'No such file|does not exist|no such file' "an image that is not there is named" "$VEDUTA" ls nothing.img
head -c 100000 /dev/zero >zeros.img
refuse 32 'zeros' "an image of zeros is called that" "$VEDUTA" ls zeros.img
head -c 100000 /dev/urandom >noise.img
refuse 32 'no format that is known' "noise is called unknown" "$VEDUTA" ls noise.img
refuse 1 'unknown type' "a wrong type lists what there is" "$VEDUTA" ls -t ext9 noise.img
refuse 32 'ext2: noise.img: ' "a forced type says why it cannot be" "$VEDUTA" ls -t ext2 noise.img
refuse 1 'unknown option "nonesuch"' "a wrong option is named" "$VEDUTA" ls -o nonesuch -t ext2 noise.img
check "info of noise says so" "$VEDUTA" info noise.img
