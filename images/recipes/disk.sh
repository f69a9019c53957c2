# disk: partitioned disks, made by sfdisk and sgdisk on plain files.
#
# NAME.parts.json is what `sfdisk --json` reads from them. Each partition begins
# with the text `partition N of NAME` and ends with its last byte set to N.
# shellcheck shell=bash disable=SC2154 # make sets `name` and `here`

image disk-mbr 'MBR: primary partitions, one of them unused, and an active one' disk_mbr
image disk-mbr-logical 'MBR: three logical partitions in an extended one, out of order' disk_logical
image disk-mbr-large 'MBR: partitions that end just below 2 TiB; sparse' disk_large
image disk-gpt 'GPT: names in several scripts, attributes, gaps, numbers out of order' disk_gpt
image disk-gpt-many 'GPT: 40 partitions' disk_many
image disk-gpt-backup 'GPT: the primary table is gone, the backup is not' disk_backup
image disk-gpt-hybrid 'GPT with a hybrid MBR' disk_hybrid
image disk-gpt-4096 'GPT: sectors of 4096 bytes' disk_large_sectors
image disk-apm 'an Apple partition map' disk_apple
image disk-bare 'no partition table' disk_bare

# disk SIZE: a table from the script on standard input.
disk() {
    need sfdisk
    truncate -s "$1" "$name.img"
    sfdisk --quiet --no-reread --no-tell-kernel "$name.img"
    disk_finish
}

disk_finish() {
    sfdisk --json "$name.img" >"$name.parts.json"
    python3 - "$name" <<'END'
import json, sys
name = sys.argv[1]
table = json.load(open(name + '.parts.json'))['partitiontable']
with open(name + '.img', 'r+b') as disk:
    for part in table['partitions']:
        number = int(part['node'].removeprefix(name + '.img').lstrip('p'))
        if part['type'] in ('5', 'f', '85'):
            continue  # an extended one holds the chain of the logical ones
        disk.seek(part['start'] * 512)
        disk.write(b'partition %d of %s\n' % (number, name.encode()))
        disk.seek((part['start'] + part['size']) * 512 - 1)
        disk.write(bytes([number]))
END
}

disk_mbr() {
    disk 16M <<'END'
label: dos
label-id: 0x1badcafe
1 : start=2048, size=4096, type=c, bootable
3 : start=8192, size=1, type=83
4 : start=10240, size=20000, type=82
END
}

disk_logical() {
    disk 32M <<'END'
label: dos
label-id: 0x0ddba115
1 : start=2048, size=2048, type=83
2 : start=63, size=100, type=83
4 : start=8192, size=50000, type=f
5 : start=40960, size=4096, type=83
6 : start=10240, size=4096, type=82
7 : start=20480, size=8192, type=b
END
}

disk_large() {
    disk 2097151M <<'END'
label: dos
label-id: 0x2faced00
1 : start=2048, size=1073741824, type=83
2 : start=4294963200, size=2048, type=83
END
}

disk_gpt() {
    disk 32M <<'END'
label: gpt
label-id: 11111111-2222-4333-8444-555555555555
3 : start=2048, size=4096, type=uefi, name="EFI", uuid=00000000-0000-4000-8000-000000000003
1 : start=20480, size=8192, type=linux, name="root – корень", uuid=00000000-0000-4000-8000-000000000001, attrs="LegacyBIOSBootable GUID:48,60"
2 : start=8192, size=2048, type=swap, name="exactly thirty-six characters in all", uuid=00000000-0000-4000-8000-000000000002, attrs="RequiredPartition"
7 : start=40000, size=1, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, uuid=00000000-0000-4000-8000-000000000007
END
}

disk_many() {
    {
        printf 'label: gpt\nlabel-id: 11111111-2222-4333-8444-000000000040\n'
        for n in $(seq 40); do
            printf '%d : start=%d, size=64, type=linux, name="part %d", uuid=00000000-0000-4000-8000-%012d\n' \
                "$n" $((2048 + n * 64)) "$n" "$n"
        done
    } >table
    disk 4M <table
}

disk_backup() {
    disk_gpt
    dd if=/dev/zero of="$name.img" bs=512 seek=1 count=33 conv=notrunc status=none
    sfdisk --json "$name.img" >backup.json # sfdisk falls back too
    cmp backup.json "$name.parts.json"
}

# sgdisk adds the first partition to the MBR, beside the protective one.
disk_hybrid() {
    need sgdisk
    disk_gpt
    sgdisk --hybrid 3 "$name.img"
}

# fdisk takes the size of a sector as an option, sfdisk that of the device.
disk_large_sectors() {
    need eatmydata
    truncate -s 32M "$name.img"
    printf 'g\nn\n1\n\n+8M\nn\n2\n\n+4M\nw\n' | eatmydata fdisk -b 4096 "$name.img"
    fdisk -b 4096 -o Start,Sectors -l "$name.img" | tail -n 2 >"$name.sectors"
}

# parted counts in sectors of 512 bytes: NUMBER:STARTs:ENDs:SIZEs:...
disk_apple() {
    need parted
    truncate -s 16M "$name.img"
    eatmydata parted -s "$name.img" mklabel mac mkpart one hfs+ 2048s 10000s mkpart two hfs+ 12288s 20479s
    parted -s -m "$name.img" unit s print | grep '^[0-9]' >"$name.parted"
}

disk_bare() {
    printf 'no partition table here\n' >"$name.img"
    truncate -s 1M "$name.img"
}
