# common: what recipes of all formats use. They run in an empty folder, with
# `set -e`, and `name` says what to make.
# shellcheck shell=bash disable=SC2154 # make sets `name` and `here`

# need TOOL...: or say which Debian package has it, and stop.
need() {
    local tool package
    for tool; do
        if type -P "$tool" >/dev/null; then continue; fi
        case $tool in
        mke2fs | debugfs | e2fsck | tune2fs) package=e2fsprogs ;;
        sfdisk) package=fdisk ;;
        mkfs.fat) package=dosfstools ;;
        mcopy | mmd) package=mtools ;;
        sgdisk) package=gdisk ;;
        mkzftree) package=genisoimage ;;
        genisoimage | isoinfo) package=genisoimage ;;
        qemu-img) package=qemu-utils ;;
        xz) package=xz-utils ;;
        *) package=$tool ;;
        esac
        echo "$tool: not found; install the Debian package $package"
        exit 1
    done
}

# These end with sync(2), which waits for every disk of the machine, also for one that hangs; eatmydata leaves that out.
sfdisk() { need eatmydata && eatmydata sfdisk "$@"; }
sgdisk() { need eatmydata && eatmydata sgdisk "$@"; }

# skip WHY: this machine cannot make the image, and that is not an error.
skip() {
    echo "$1"
    exit 77
}

# refused WHY: a driver must refuse the image and name this.
refused() {
    printf '%s' "$1" >refused
}

# A UUID that depends on the name of the image alone.
uuid_of() {
    local sum
    sum=$(printf %s "$1" | md5sum)
    printf '%s-%s-4%s-8%s-%s\n' "${sum:0:8}" "${sum:8:4}" "${sum:13:3}" "${sum:17:3}" "${sum:20:12}"
}

# kernel_truth IMAGE TYPE OPTIONS: what the kernel shows, if we may ask it. The
# mount lives in a namespace of its own, which ends with the command.
kernel_truth() {
    local base=${1%.img}
    if [ "$(id -u)" -ne 0 ] || [ ! -e /dev/loop-control ]; then return 0; fi
    mkdir -p mounted
    # shellcheck disable=SC2016
    if unshare -m sh -c 'mount -t "$2" -o "$3" "$1" mounted && exec "$here/truth" dir mounted' \
        sh "$1" "$2" "ro,loop,$3" >"$base.kernel.jsonl"; then return 0; fi
    rm -f "$base.kernel.jsonl"
}
