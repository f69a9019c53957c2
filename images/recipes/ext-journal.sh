# ext-journal: images whose journal must be replayed before they make sense.
#
# debugfs makes two later states of an image, journal.py packs what differs, and
# debugfs writes that into the journal of the first state. NAME.replayed.img is
# the same image after e2fsck replayed it; the truth of both is the same. The
# first transaction journals data too, some of which begins with the journal's
# own magic number. The second removes a directory, uses its block for a file,
# and revokes it: who overlooks that finds a directory in place of the data.
# shellcheck shell=bash

image ext3-dirty 'ext3, journal with revoked blocks' dirty 'jo' 1024 10M -t ext3
image ext3-dirty-4k 'ext3, the same with 4 KiB blocks' dirty 'jo' 4096 16M -t ext3
image ext3-dirty-wrapped 'ext3, a log that begins near the end of the journal' dirty_wrapped
image ext4-dirty 'ext4, 64-bit journal with checksums of version 3' dirty 'jo -c -v 3' 1024 10M -t ext4
image ext4-dirty-4k 'ext4, the same with 4 KiB blocks' dirty 'jo -c -v 3' 4096 16M -t ext4
image ext4-dirty-csum2 'ext4, journal checksums of version 2' dirty 'jo -c -v 2' 1024 10M -t ext4
image ext4-dirty-nocsum 'ext4, 64-bit journal without checksums' dirty 'jo' 1024 10M -t ext4
image ext4-dirty-32bit 'ext4, 32-bit journal with checksums of version 3' dirty 'jo -c -v 3' 1024 10M -t ext4 -O ^64bit
image ext4-dirty-32bit-csum2 'ext4, 32-bit journal with checksums of version 2' dirty 'jo -c -v 2' 1024 10M -t ext4 -O ^64bit
image ext4-dirty-fast-commit 'ext4 with fast_commit, only ordinary transactions' \
    dirty 'jo -c -v 3' 1024 10M -t ext4 -O fast_commit
image ext4-dirty-uncommitted 'ext4, the last transaction has no commit block and must not count' \
    unfinished 'jo -c -v 3' 1024 10M -t ext4
image ext3-dirty-uncommitted 'ext3, the same' unfinished 'jo' 1024 10M -t ext3

# These are what a real kernel leaves behind when the power fails: the image is
# copied while it is mounted. They take root, and differ from run to run.
image ext3-dirty-kernel 'ext3, copied from under a mount; orphans' power_cut ext3 noatime 1024 16M -t ext3
image ext4-dirty-kernel 'ext4, copied from under a mount; orphans' power_cut ext4 noatime 4096 24M -t ext4
image ext4-dirty-kernel-orphan-file 'ext4 with orphan_file, copied from under a mount' \
    power_cut ext4 noatime 4096 24M -t ext4 -O orphan_file,metadata_csum_seed
image ext4-dirty-kernel-fast-commit 'ext4 with fast commits to replay, copied from under a mount' \
    fast_power_cut ext4 noatime 4096 24M -t ext4 -O fast_commit
image ext4-dirty-kernel-csum1 'ext4, journal checksums of version 1 (in commit blocks), from under a mount' \
    power_cut ext4 noatime,journal_checksum 4096 24M -t ext4 -O ^metadata_csum
image ext4-dirty-kernel-data 'ext4 mounted with data=journal, copied from under a mount' \
    power_cut ext4 noatime,data=journal 4096 24M -t ext4

dirty() {
    dirty_make "$@"
    dirty_finish "$name.img" second.img
}

dirty_wrapped() {
    dirty_make jo 1024 10M -t ext3
    python3 "$here/lib/journal.py" rotate "$name.img" 1024 100
    dirty_finish "$name.img" second.img
}

unfinished() {
    uncommitted=yes dirty_make "$@"
    dirty_finish "$name.img" first.img
}

# dirty_make JOURNAL_OPEN EXT_MAKE_ARGUMENT...: $name.img, and its states first.img and second.img.
dirty_make() {
    local open=$1 block_size=$2 tool=$here/lib/journal.py one two revoke
    shift
    ext_make eve "$@"
    cp "$name.img" first.img
    python3 -c 'import sys; sys.stdout.buffer.write(bytes.fromhex("c03b3998") + bytes(range(200)) * 700)' >magic
    python3 -c 'import sys, hashlib; sys.stdout.buffer.write(hashlib.shake_128(b"reused").digest(30000))' >noise
    ext_debugfs first.img 'mkdir /new' 'write magic /new/magic' 'symlink /new/link ../kept/file' \
        'ln /hello.txt /old/one-more' 'sif /hello.txt links_count 10' 'sif /touched mtime 0x70000000' \
        'ea_set /kept/file user.late "set in the journal"'
    cp first.img second.img
    ext_debugfs second.img 'rm /removed' 'rm /old/name-0' 'rm /old/name-1' 'rm /old/name-2' 'rm /old/name-3' \
        'rm /old/name-4' 'rm /old/name-5' 'rm /old/name-6' 'rm /old/name-7' 'rm /old/one-more' 'rmdir /old' \
        'write noise /reused' 'sif /touched mtime 0x71000000'
    one=$(python3 "$tool" pack "$name.img" first.img "$block_size" one)
    if [ "${uncommitted-}" ]; then
        two=$(python3 "$tool" pack first.img second.img "$block_size" two)
        ext_debugfs "$name.img" "$open" "jw -b $one one" "jw -c -b $two two" jc
        return
    fi
    two=$(python3 "$tool" pack first.img second.img "$block_size" two /reused)
    revoke=$(python3 "$tool" reused second.img "$one" /reused)
    python3 "$tool" place second.img "$name.img" /reused
    ext_debugfs "$name.img" "$open" "jw -b $one one" "jw -b $two -r $revoke two" jc
}

# dirty_finish IMAGE STATE: replay a copy; it must be what STATE is.
dirty_finish() {
    local replayed=$name.replayed.img
    debugfs -R features "$1" 2>/dev/null | grep -w needs_recovery
    cp "$1" "$replayed"
    e2fsck -fy -E journal_only "$replayed"
    e2fsck -fn "$replayed"
    ext_truth "$replayed"
    "$here/truth" ext "$2" >state
    "$here/truth" compare state "$name.replayed.truth.jsonl"
    cp "$name.replayed.truth.jsonl" "$name.truth.jsonl"
    dirty_kernel "$1"
    ext_sparse "$1"
    ext_sparse "$replayed"
}

# What the kernel makes of the journal: it must write to replay, so it gets a copy.
dirty_kernel() {
    cp "$1" scratch.img
    kernel_truth scratch.img ext4 'rw,noatime'
    if [ -e scratch.kernel.jsonl ]; then
        # A fast commit does not tell the times of a directory; the kernel then takes the time of the replay.
        "$here/truth" compare "$name.truth.jsonl" scratch.kernel.jsonl ${stamps:+--ignore "$stamps"}
        mv scratch.kernel.jsonl "$name.kernel.jsonl"
    fi
}

fast_power_cut() { stamps=mtime_s,mtime_ns,ctime_s,ctime_ns power_cut "$@"; }

power_cut() {
    local type=$1 options=$2
    shift 2
    if [ "$(id -u)" -ne 0 ] || [ ! -e /dev/loop-control ]; then skip 'needs root and a loop device'; fi
    ext_make eve "$@"
    mkdir -p mounted
    # The mount, and a process that holds a removed file open, end with the namespace.
    # shellcheck disable=SC2016
    unshare -m sh -c 'mount -t "$2" -o "loop,commit=300,$3" "$1" mounted || exit 77
        cd mounted
        mkdir new && cp ../commands new/copy && ln new/copy new/linked && ln -s ../kept/file new/link
        rm -r old && dd if=/dev/urandom of=reused bs=1000 count=30
        exec 3<removed; rm removed
        sync -f .
        echo late >kept/late; mv kept/late kept/renamed; chmod 640 hello.txt; rm new/linked
        python3 -c "import os; os.fsync(os.open(\"kept/renamed\", os.O_RDONLY)); os.fsync(os.open(\"hello.txt\", os.O_RDONLY))"
        cd .. && cp "$1" copy' sh "$name.img" "$type" "$options" || skip 'the kernel cannot mount it'
    mv copy "$name.img"
    debugfs -R features "$name.img" 2>/dev/null | grep -w needs_recovery
    cp "$name.img" "$name.replayed.img"
    # First the journal; then the orphans, which a reader never sees.
    e2fsck -fy -E journal_only "$name.replayed.img" || [ $? -eq 1 ]
    ext_repair "$name.replayed.img"
    ext_finish "$name.replayed.img"
    cp "$name.replayed.truth.jsonl" "$name.truth.jsonl"
    dirty_kernel "$name.img"
    ext_sparse "$name.img"
}
