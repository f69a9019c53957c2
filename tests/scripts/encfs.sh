#!/bin/bash
# S31: encrypted directories, beside gocryptfs and encfs: what one wrote the other reads, both ways, in every combination of options that they offer.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
fsx=$(realpath "$(dirname "$0")/../fsx")
cd "$TMP" || exit 1
export LC_ALL=C.UTF-8
c=$TMP/cipher m=$TMP/m
mkdir "$c" "$m"
printf 'pass word\n' >pw
printf 'another\n' >pw2

check "the type has a page of options" bash -c '"$1" types encfs | grep -q passfile' _ "$VEDUTA"
check "init makes a volume" "$VEDUTA" encfs init --passfile pw --scrypt-cost 10 "$c"
refuse 1 'not empty' "init leaves a directory that holds something" "$VEDUTA" encfs init --passfile pw "$c"
check "info tells how it is encrypted" bash -c '"$1" encfs info "$2" | grep -q AES-256-GCM' _ "$VEDUTA" "$c"
check "info --json is JSON" bash -c '"$1" encfs info --json "$2" | python3 -m json.tool' _ "$VEDUTA" "$c"
refuse 32 'password is wrong' "a wrong password is called so" "$VEDUTA" encfs fsck --passfile pw2 "$c"
check "the password can be changed" "$VEDUTA" encfs passwd --passfile pw --new-passfile pw2 "$c"
refuse 32 'password is wrong' "and is another one then" "$VEDUTA" encfs fsck --passfile pw "$c"
check "also by programs" "$VEDUTA" encfs passwd --extpass 'cat pw2' --new-extpass 'cat pw' "$c"
refuse 32 'no encrypted directory' "a plain directory is refused" "$VEDUTA" encfs fsck --passfile pw "$m"

if ! "$VEDUTA" doctor --json | grep -q '"can_mount": true'; then
    skip "mounts: this machine allows none ($HOW)"
    exit
fi

unmount() { umount "$m" 2>/dev/null || fusermount3 -u "$m" 2>/dev/null || fusermount -u "$m"; }
# The directory is as it is to be when the server has ended.
settled() { until_true 10 bash -c "! pgrep -f 'umfuseenc[f]s .*$TMP' >/dev/null"; }
ours() { "$BIN/umfuseencfs" "$c" "$m" -o "passfile=$TMP/pw" 2>>log; }

# A little of everything, below $m. Names get longer than that of a volume with short names only can be if $1 says so.
fill() {
    local long
    long=$(printf 'x%.0s' $(seq "${1:-200}"))
    mkdir -p "$m/dir/sub/deep" "$m/$long" "$m/empty"
    echo deep >"$m/dir/sub/deep/file"
    echo long >"$m/$long/$long"
    printf ü >"$m/Größe ünïcödé"
    head -c 100001 "$VEDUTA" >"$m/content"
    : >"$m/nothing"
    head -c 4096 "$VEDUTA" >"$m/block"
    ln -s 'target/ü' "$m/relative"
    ln -s /absolute/target "$m/absolute"
    truncate -s 300000 "$m/holes"
    echo end >>"$m/holes"
    echo more >>"$m/content"
    truncate -s 77777 "$m/content"
    dd if=/dev/zero of="$m/content" bs=1 seek=4090 count=20 conv=notrunc status=none
    mv "$m/dir" "$m/moved"
    mv "$m/moved/sub/deep" "$m/empty/"
    chmod 640 "$m/block"
    touch -d '2001-02-03 04:05:06.789' "$m/block"
}
# What is there, and that it is what was written.
tree() {
    (cd "$m" && find . -type f -print0 | sort -z | xargs -0 sha256sum && find . -printf '%P %y %m %s %l %T@\n' | grep -v ' d ' | sort
        find . -type d -printf '%P %m\n' | sort)
}
cp_content() { (head -c 100001 "$VEDUTA"; echo more) | head -c 77777 >content && dd if=/dev/zero of=content bs=1 seek=4090 count=20 conv=notrunc status=none; }
cp_content

# both NAME LENGTH UNMOUNT-OF-THEIRS: `theirs` mounts the volume in $c with the original program.
both() {
    local name=$1 before after
    theirs || { fail "$name: the original program mounts it" "$(tail -5 log)"; return; }
    fill "$2"
    before=$(tree)
    unmount
    check "$name: is mounted" ours
    after=$(tree)
    same "$name: what they wrote is read" "$before" "$after"
    check "$name: content is what it should be" cmp content "$m/content"
    mkdir "$m/again"
    (m=$m/again; fill "$2")
    "$fsx" "$m/fsx" "${SEED:-1}" 300 200000 >sum || fail "$name: fsx" "$(cat sum)"
    rm -r "$m/moved" "$m/again/moved"
    mv "$m/again" "$m/again, renamed"
    before=$(tree)
    check "$name: is unmounted" unmount
    settled
    theirs || { fail "$name: the original program mounts it again" "$(tail -5 log)"; return; }
    after=$(tree)
    same "$name: what we wrote is read" "$before" "$after"
    check "$name: and is what it should be" cmp content "$m/again, renamed/content"
    same "$name: fsx's file too" "$(cat sum)" "$(sha256sum <"$m/fsx" | cut -d ' ' -f 1)"
    unmount
    check "$name: fsck finds nothing" "$VEDUTA" encfs fsck --passfile pw "$c"
    rm -rf "$c"
    mkdir "$c"
}

# The originals mount by the setuid program, which a user namespace does not have.
original() { [ "$HOW" != userns ] && command -v "$1" >/dev/null; }
without() { if [ "$HOW" = userns ]; then skip "$1 cannot mount in a user namespace" fine; else skip "$1 is missing"; fi; }

if original gocryptfs; then
    theirs() { gocryptfs -q -passfile pw "$c" "$m" 2>>log; }
    rm -rf "$c" && mkdir "$c"
    combinations=('')
    [ "$HOW" = root ] && combinations+=(-xchacha -aessiv -plaintextnames -deterministic-names '-longnamemax 100'
        '-raw64=false -hkdf=false' '-longnames=false -raw64=false')
    for options in "${combinations[@]}"; do
        # shellcheck disable=SC2086
        gocryptfs -q -init -scryptn 10 -passfile pw $options "$c" >>log 2>&1 || { fail "gocryptfs -init $options" "$(tail -5 log)"; continue; }
        length=200
        [ "$options" = '-longnames=false -raw64=false' ] && length=150
        both "gocryptfs $options" $length
    done
    combinations=(--deterministic-names)
    [ "$HOW" = root ] && combinations+=('' '--cipher aes-siv' '--cipher xchacha' --plaintext-names '--long-name-max 70')
    for options in "${combinations[@]}"; do
        # shellcheck disable=SC2086
        check "init $options" "$VEDUTA" encfs init --passfile pw --scrypt-cost 10 $options "$c"
        both "our $options" 200
    done
    check "a volume for the checks of gocryptfs" "$VEDUTA" encfs init --passfile pw --scrypt-cost 10 "$c"
    ours && fill && unmount && settled
    check "gocryptfs -fsck finds nothing" gocryptfs -q -fsck -passfile pw "$c"
    rm -rf "$c" && mkdir "$c"

    # An encrypted view of plain files, the same as theirs to the byte.
    mkdir plain theirs
    combinations=('')
    [ "$HOW" = root ] && combinations+=(-plaintextnames -deterministic-names)
    for options in "${combinations[@]}"; do
        rm -rf plain && mkdir plain
        (m=$TMP/plain; fill 200)
        # shellcheck disable=SC2086
        check "gocryptfs -init -reverse $options" gocryptfs -q -init -reverse -scryptn 10 -passfile pw $options plain
        check "gocryptfs shows the view" gocryptfs -q -reverse -passfile pw plain theirs
        check "we show it" "$BIN/umfuseencfs" "$TMP/plain" "$m" -o "passfile=$TMP/pw,reverse"
        names() { (cd "$1" && find . -printf '%P %y %l\n' | sort && find . -type f -printf '%P %s\n' | sort); }
        same "reverse $options: names and links are theirs" "$(names theirs)" "$(names "$m")"
        check "reverse $options: content is theirs" diff -r --no-dereference theirs "$m"
        cp -r "$m" "$c/copy"
        refuse 1 'Read-only' "reverse $options: it cannot be changed" touch "$m/new"
        unmount
        settled
        umount theirs 2>/dev/null || fusermount3 -u theirs
        check "reverse $options: the copy is a volume" "$BIN/umfuseencfs" "$c/copy" "$m" -o "passfile=$TMP/pw"
        check "reverse $options: of the same files" diff -r --no-dereference -x .gocryptfs.reverse.conf plain "$m"
        unmount
        settled
        rm -rf "$c" && mkdir "$c"
    done
else
    without gocryptfs
fi

# Blowfish is in OpenSSL's legacy provider.
printf '%s\n' 'openssl_conf = init' '[init]' 'providers = all' '[all]' 'default = on' 'legacy = on' '[on]' 'activate = 1' >openssl.cnf
if original encfs; then
    theirs() { OPENSSL_CONF=$TMP/openssl.cnf encfs --extpass="cat $TMP/pw" "$c" "$m" >>log 2>&1; }
    # Answers to the questions of expert mode: cipher, bits, block, names, chained, headers, external, checksums, random bytes, holes.
    combinations=('1 192 1024 1 y y n n 0 y')
    [ "$HOW" = root ] && combinations+=('1 256 1024 1 y y y y 0 y' '2 160 512 1 y y n n 0 y' '2 128 1024 4 y y n y 8 n'
        '1 128 4096 2 n y n n 0 n' '1 128 64 4 n n n 0 y' '2 256 256 4 y y y n 3 y' '1 192 1024 3 y y n n 0 y')
    for answers in "${combinations[@]}"; do
        # shellcheck disable=SC2086
        if ! printf '%s\n' x $answers 'pass word' | OPENSSL_CONF=$TMP/openssl.cnf encfs -S "$c" "$m" >>log 2>&1; then
            fail "encfs makes a volume: $answers" "$(tail -5 log)"
            continue
        fi
        unmount
        # The time that a guess takes is no matter here, but encfs asks for half a second.
        both "encfs $(grep -oE 'ssl/[a-z]+|nameio/[a-z0-9]+' "$c/.encfs6.xml" | tr '\n' ' ')($answers)" 120
    done
    for format in encfs encfs-paranoia; do
        check "init --format $format" "$VEDUTA" encfs init --passfile pw --format $format --kdf-time 1 "$c"
        both "our $format" 120
    done
else
    without encfs
fi

# Volumes of old programs, made by a program that shares nothing with ours.
kinds=(5)
[ "$HOW" = root ] && kinds+=(4 5-blowfish 5-stream)
rm -rf "$c"
for kind in "${kinds[@]}"; do
    check "a volume of version $kind is made" "$(dirname "$fsx")/encfs_old.py" "$kind" "$c"
    check "$kind: its fsck finds nothing" "$VEDUTA" encfs fsck --passfile pw "$c"
    refuse 32 'password is wrong' "$kind: a wrong password is called so" "$VEDUTA" encfs fsck --passfile pw2 "$c"
    check "$kind: is mounted" ours
    check "$kind: holds what it should" diff -r --no-dereference "$c.plain" "$m"
    refuse 1 'Read-only' "$kind: and is not changed" touch "$m/new"
    unmount
    settled
    if original encfs; then
        check "$kind: encfs mounts it" theirs
        check "$kind: and sees the same" diff -r --no-dereference "$c.plain" "$m"
        unmount
    fi
    rm -rf "$c" "$c.plain"
done

# S31 as it was written: the family's names and options, and the password asked for on the terminal.
rm -rf "$c" && mkdir "$c"
check "a volume for S31" "$VEDUTA" encfs init --passfile pw --scrypt-cost 10 "$c"
type_password() { # COMMAND...: what a person does
    python3 - "$@" <<'PYTHON'
import os, pty, sys
pid, tty = pty.fork()
if pid == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
seen = b""
while b"Password: " not in seen:
    seen += os.read(tty, 100)
os.write(tty, b"pass word\n")
try:
    while more := os.read(tty, 1000):
        seen += more
except OSError:
    pass
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
sys.exit(status or (b"word" in seen.replace(b"Password", b"") and 9))
PYTHON
}
check "S31: the password is asked for, and not shown" type_password "$BIN/umfuseencfs" -o 'pre=""' "$c" "$m"
echo ciao >"$m/ciao"
same "S31: plain names are seen" ciao "$(ls "$m")"
check "S31: and stored names are not" bash -c '! ls "$1" | grep -q ciao' _ "$c"
same "neither the arguments nor the environment of the server hold the password" '' \
    "$(pgrep -f "umfuseencfs .*$TMP" | while read -r pid; do tr '\0' '\n' <"/proc/$pid/cmdline"; tr '\0' '\n' 2>/dev/null <"/proc/$pid/environ"; done | grep 'pass word')"
unmount
settled
check "the same by veduta mount -t gocryptfs" "$VEDUTA" mount -t gocryptfs -o "extpass=cat $TMP/pw" "$c" "$m"
same "the file is there" ciao "$(cat "$m/ciao")"

# What others change, here through a second mount, in directories that the first remembers for longer, since it is told of changes.
unmount
settled
others=$TMP/others
mkdir "$others"
check "one mount of a volume" "$BIN/umfuseencfs" "$c" "$m" -o "passfile=$TMP/pw,loglevel=debug,logfile=$TMP/requests.log"
check "and another" "$BIN/umfuseencfs" "$c" "$others" -o "passfile=$TMP/pw"
mkdir -p "$others/d/sub" "$others/e"
for name in a b c sub/x "$(printf 'l%.0s' $(seq 200))"; do echo "$name" >"$others/d/$name"; done
ln -s a "$others/d/link"
everything() { (cd "$1" && find . -printf '%P %y %m %s %l %T@\n' | sort; find . -type f -print0 | sort -z | xargs -0 cat); }
alike() { [ "$(everything "$m")" = "$(everything "$others")" ]; }
look() { for _ in 1 2 3; do everything "$m" >/dev/null; find "$m" -ls >/dev/null; sleep 0.6; done; }
look
requests() { tail -n "+$1" requests.log | grep -Ec '\[(lookup|readdirplus) '; }
check "the log tells of requests" test "$(requests 1)" -gt 10
# The kernel may have let go of a listing by itself meanwhile; not each time.
for _ in 1 2 3 4 5; do
    sleep 1.2
    before=$(wc -l <requests.log)
    find "$m" -printf '%P %s %T@\n' >/dev/null
    sleep 0.2
    asked=$(requests $((before + 1)))
    [ "$asked" -gt 1 ] || break
done
case $(stat -f -c %T "$c")/$(uname -r) in
    # The long name costs a look, as all names do that are in files of their own.
    ext2/ext3/[789].* | tmpfs/[789].* | xfs/[789].* | btrfs/[789].* | ext2/ext3/6.[2-9]* | ext2/ext3/6.1[0-9]* | tmpfs/6.[2-9]* | tmpfs/6.1[0-9]*)
        check "after a second nothing is asked for again that nobody changed" test "$asked" -le 1 ;;
    *) skip "names are remembered for a second only on this filesystem or kernel" fine ;;
esac
# changed SENTENCE COMMAND: others do something, and soon it is seen.
changed() {
    local sentence=$1
    shift
    (cd "$others/d" && eval "$1") || fail "$sentence: others can"
    if until_true 15 alike; then pass "others: $sentence"; else fail "others: $sentence" "$(diff <(everything "$others") <(everything "$m"))"; fi
}
changed "a file is made" 'echo new >n'
changed "a file grows" 'echo more >>a'
changed "a file of the same size has another content" 'echo B >b; touch -d 2001-01-01 b'
changed "a mode" 'chmod 600 c; chmod 700 sub'
changed "a file in the place of another" 'echo other >t; mv t b'
changed "a file is removed" 'rm n'
changed "a directory in the place of a file" 'rm c; mkdir c; echo in >c/it'
changed "a link that leads elsewhere" 'ln -sfn sub link'
changed "a directory is moved" 'mv sub ../e/moved; echo y >../e/moved/y'
changed "a long name goes" 'rm l*'
changed "a long name comes" 'echo "$0" >"$(printf "m%.0s" $(seq 210))"'
look
mv "$m/d/a" "$m/e/a"
mv "$m/e/moved" "$m/moved"
changed "what was moved by us is changed" 'echo 3 >>../e/a; rm ../moved/y'
look
exec 5<"$m/d/b"
cat <&5 >/dev/null
echo appended >>"$others/d/b"
# shellcheck disable=SC2016
check "others: a file that is open grows" until_true 15 bash -c 'grep -q . <&5'
exec 5<&-
rm -rf "$m/d"
check "what we remove is gone for others" until_true 15 bash -c '! ls "$1/d" 2>/dev/null' _ "$others"
umount "$others" 2>/dev/null || fusermount3 -u "$others"

# Secrets: not in the log, not in a core, and not in memory for longer than they are needed.
unmount
settled
rm -rf "$c" && mkdir "$c" cores control
secret=$(head -c 18 /dev/urandom | base64 | tr +/ ab)
key=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')
echo "$secret" >pw3
echo "$key" >key
check "a volume of a given master key" "$VEDUTA" encfs init --passfile pw3 --scrypt-cost 10 --master-key --master-key-file key "$c"
cat >remembers <<'PYTHON'
import sys
pid, words = sys.argv[1], sys.argv[2:]
memory = open(f"/proc/{pid}/mem", "rb", 0)
for line in open(f"/proc/{pid}/maps"):
    range, may, *_ = line.split()
    if may.startswith("rw"):
        begin, end = (int(part, 16) for part in range.split("-"))
        memory.seek(begin)
        found = memory.read(end - begin)
        for word in words:
            if (bytes.fromhex(word[4:]) if word.startswith("hex:") else word.encode()) in found:
                print(word)
PYTHON
# The oldest is the server; the other, its guardian, was there before any secret was.
server() { pgrep -o -f "umfuseencf[s] .*$TMP"; }
# forgotten SENTENCE: the server's memory holds where it is mounted, and neither password nor master key.
forgotten() {
    same "$1" "$m" "$(python3 remembers "$(server)" "$m" "$secret" "${secret:3:12}" "${secret:0:8}" "$key" "${key:0:20}" "hex:$key" "hex:${key:0:32}" "hex:${key:32}" | sort -u)"
}
check "a volume is mounted with everything logged" "$BIN/umfuseencfs" "$c" "$m" -o "passfile=$TMP/pw3,loglevel=trace,logfile=$TMP/secret.log"
echo text >"$m/a file" && cat "$m/a file" >/dev/null
check "the log tells of what was done" grep -q write secret.log
same "and no secret" '' "$(grep -e "$secret" -e "$key" secret.log)"
if [ "$HOW" = root ]; then
    forgotten "the server has forgotten the password and the master key"
    unmount
    settled
    check "the volume is mounted by its master key" "$BIN/umfuseencfs" "$c" "$m" -o "extpass=cat $TMP/key,masterkey"
    forgotten "which is forgotten too"
elif [ "$HOW" = user ]; then
    refuse 1 'denied' "nobody else may look into the server's memory" head -c 1 "/proc/$(server)/mem"
fi
unmount
settled
# What leaves a core here, so that its absence tells something.
{ (cd control && bash -c 'ulimit -c unlimited; kill -ABRT $$'); } 2>/dev/null
if [ -n "$(ls control)" ]; then
    (trap - EXIT; ulimit -c unlimited; cd cores && exec "$BIN/umfuseencfs" "$c" "$m" -f -o "passfile=$TMP/pw3") 2>>log &
    pid=$!
    check "it is mounted, and may leave a core" until_true 10 mounted "$m"
    kill -ABRT $pid
    wait $pid 2>/dev/null
    same "a server that is aborted leaves none" '' "$(ls cores)"
    check "and no mount" until_true 10 not_mounted "$m"
else
    skip "cores are not left in the working directory here" fine
fi
rm -rf "$c" && mkdir "$c"
check "a volume to be damaged" "$VEDUTA" encfs init --passfile pw --scrypt-cost 10 "$c"
ours

# A block that somebody changed.
head -c 50000 "$VEDUTA" >"$m/damaged"
unmount
settled
file=$(find "$c" -type f -size +40k)
chmod u+w "$file"
at=$((18 + 3 * 4128 + 1000))
byte=$(od -An -tu1 -j $at -N 1 "$file")
# shellcheck disable=SC2059 # the format is the byte
printf "\\x$(printf %02x $((byte ^ 1)))" | dd of="$file" bs=1 seek=$at conv=notrunc status=none
check "it is mounted" "$BIN/umfuseencfs" "$c" "$m" -o "passfile=$TMP/pw,logfile=$TMP/damage.log"
dd if="$m/damaged" of=read bs=4096 conv=noerror,sync 2>/dev/null
same "only the damaged block cannot be read" '4' "$(cmp -l read <(head -c 50000 "$VEDUTA") 2>/dev/null | awk '{print int(($1 - 1) / 4096) + 1}' | sort -u)"
check "the log says which" grep -q 'block 3 .*corrupt' damage.log
unmount
settled
refuse 32 'block 3 ' "fsck says which" "$VEDUTA" encfs fsck --passfile pw "$c"
