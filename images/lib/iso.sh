# iso: makes ISO 9660 images from trees, under fakeroot(1) for owners and devices.
# shellcheck shell=bash

# iso TREE PROGRAM ARGUMENT...: the words IMAGE and SOURCE among the arguments
# stand for the image to make and the folder to make it from.
iso() {
    iso_make "$@"
    iso_truth "$name.iso"
}

# The same, with the truth of the other name trees beside it.
iso_views() {
    iso "$@"
    views=${views-joliet plain}
    for view in $views; do "$here/truth" iso "$name.iso" --view "$view" >"$name.$view.jsonl"; done
}

iso_make() {
    local -a tree program=()
    local word
    need fakeroot xorriso python3
    IFS=, read -r -a tree <<<"$1"
    shift
    need "$1"
    for word; do
        case $word in
        IMAGE) word=$name.iso ;;
        SOURCE) word=source ;;
        esac
        program+=("$word")
    done
    # genisoimage is known to run for ever on some names.
    # shellcheck disable=SC2016
    timeout 60 fakeroot sh -e -c 'unset SOURCE_DATE_EPOCH  # xorriso would give it to every file
        python3 "$here/lib/plant.py" furnish source 2048 $0
        "$here/truth" dir source >source.jsonl
        "$@"; chmod -R u+rwX source; rm -rf source' "${tree[*]}" "${program[@]}"
}

# What xorriso reads must be what was put in; times may differ, see `genisoimage -R` and links.
iso_truth() {
    "$here/truth" iso "$1" >"$name.truth.jsonl"
    grep -v -e '"path": "/rr_moved"' -e '"path": "/moved"' "$name.truth.jsonl" >same.jsonl
    "$here/truth" compare source.jsonl same.jsonl --only "${same-type,size,sha256,target,mode,uid,gid}"
}
