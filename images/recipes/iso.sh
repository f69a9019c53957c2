# iso: ISO 9660 images by genisoimage and xorriso.
#
# genisoimage stamps the time of its run (volume dates, TF change times), so its
# images differ from run to run in those bytes. xorriso is told all its times.
# shellcheck shell=bash

same_joliet=type,size,sha256
volume_dates=(-volume_date c =1700000000 -volume_date m =1700000000 -volume_date uuid 2023111422132000)
dates=(-- -alter_date_r c =1700000000 / -- "${volume_dates[@]}")
xorrisofs=(xorriso -as mkisofs -quiet)

image iso-plain 'no extensions, names of 8.3 characters, versions (level 1)' \
    iso_plain short genisoimage -quiet -iso-level 1 -o IMAGE SOURCE
image iso-plain-xorriso 'the same by xorriso' \
    iso_plain short xorriso -outdev IMAGE -rockridge off -compliance iso_9660_level=1 -map SOURCE / "${volume_dates[@]}"
image iso-plain-relaxed 'no extensions; long, lower case, several dots, no versions' \
    iso_plain files genisoimage -quiet -U -o IMAGE SOURCE
image iso-1999 'ISO 9660:1999 by genisoimage -iso-level 4' \
    iso_plain files genisoimage -quiet -iso-level 4 -o IMAGE SOURCE
image iso-1999-xorriso 'ISO 9660:1999 as a second tree, beside Rock Ridge' \
    iso disc xorriso -outdev IMAGE -compliance iso_9660_1999 -map SOURCE / "${dates[@]}"
image iso-rr 'Rock Ridge by genisoimage' iso disc genisoimage -quiet -R -o IMAGE SOURCE
image iso-rr-xorriso 'Rock Ridge 1.10 by xorriso' iso disc "${xorrisofs[@]}" -R -o IMAGE SOURCE "${dates[@]}"
image iso-rr-112 'Rock Ridge 1.12: PX with serial numbers, hard links' \
    iso disc xorriso -outdev IMAGE -compliance new_rr -hardlinks on -map SOURCE / "${dates[@]}"
image iso-joliet 'Joliet by genisoimage' iso_joliet wide genisoimage -quiet -input-charset utf-8 -J -joliet-long -o IMAGE SOURCE
image iso-joliet-rr 'Joliet and Rock Ridge by genisoimage' \
    views='plain' iso_views wide genisoimage -quiet -input-charset utf-8 -R -J -joliet-long -o IMAGE SOURCE
image iso-joliet-rr-xorriso 'Joliet and Rock Ridge by xorriso' \
    iso_views disc "${xorrisofs[@]}" -R -J -joliet-long -o IMAGE SOURCE "${dates[@]}"
image iso-joliet-astral 'Joliet name with a surrogate pair' iso_views astral "${xorrisofs[@]}" -R -J -o IMAGE SOURCE "${dates[@]}"
image iso-deep 'directories deeper than 8, relocated by CL, PL, RE' iso deep genisoimage -quiet -R -o IMAGE SOURCE
image iso-deep-xorriso 'directories deeper than 8, relocated by xorriso' \
    iso deep xorriso -outdev IMAGE -compliance deep_paths_off -rr_reloc_dir moved -map SOURCE / "${dates[@]}"
image iso-deep-kept 'directories deeper than 8, not relocated' iso deep genisoimage -quiet -R -D -o IMAGE SOURCE
image iso-long 'names and links continued by CE, by genisoimage' iso lengthy,links=240 genisoimage -quiet -R -o IMAGE SOURCE
image iso-long-xorriso 'the same by xorriso' iso lengthy "${xorrisofs[@]}" -R -o IMAGE SOURCE "${dates[@]}"
image iso-crowd 'a directory of 600 names' iso_views crowd "${xorrisofs[@]}" -R -J -o IMAGE SOURCE "${dates[@]}"
image iso-empty 'nothing in it' iso empty "${xorrisofs[@]}" -R -J -o IMAGE SOURCE "${dates[@]}"
image iso-zisofs 'zisofs by xorriso, blocks of 32 KiB' \
    iso prose xorriso -outdev IMAGE -zisofs level=9:block_size=32k -map SOURCE / -set_filter_r --zisofs / "${dates[@]}"
image iso-zisofs-128k 'zisofs, blocks of 128 KiB' \
    iso prose xorriso -outdev IMAGE -zisofs level=9:block_size=128k -map SOURCE / -set_filter_r --zisofs / "${dates[@]}"
image iso-zisofs2 'zisofs of version 2' \
    iso prose xorriso -outdev IMAGE -zisofs version_2=on:block_size_v2=64k:susp_z2=off -map SOURCE / -set_filter_r --zisofs / "${dates[@]}"
image iso-zisofs2-z2 'zisofs of version 2, marked by Z2' \
    iso prose xorriso -outdev IMAGE -zisofs version_2=on:susp_z2=on -map SOURCE / -set_filter_r --zisofs / "${dates[@]}"
image iso-zisofs-mkzftree 'zisofs by mkzftree and genisoimage' zisofs_mkzftree
image iso-timezone 'times recorded in the zone UTC+5:45' \
    TZ=NPT-5:45 iso disc genisoimage -quiet -R -o IMAGE SOURCE
image iso-hidden 'a file in one name tree only' hidden
image iso-boot 'El Torito for BIOS and EFI, Rock Ridge and Joliet' boot
image iso-boot-floppy 'El Torito with a floppy image' boot_floppy
image iso-multi-extent 'a file of more than 4 GiB in two extents; sparse on disk' multi_extent
image iso-multi-extent-small 'a file of three extents, made by hand from three files' multi_extent_small
image iso-sessions 'two sessions by genisoimage: the first remains at sector 16' sessions
image iso-sessions-xorriso 'two sessions by xorriso: the last one is found at sector 16' sessions_xorriso
image iso-raw 'sectors of 2352 bytes, mode 1' raw_sectors 1
image iso-raw-mode2 'sectors of 2352 bytes, mode 2 form 1' raw_sectors 2

iso_plain() {
    iso_make "$@"
    "$here/truth" iso "$name.iso" --view plain >"$name.truth.jsonl"
    "$here/truth" iso "$name.iso" --view unmapped >"$name.unmapped.jsonl"
}

iso_joliet() {
    iso_make "$@"
    "$here/truth" iso "$name.iso" --view joliet >"$name.truth.jsonl"
    "$here/truth" compare source.jsonl "$name.truth.jsonl" --only "$same_joliet"
    "$here/truth" iso "$name.iso" --view plain >"$name.plain.jsonl"
}

zisofs_mkzftree() {
    need mkzftree
    # shellcheck disable=SC2016
    iso prose sh -e -c 'mkzftree source packed; genisoimage -quiet -R -z -o "$0" packed' IMAGE
}

hidden() {
    same=size iso_make few genisoimage -quiet -input-charset utf-8 -R -J -hidden hello.txt -hide-joliet noise -o IMAGE SOURCE
    "$here/truth" iso "$name.iso" >"$name.truth.jsonl"
    "$here/truth" iso "$name.iso" --view joliet >"$name.joliet.jsonl"
}

# The boot images are marked noise: what counts is that a reader finds them.
boot() {
    iso_make disc sh -e -c 'mkdir source/boot
        python3 -c "print(\"BIOS\" * 511, end=\"\")" >source/boot/bios.img; printf "%4s" end >>source/boot/bios.img
        python3 -c "print(\"EFI!\" * 4096, end=\"\")" >source/boot/efi.img
        touch -d @1700000000 source/boot/*.img source/boot; "$@"' sh \
        "${xorrisofs[@]}" -R -J -b boot/bios.img -c boot/boot.cat -no-emul-boot -boot-load-size 4 \
        -eltorito-alt-boot -e boot/efi.img -no-emul-boot -o IMAGE SOURCE "${dates[@]}"
    "$here/truth" iso "$name.iso" >"$name.truth.jsonl"
    xorriso -indev "$name.iso" -report_el_torito plain >"$name.eltorito.txt" 2>/dev/null
}

boot_floppy() {
    iso_make few sh -e -c 'truncate -s 1440K source/floppy.img; printf FLOPPY | dd of=source/floppy.img conv=notrunc status=none
        touch -d @1700000000 source/floppy.img; "$@"' sh \
        genisoimage -quiet -R -b floppy.img -c boot.cat -o IMAGE SOURCE
    "$here/truth" iso "$name.iso" >"$name.truth.jsonl"
    xorriso -indev "$name.iso" -report_el_torito plain >"$name.eltorito.txt" 2>/dev/null
}

# dd makes holes of the zeros again, so the 4 GiB never reach the disk.
multi_extent() {
    # shellcheck disable=SC2016
    iso_make huge sh -e -c 'out=$1; shift; "$@" | dd of="$out" bs=1M iflag=fullblock conv=sparse status=none' sh IMAGE \
        "${xorrisofs[@]}" -R -J -iso-level 3 -o - SOURCE "${dates[@]}"
    "$here/truth" iso "$name.iso" --large /huge >large.jsonl
    "$here/truth" compare source.jsonl large.jsonl --only size,pieces | grep '/huge' && return 1
    python3 - source.jsonl >"$name.truth.jsonl" <<'END'
import json, sys
for line in open(sys.argv[1]):
    entry = json.loads(line)
    for key in ('ino', 'nlink', 'blocks', 'data', 'ctime_s', 'ctime_ns', 'crtime_s', 'crtime_ns', 'atime_s', 'atime_ns', 'xattrs'):
        entry.pop(key, None)
    if entry['type'] == 'dir':
        entry.pop('size')
    print(json.dumps(entry))
END
}

# Three files that lie one after the other become one: their directory records get the first one's name, and all but
# the last the flag 0x80, `this is not the final record of the file` (ECMA-119 9.1.6). All sizes but the last must be
# whole sectors. No extensions: a reader must join records by name.
multi_extent_small() {
    # shellcheck disable=SC2016
    iso_make empty sh -e -c 'for n in 1 2 3; do python3 -c "
import hashlib, sys; n = int(sys.argv[1])
sys.stdout.buffer.write(hashlib.shake_128(b\"part%d\" % n).digest((0, 4096, 6144, 1000)[n]))" $n >source/PART.DA$n
        touch -d @1700000000 source/PART.DA$n; done; touch -d @1700000000 source; cat source/PART.DA? >whole; "$@"' sh \
        genisoimage -quiet -o IMAGE SOURCE
    python3 - "$name.iso" <<'END'
import sys
with open(sys.argv[1], 'r+b') as disc:
    image = disc.read()
    for n in (1, 2, 3):
        name = b'PART.DA%d;1' % n
        at = image.index(name)
        assert image.count(name) == 1
        disc.seek(at)
        disc.write(b'PART.DAT;1')
        disc.seek(at - 33 + 25)  # the flags of its record
        disc.write(bytes([0x80 if n < 3 else 0]))
END
    printf '{"path": "/", "type": "dir"}\n{"path": "/part.dat", "type": "file", "size": %d, "sha256": "%s"}\n' \
        "$(stat -c %s whole)" "$(sha256sum <whole | cut -d ' ' -f 1)" >"$name.truth.jsonl"
    # xorriso joins them too.
    "$here/truth" iso "$name.iso" --view plain >joined.jsonl
    "$here/truth" compare "$name.truth.jsonl" joined.jsonl --only size,sha256,type
}

sessions() {
    iso_make few genisoimage -quiet -input-charset utf-8 -R -J -o one.iso SOURCE
    local next=$(((($(stat -c %s one.iso) / 2048) + 15) / 16 * 16 + 64))
    cp one.iso "$name.iso"
    truncate -s $((next * 2048)) "$name.iso"
    iso_make wide genisoimage -quiet -input-charset utf-8 -R -J -C "0,$next" -M "$name.iso" -o two.iso SOURCE
    cat two.iso >>"$name.iso"
    "$here/truth" iso "$name.iso" --session 0 >"$name.first.jsonl"
    "$here/truth" iso "$name.iso" --session "$next" >"$name.truth.jsonl"
    echo "$next" >"$name.sector"
}

sessions_xorriso() {
    iso_make few xorriso -outdev IMAGE -map SOURCE / "${dates[@]}"
    iso_make wide xorriso -dev IMAGE -rm /hello.txt -- -map SOURCE /added "${dates[@]}"
    "$here/truth" iso "$name.iso" >"$name.truth.jsonl"
    local first
    first=$(xorriso -indev "$name.iso" -toc 2>/dev/null | sed -n 's/^ISO session  *:  *1 , *\([0-9]*\).*/\1/p')
    "$here/truth" iso "$name.iso" --session "$first" >"$name.first.jsonl"
    echo "$first" >"$name.sector"
}

# raw_sectors MODE: as a tool for bare CDs reads them. Error codes (EDC, ECC) are left zero: no reader of images looks.
raw_sectors() {
    iso disc "${xorrisofs[@]}" -R -o IMAGE SOURCE "${dates[@]}"
    python3 - "$name.iso" "$1" <<'END'
import sys
path, mode = sys.argv[1], int(sys.argv[2])
decimal = lambda n: n // 10 << 4 | n % 10
with open(path, 'rb') as disc:
    image = disc.read()
with open(path, 'wb') as disc:
    for n in range(len(image) // 2048):
        minute, rest = divmod(n + 150, 75 * 60)
        second, frame = divmod(rest, 75)
        head = b'\0' + b'\xff' * 10 + b'\0' + bytes([decimal(minute), decimal(second), decimal(frame), mode])
        if mode == 2:
            head += bytes([0, 0, 8, 0] * 2)  # subheader, twice: data, form 1
        disc.write((head + image[n * 2048:(n + 1) * 2048]).ljust(2352, b'\0'))
END
}
