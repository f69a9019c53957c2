# ext: images without surprises in their journals: block sizes, features, contents.
# shellcheck shell=bash

image ext2-1k 'ext2, 1 KiB blocks; one of everything' ext zoo 1024 8M -t ext2
image ext2-2k 'ext2, 2 KiB blocks' ext zoo 2048 8M -t ext2
image ext2-4k 'ext2, 4 KiB blocks' ext zoo 4096 16M -t ext2
image ext2-inode128 'ext2, inodes of 128 bytes: no nanoseconds, no years beyond 2038' ext zoo 1024 8M -t ext2 -I 128
image ext2-old 'ext2 of revision 0: no features at all, no file types in directories' ext few 1024 2M -t ext2 -r 0
image ext2-big-1k 'ext2, sparse files of 5 and 6 GiB through triple indirect blocks' ext big 1024 8M -t ext2
image ext2-big-4k 'ext2, the same with 4 KiB blocks' ext big 4096 8M -t ext2
image ext2-empty 'ext2, nothing in it' ext empty 1024 1M -t ext2

image ext3-1k 'ext3, 1 KiB blocks, clean journal' ext zoo 1024 10M -t ext3
image ext3-4k 'ext3, 4 KiB blocks, clean journal' ext zoo 4096 24M -t ext3
image ext3-big 'ext3, sparse files beyond 4 GiB' ext big 4096 16M -t ext3

image ext4-1k 'ext4, 1 KiB blocks' ext zoo 1024 10M -t ext4
image ext4-2k 'ext4, 2 KiB blocks' ext zoo 2048 16M -t ext4
image ext4-4k 'ext4 as mke2fs of Debian 12 makes it, 4 KiB blocks' ext zoo 4096 24M -t ext4
image ext4-8k 'ext4, 8 KiB blocks' ext zoo 8192 40M -t ext4
image ext4-16k 'ext4, 16 KiB blocks' ext zoo 16384 80M -t ext4
image ext4-32k 'ext4, 32 KiB blocks' ext zoo 32768 160M -t ext4
image ext4-64k 'ext4, 64 KiB blocks' ext zoo 65536 256M -t ext4
image ext4-inode128 'ext4, inodes of 128 bytes' ext zoo 4096 24M -t ext4 -I 128
image ext4-inode1024 'ext4, inodes of 1024 bytes: many attributes inside' ext zoo 4096 24M -t ext4 -I 1024
image ext4-inode4096 'ext4, inodes of a whole block' ext zoo 4096 24M -t ext4 -I 4096
image ext4-empty 'ext4, nothing in it' ext empty 4096 8M -t ext4
image ext4-big 'ext4, sparse files beyond 4 GiB' ext big 4096 16M -t ext4

image ext4-nojournal 'ext4 without a journal' ext zoo 4096 16M -t ext4 -O ^has_journal
image ext4-nocsum 'ext4 without metadata checksums' ext zoo 4096 24M -t ext4 -O ^metadata_csum
image ext4-gdtcsum 'ext4 with uninit_bg: only the group descriptors have checksums' \
    ext zoo 4096 24M -t ext4 -O ^metadata_csum,uninit_bg
image ext4-32bit 'ext4 with group descriptors of 32 bytes' ext zoo 4096 24M -t ext4 -O ^64bit
image ext4-noflexbg 'ext4 without flex_bg, many small groups' ext zoo 1024 12M -t ext4 -O ^flex_bg -g 1024
image ext4-flexbg 'ext4, small groups gathered by flex_bg' ext zoo 1024 12M -t ext4 -g 1024 -G 4
image ext4-metabg 'ext4 with meta_bg: group descriptors spread over the disk' \
    ext zoo 1024 34M -t ext4 -O meta_bg,^resize_inode -g 512
image ext4-metabg-32bit 'ext4 with meta_bg and small descriptors' \
    ext zoo 1024 34M -t ext4 -O meta_bg,^resize_inode,^64bit -g 512
image ext4-bigalloc 'ext4, clusters of 16 KiB over blocks of 1 KiB' ext zoo 1024 34M -t ext4 -O bigalloc -C 16384
image ext4-bigalloc-4k 'ext4, clusters of 64 KiB over blocks of 4 KiB' ext_counted zoo 4096 64M -t ext4 -O bigalloc -C 65536
image ext4-sparse-super2 'ext4 with two backup superblocks at most' \
    ext zoo 1024 12M -t ext4 -O sparse_super2,^resize_inode -g 1024
image ext4-nosparse 'ext4 with a backup superblock in each group' ext few 1024 12M -t ext4 -O ^sparse_super,^resize_inode -g 1024
image ext4-upstream 'ext4 with metadata_csum_seed and orphan_file, as newer mke2fs makes it' \
    ext zoo 4096 24M -t ext4 -O metadata_csum_seed,orphan_file
image ext4-csumseed 'ext4 whose UUID was changed after its checksums were made' csum_seed
image ext4-blockmapped 'ext4 with block maps in place of extents' ext zoo 1024 10M -t ext4 -O ^extent,^64bit
image ext4-noindex 'ext4 without dir_index and without large_file' ext few 1024 4M -t ext4 -O ^dir_index,^large_file
image ext4-quota 'ext4 with hidden quota files and project ids' ext_counted few 4096 16M -t ext4 -O quota,project -E quotatype=usrquota:grpquota
image ext4-mmp 'ext4 with multiple mount protection' ext few 4096 16M -t ext4 -O mmp
image ext4-stable-inodes 'ext4 with stable_inodes' ext few 4096 16M -t ext4 -O stable_inodes
image ext4-verity 'ext4 with a file marked for fs-verity' ext flagged 4096 16M -t ext4 -O verity
image ext4-encrypt 'ext4 with the encrypt feature, nothing encrypted' ext few 4096 16M -t ext4 -O encrypt
image ext4-fast-commit 'ext4 with fast_commit, clean' ext zoo 4096 24M -t ext4 -O fast_commit

image ext4-inline 'ext4 with inline_data: files, links and directories inside inodes' ext inline 1024 8M -t ext4 -O inline_data
image ext4-inline-512 'the same with inodes of 512 bytes and blocks of 4 KiB' \
    ext inline 4096 16M -t ext4 -O inline_data -I 512
image ext4-inline-zoo 'ext4 with inline_data; one of everything' ext zoo 4096 24M -t ext4 -O inline_data
image ext4-ea-inode 'ext4 with ea_inode: attributes of up to 64 KiB in inodes of their own' \
    ext_counted attributes 4096 16M -t ext4 -O ea_inode
image ext4-shared-xattr 'ext4, three files with one attribute block' shared_xattr
image ext4-casefold 'ext4 with directories that ignore case, linear and hashed' \
    ext_indexed folded 1024 10M -t ext4 -O casefold -E encoding=utf8
image ext4-casefold-strict 'the same, strict about UTF-8' \
    ext_indexed folded 1024 10M -t ext4 -O casefold -E encoding=utf8,encoding_flags=strict

image ext4-extents-1k 'ext4, extent trees two levels deep, and preallocation between extents' \
    ext sieves 1024 10M -t ext4
image ext4-extents-deep 'ext4, an extent tree with 12000 leaves' ext sieves,count=12000 1024 24M -t ext4
image ext4-extents-4k 'ext4, extent trees with 4 KiB blocks' ext sieves,count=700,pieces=300 4096 16M -t ext4

image ext4-linear 'ext4, directories of 2000 names, not hashed' ext names,count=2000 1024 8M -t ext4
image ext4-htree-half-md4 'ext4, directories hashed by half_md4, index of two levels' \
    ext_indexed names,count=5000,length=60 1024 10M -t ext4
image ext4-htree-tea 'the same by tea' hashed_by tea names,count=2500 4096 16M -t ext4
image ext4-htree-legacy 'the same by the legacy hash' hashed_by legacy names,count=2500 1024 10M -t ext4
image ext3-htree 'ext3, hashed directories' ext_indexed names,count=2500 1024 8M -t ext3
image ext4-largedir 'ext4 with large_dir' ext_indexed names,count=3000,length=100 1024 10M -t ext4 -O large_dir

image ext4-unknown-feature 'ext4 with a feature that nobody knows' unknown_feature
image ext4-journal-dev 'a journal that belongs to some other disk' journal_dev
image ext4-external-journal 'ext4 whose journal is on some other disk' external_journal

hashed_by() {
    hash=$1 between=ext_hash ext_make "${@:2}"
    ext_finish "$name.img"
}

ext_hash() {
    ext_debugfs "$1" "ssv def_hash_version $hash"
    ext_index "$1"
}

# With metadata_csum_seed, tune2fs changes the UUID and no checksum with it.
csum_seed() {
    ext_make few 4096 16M -t ext4 -O metadata_csum_seed
    tune2fs -U "$(uuid_of other)" "$name.img"
    ext_finish "$name.img"
}

# debugfs gives each inode a block of its own; point three at one, and let e2fsck count.
shared_xattr() {
    local block
    ext_make shared 1024 4M -t ext4
    block=$(debugfs -R 'stat /shared-0' "$name.img" 2>/dev/null | sed -n 's/^File ACL: //p')
    [ "$block" -gt 0 ]
    ext_debugfs "$name.img" "sif /shared-1 file_acl $block" "sif /shared-2 file_acl $block"
    ext_repair "$name.img"
    ext_finish "$name.img"
}

unknown_feature() {
    ext_make few 4096 8M -t ext4
    ext_debugfs "$name.img" 'feature FEATURE_I30'
    refused 'incompatible feature bit 0x40000000'
}

journal_dev() {
    need mke2fs
    truncate -s 8M "$name.img"
    mke2fs -q -F -O journal_dev -b 4096 -U "$(uuid_of "$name")" "$name.img"
    refused journal_dev
}

# No loop device is needed: a filesystem only remembers the UUID of its journal.
external_journal() {
    ext_make few 4096 16M -t ext4 -O ^has_journal
    ext_debugfs "$name.img" 'feature has_journal' 'ssv journal_dev 0x0801' "ssv journal_uuid $(uuid_of ext4-journal-dev)"
    "$here/truth" ext "$name.img" >"$name.truth.jsonl"
}
