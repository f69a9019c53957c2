# format: one disk of 8 MiB in every format of an image that qemu-img or a compressor makes.
#
# NAME.raw is the same disk byte by byte (sparse), which is what a reader must find.
# shellcheck shell=bash disable=SC2154 # make sets `name` and `here`

image format-qcow2 'qcow2: version 3, clusters of 64 KiB' format_image qcow2
image format-qcow2-v2 'qcow2: version 2' format_image qcow2 -o compat=0.10
image format-qcow2-512 'qcow2: clusters of 512 bytes' format_image qcow2 -o cluster_size=512
image format-qcow2-2m 'qcow2: clusters of 2 MiB' format_image qcow2 -o cluster_size=2M
image format-qcow2-bits 'qcow2: reference counts of one bit' format_image qcow2 -o refcount_bits=1
image format-qcow2-sub 'qcow2: subclusters' format_image qcow2 -o extended_l2=on
image format-qcow2-zlib 'qcow2: compressed by zlib' format_image qcow2 -c
image format-qcow2-zstd 'qcow2: compressed by zstd' format_image qcow2 -c -o compression_type=zstd
image format-qcow2-below 'qcow2: over another, over a raw file' format_below
image format-vdi 'VDI: dynamic' format_image vdi
image format-vdi-fixed 'VDI: fixed' format_image vdi -o static=on
image format-vhd 'VHD: dynamic' format_image vpc -o force_size=on
image format-vhd-fixed 'VHD: fixed' format_image vpc -o force_size=on,subformat=fixed
image format-vhdx 'VHDX: dynamic' format_image vhdx
image format-vhdx-fixed 'VHDX: fixed' format_image vhdx -o subformat=fixed
image format-vmdk 'VMDK: sparse, in one file' format_image vmdk
image format-vmdk-stream 'VMDK: stream-optimised' format_image vmdk -o subformat=streamOptimized
image format-gzip 'a raw disk, by gzip' format_packed gzip
image format-xz 'a raw disk, by xz' format_packed xz
image format-zstd 'a raw disk, by zstd' format_packed zstd
image format-zstd-seekable 'a raw disk, by zstd, in frames with a table' format_seekable
image format-nested 'a qcow2, by gzip' format_nested

# The disk: a table, text in its partitions, and stretches of noise, always the same.
format_content() {
    need sfdisk
    truncate -s 8M "$name.raw"
    sfdisk --quiet --no-reread --no-tell-kernel "$name.raw" <<'END'
label: gpt
label-id: 11111111-2222-4333-8444-666666666666
start=2048, size=4096, name="one", uuid=00000000-0000-4000-8000-000000000001
start=8192, size=6000, name="two", uuid=00000000-0000-4000-8000-000000000002
END
    python3 - "$name.raw" <<'END'
import random, sys
noise = random.Random(6)
with open(sys.argv[1], 'r+b') as disk:
    for at in (1 << 20, (1 << 20) + 70000, 4 << 20, 5000000):
        disk.seek(at)
        disk.write(b'noise from here\n' + bytes(noise.choices(range(64), k=100000)))
END
}

format_image() { # FORMAT CONVERT-OPTION...
    local format=$1
    shift
    need qemu-img
    format_content
    qemu-img convert -f raw -O "$format" "$@" "$name.raw" "$name.img"
}

format_below() {
    need qemu-img
    format_content
    cp --sparse=always "$name.raw" "$name.base"
    dd if=/dev/zero of="$name.base" bs=1M seek=1 count=1 conv=notrunc status=none
    qemu-img create -q -f qcow2 -F raw -b "$name.base" "$name.middle"
    qemu-img create -q -f qcow2 -F qcow2 -b "$name.middle" "$name.img"
    # What differs from the base goes to the top.
    qemu-img rebase -q -u -F raw -b "$name.raw" "$name.img"
    qemu-img rebase -q -F qcow2 -b "$name.middle" "$name.img"
}

format_packed() {
    need "$1"
    format_content
    "$1" -c <"$name.raw" >"$name.img"
}

format_nested() {
    format_image qcow2
    gzip -n "$name.img"
    mv "$name.img.gz" "$name.img"
}

# By the description of the format: contrib/seekable_format in zstd.
format_seekable() {
    need zstd
    format_content
    python3 - "$name" <<'END'
import struct, subprocess, sys
name = sys.argv[1]
content = open(name + '.raw', 'rb').read()
file, table, count = b'', b'', 0
for at in range(0, len(content), 1 << 17):
    part = content[at:at + (1 << 17)]
    frame = subprocess.run(['zstd', '-q', '-c'], input=part, capture_output=True, check=True).stdout
    file, table, count = file + frame, table + struct.pack('<II', len(frame), len(part)), count + 1
tail = struct.pack('<II', 0x184d2a5e, len(table) + 9) + table + struct.pack('<IBI', count, 0, 0x8f92eab1)
open(name + '.img', 'wb').write(file + tail)
END
}
