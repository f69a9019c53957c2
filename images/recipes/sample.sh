# sample: the small disk that comes with the sources, see ../sample/README.md.
#
# shellcheck shell=bash disable=SC2154 # make sets `name` and `here`

image sample 'the bundled sample: GPT with FAT, ext4 and ext2; an ISO 9660 image inside' sample

sample() {
    need sfdisk mkfs.fat mcopy zstd xorriso
    sample_boot
    sample_disc
    (name=root && ext_make board 1024 14M -t ext4 -L root -m 0 -J size=1 && ext_settled "$name.img")
    (name=store && ext_make store 1024 1M -t ext2 -L data -m 0 -N 64 && ext_settled "$name.img")
    truncate -s 20M sample.img
    sfdisk --quiet --no-reread --no-tell-kernel sample.img <<'END'
label: gpt
label-id: 7e20c3d5-6c1a-4b9e-8f3d-5ade00000000
1 : start=2048, size=2048, type=uefi, name="boot", uuid=7e20c3d5-6c1a-4b9e-8f3d-5ade00000001
2 : start=4096, size=28672, type=linux, name="root", uuid=7e20c3d5-6c1a-4b9e-8f3d-5ade00000002
3 : start=32768, size=2048, type=linux, name="data", uuid=7e20c3d5-6c1a-4b9e-8f3d-5ade00000003
END
    sample_place boot.img 2048
    sample_place root.img 4096
    sample_place store.img 32768
    sfdisk --json sample.img >sample.parts.json
    "$here/truth" ext root.img >sample.root.jsonl
    "$here/truth" ext store.img >sample.data.jsonl
    "$here/truth" iso disc.iso >sample.disc.jsonl
    zstd -q -19 sample.img -o sample.img.zst
    cmp_sample
}

# FAT keeps whole seconds of local time, and TZ is UTC here.
sample_boot() {
    python3 "$here/lib/plant.py" spread boot 512 boot
    find boot -exec touch -d "@$SOURCE_DATE_EPOCH" {} +
    truncate -s 1M boot.img
    mkfs.fat --invariant -F 12 -n BOOT -i 5ade0001 boot.img
    mcopy -i boot.img -s -m -Q boot/* ::/
}

sample_disc() {
    python3 "$here/lib/plant.py" spread disc 2048 sample_disc
    find disc -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
    xorriso -outdev disc.iso -joliet on -padding 0 -volid SAMPLE -publisher '' -application_id '' \
        -map disc / -chown_r 0 / -- -chgrp_r 0 / -- \
        -alter_date_r b-c "=$SOURCE_DATE_EPOCH" / -- -volume_date c "=$SOURCE_DATE_EPOCH" \
        -volume_date m "=$SOURCE_DATE_EPOCH" -volume_date uuid 2023111422132000
}

ext_settled() {
    e2fsck -fn "$1"
    ext_sparse "$1"
}

sample_place() {
    dd if="$1" of=sample.img bs=512 seek="$2" conv=notrunc,sparse status=none
}

# Says so if the committed file is not what was made just now; the tools may be of another version.
cmp_sample() {
    if [ -e "$here/sample/sample.img.zst" ] && ! zstd -qdc "$here/sample/sample.img.zst" | cmp - sample.img; then
        echo 'sample/sample.img.zst holds something else'
        if [ "${VEDUTA_SAMPLE-}" = same ]; then return 1; fi
    fi
}
