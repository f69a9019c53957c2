# ext: makes ext2, ext3 and ext4 images as an ordinary user.
#
# mke2fs -d copies what a user can create; plant.py adds the rest by debugfs.
# shellcheck shell=bash

# ext TREE BLOCK_SIZE SIZE MKE2FS_ARGUMENT...
# TREE is a function of trees.py, with ,KEY=VALUE for its parameters.
ext() {
    ext_make "$@"
    ext_finish "$name.img"
}

# The same, with hashed directories: mke2fs makes linear ones only, e2fsck -D indexes them.
ext_indexed() {
    between=ext_index ext_make "$@"
    ext_finish "$name.img"
}

# The same; e2fsck sets the counts of blocks and references that debugfs leaves alone.
ext_counted() {
    ext_make "$@"
    ext_repair "$name.img"
    ext_finish "$name.img"
}

ext_make() {
    local tree block_size=$2 size=$3 uuid extended=
    local -a arguments=()
    need mke2fs debugfs e2fsck python3
    IFS=, read -r -a tree <<<"$1"
    shift 3
    while [ $# -gt 0 ]; do # mke2fs takes the last -E only
        if [ "$1" = -E ]; then extended=,$2; shift; else arguments+=("$1"); fi
        shift
    done
    uuid=$(uuid_of "$name")
    python3 "$here/lib/plant.py" spread host "$block_size" "${tree[@]}"
    truncate -s "$size" "$name.img"
    mke2fs -q -F -b "$block_size" -U "$uuid" -E "hash_seed=$uuid,root_owner=0:0$extended" -d host \
        "${arguments[@]}" "$name.img"
    rm -rf host
    python3 "$here/lib/plant.py" nodes "$name.img" "$block_size" "${tree[@]}"
    ${between:-:} "$name.img"
    python3 "$here/lib/plant.py" settle "$name.img" "$block_size" "${tree[@]}"
}

ext_index() { e2fsck -fyD "$1" || [ $? -eq 1 ]; }

ext_repair() { e2fsck -fy "$1" || [ $? -eq 1 ]; }

# ext_finish IMAGE: the image must be clean; then the truth, twice if possible.
ext_finish() {
    e2fsck -fn "$1"
    ext_sparse "$1"
    ext_truth "$1"
}

# mke2fs preallocates the journal; a copy need not take the room.
ext_sparse() {
    cp --sparse=always "$1" sparse
    mv sparse "$1"
}

ext_truth() {
    "$here/truth" ext "$1" >"${1%.img}.truth.jsonl"
    if debugfs -R features "$1" 2>/dev/null | grep -qw has_journal; then
        kernel_truth "$1" ext4 noload
    else
        kernel_truth "$1" ext4 noatime
    fi
}

# ext_debugfs IMAGE COMMAND...: one debugfs that may write; any complaint is an error.
ext_debugfs() {
    local target=$1
    shift
    printf '%s\n' "set_current_time @$E2FSPROGS_FAKE_TIME" "$@" >commands
    debugfs -w -f commands "$target" 2>complaints
    if grep -v -e '^debugfs 1\.' -e '^Allocated inode' -e '^Setting current' complaints; then return 1; fi
}
