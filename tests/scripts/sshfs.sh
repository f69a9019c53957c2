#!/bin/bash
# sshfs through a mount: over a pipe to OpenSSH's sftp-server, and over ssh to an sshd of our own on loopback.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
fsx=$(realpath "$(dirname "$0")/../fsx")
cd "$TMP" || exit 1
export PATH=$PATH:/usr/sbin:/sbin LC_ALL=C.UTF-8
m=$TMP/m srv=$TMP/srv
mkdir m srv
server=/usr/lib/openssh/sftp-server

if ! "$VEDUTA" doctor --json | grep -q '"can_mount": true'; then
    skip "mounts: this machine allows none ($HOW)"
    exit
fi
if [ ! -x $server ]; then
    skip "sshfs: OpenSSH's sftp-server is missing"
    exit
fi

unmount() { umount "$m" 2>/dev/null || fusermount3 -u "$m" 2>/dev/null || "$VEDUTA" umount "$m"; }

# What is on the server, as its own file system shows it, or as the mount does. SFTP has whole seconds and counts no links.
facts() { (cd "$1" && find . -mindepth 1 ! -type d -printf '%p %y %m %s %Ts %l\n' -o -mindepth 1 -printf '%p %y %m %Ts\n' | sort); }

# --- A tree with everything that SFTP can carry ---------------------------------------------------------------------------
mkdir -p src/dir/sub src/many 'src/a name with spaces' "src/$(printf 'n%.0s' $(seq 255))"
head -c 3000000 /dev/urandom >src/dir/large
head -c 100 /dev/urandom >src/dir/sub/small
: >src/empty
truncate -s 5M src/sparse
printf 'x' | dd of=src/sparse bs=1 seek=4000000 conv=notrunc status=none
for i in $(seq 350); do echo "$i" >"src/many/entry $i"; done
printf 'odd' >"src/a name with spaces/Größe
and a line"
ln -s dir/large src/link
ln -s /nowhere/at/all src/dangling
ln -s "$(printf 'x/%.0s' $(seq 500))y" src/longlink
chmod 640 src/dir/large
chmod 755 src/dir/sub/small
chmod 1777 src/many
find src -exec touch -h -d @1234567890 {} +
touch -h -d @1000000000 src/dangling

# --- S30: a remote root, over a pipe ----------------------------------------------------------------------------------------
cp -a src srv/tree
mkfifo up down
$server <up >down &
child=$!
# shellcheck disable=SC2016
check "S30: a server on standard input and output is mounted" bash -c '"$1" -o passive ":$2" "$3" >up <down' _ "$BIN/umfusessh" "$srv" "$m"
same "S30: ls shows the remote root" tree "$(ls "$m")"
same "S30: and everything below it" "$(facts srv)" "$(facts "$m")"
check "S30: content is the same" diff -r --no-dereference src "$m/tree"
check "S30: veduta umount ends it" "$VEDUTA" umount "$m"
check "S30: the server has ended" until_true 5 bash -c "! kill -0 $child"
kill "$child" 2>/dev/null
wait "$child" 2>/dev/null
rm up down

refuse 1 'HOST' "a source without a host is refused" "$BIN/umfusessh" nowhere "$m"
refuse 32 'cannot be started' "a missing ssh is named" "$BIN/umfusessh" -o ssh_command=/no/ssh h: "$m"
refuse 32 'before the server spoke' "a program that says nothing is no server" "$BIN/umfusessh" -o ssh_command=/bin/true h: "$m"
printf '#!/bin/sh\necho Welcome to this machine, which has much to say\n' >talker
chmod +x talker
refuse 32 'not SFTP' "a program that says something else is none either" "$BIN/umfusessh" -o "ssh_command=$TMP/talker" h: "$m"
refuse 1 'unknown option' "an unknown option is named" "$BIN/umfusessh" -o nosuchthing h: "$m"

# --- An sshd of our own; where there can be none, a program that stands for ssh and begins a server at once ----------------------
mkdir -m 700 ssh
printf '#!/bin/sh\necho $$ >>%s\nexec %s\n' "$TMP/ssh/pids" $server >ssh/stand-in
chmod +x ssh/stand-in
: >ssh/pids
sshd_pid=
end_sshd() {
    for pid in $(sessions) $sshd_pid; do kill -CONT "$pid"; kill "$pid"; done 2>/dev/null
    [ -z "$sshd_pid" ] || wait "$sshd_pid" 2>/dev/null
    sshd_pid=
}
# The processes that serve.
sessions() { if [ -n "$sshd_pid" ]; then below "$sshd_pid"; else cat ssh/pids; fi; }
# The processes that descend from one.
below() {
    local pid
    for pid in $(pgrep -P "$1"); do below "$pid"; echo "$pid"; done
}
trap 'unmount 2>/dev/null; end_sshd; umount "$srv/full" 2>/dev/null; finish' EXIT

start_sshd() { # on a free port
    local port
    ssh-keygen -q -t ed25519 -N '' -f ssh/host
    ssh-keygen -q -t ed25519 -N '' -f ssh/id
    cp ssh/id.pub ssh/authorized
    [ "$(id -u)" != 0 ] || mkdir -p /run/sshd
    for _ in 1 2 3 4 5 6 7 8; do
        port=$((20000 + RANDOM))
        printf '%s\n' "ListenAddress 127.0.0.1" "Port $port" "HostKey $TMP/ssh/host" "AuthorizedKeysFile $TMP/ssh/authorized" \
            "PidFile none" "StrictModes no" "UsePAM no" "PasswordAuthentication no" "PermitRootLogin prohibit-password" \
            "Subsystem sftp internal-sftp" "LogLevel ERROR" >ssh/sshd_config
        printf '%s\n' "Host test" " HostName 127.0.0.1" " Port $port" " User $(id -un)" " IdentityFile $TMP/ssh/id" " IdentitiesOnly yes" \
            " StrictHostKeyChecking no" " UserKnownHostsFile $TMP/ssh/known" " LogLevel ERROR" >ssh/config
        "$(command -v sshd)" -D -f "$TMP/ssh/sshd_config" -E "$TMP/ssh/log" &
        sshd_pid=$!
        until_true 5 bash -c "(: </dev/tcp/127.0.0.1/$port) || ! kill -0 $sshd_pid"
        kill -0 "$sshd_pid" 2>/dev/null && return
        wait "$sshd_pid" 2>/dev/null
        sshd_pid=
    done
    return 1
}
case $HOW in
    root | self)
        if ! command -v sshd >/dev/null; then
            skip "ssh: openssh-server is missing"
        elif ! start_sshd; then
            skip "ssh: sshd does not start: $(cat ssh/log)"
        fi ;;
esac
to=ssh_configfile=$TMP/ssh/config
[ -n "$sshd_pid" ] || to=ssh_command=$TMP/ssh/stand-in
on() { "$BIN/umfusessh" "test:$srv" "$m" -o "$to${1:+,$1}"; }

# --- The same tree, both ways -------------------------------------------------------------------------------------------------
check "an ssh server is mounted" on
check "tar unpacks onto it" bash -c "tar -C src -cf a.tar . && mkdir $m/new && tar -C $m/new -xpf a.tar"
same "the server has the same, with the times of dangling links" "$(facts src)" "$(facts srv/new)"
same "and the mount shows it" "$(facts src)" "$(facts "$m/new")"
check "tar finds no difference" tar -df a.tar -C "$m/new"
check "tar packs from it what the server has" bash -c "tar -C $m/tree -cf b.tar . && tar -df b.tar -C srv/tree"
check "content is the same" diff -r --no-dereference src "$m/new"

# --- Names, links, errors -------------------------------------------------------------------------------------------------------
mkdir "$m/d" "$m/d/full"
: >"$m/d/full/x"
refuse 1 'not empty' "a directory that holds something stays" rmdir "$m/d/full"
refuse 1 'File exists' "a name is made once" mkdir "$m/d/full"
refuse 1 'No such file' "a name that is not there is told so" rmdir "$m/d/none"
refuse 1 'not permitted' "no devices" mknod "$m/d/dev" p
check "a file replaces another" bash -c "echo one >$m/d/a; echo two >$m/d/b; mv $m/d/a $m/d/b"
same "and is what it was" one "$(cat srv/d/b)"
check "a hard link is made" ln "$m/d/b" "$m/d/c"
same "by the server" 2 "$(stat -c %h srv/d/b)"
mv "$m/d" "$m/e"
echo more >>"$m/e/b"
same "a file is written below a directory that was renamed" "one
more" "$(cat srv/e/c)"
exec 7<>"$m/e/b"
rm "$m/e/b"
same "a file that is removed and open is read on" "one
more" "$(cat <&7)"
exec 7<&-
echo remote >srv/e/new
same "what the server makes is found at once" remote "$(cat "$m/e/new")"
check "chown to oneself, chmod, truncate" bash -c "cd $m/e && chown $(id -u) new && chmod 600 new && truncate -s 3 new"
same "have reached the server" "600 3" "$(stat -c '%a %s' srv/e/new)"
check "df shows the server's volume" test "$(stat -f -c %b "$m")" = "$(stat -f -c %b srv)"

# --- Content -----------------------------------------------------------------------------------------------------------------------
sum=$("$fsx" "$m/fsx1" "${SEED:-1}" "${FSX_OPS:-2000}" 1000000) || fail "fsx, large" "$sum"
same "fsx, large: the server has what it wrote" "$sum" "$(sha256sum srv/fsx1 | cut -d ' ' -f 1)"
sum=$("$fsx" "$m/fsx2" "${SEED:-2}" "${FSX_OPS:-2000}" 30000) || fail "fsx, small" "$sum"
same "fsx, small: the server has what it wrote" "$sum" "$(sha256sum srv/fsx2 | cut -d ' ' -f 1)"
head -c 20000000 /dev/urandom >srv/big
check "several readers read the same" bash -c "for i in 1 2 3 4 5 6; do cmp srv/big $m/big & pids=\"\$pids \$!\"; done; for p in \$pids; do wait \$p || exit 1; done"
check "several write at once" bash -c "for i in 1 2 3 4; do cp srv/big $m/big\$i & pids=\"\$pids \$!\"; done; for p in \$pids; do wait \$p || exit 1; done"
check "and the server has it all" bash -c 'for i in 1 2 3 4; do cmp srv/big srv/big$i || exit 1; done'
check "a copy on the server is the same" bash -c "cp $m/big $m/copy && cmp srv/big srv/copy"
rm srv/big[1-4] srv/copy

# --- A volume of the server that is full, below the root ------------------------------------------------------------------------------
if [ "$HOW" = root ]; then
    mkdir srv/full
    mount -t tmpfs -o size=1M,mode=777 tmpfs srv/full
    refuse 1 'No space left' "a volume that is full is told as that" dd if=srv/big of="$m/full/x" bs=64k status=none
    refuse 1 'No space left' "by close too" cp src/dir/large "$m/full/y"
    umount srv/full
fi

# --- A server that dies ------------------------------------------------------------------------------------------------------------
kill_sessions() { for pid in $(sessions); do kill -KILL "$pid" 2>/dev/null; done; : >ssh/pids; }
dd if=/dev/zero of="$m/w" bs=64k count=40000 conv=fsync 2>dd.err &
dd=$!
until_true 10 test -s srv/w
kill_sessions
if wait $dd; then fail "a write to a server that dies fails"; else pass "a write to a server that dies fails"; fi
check "with a clear error" grep -Eq 'Input/output error|not connected' dd.err
refuse 1 'not connected' "then there is no connection, and this is said" stat "$m/never seen"
check "the mount can be ended" unmount
rm -f srv/w

check "mounted to connect again" on reconnect,dcache_timeout=0
exec 7<"$m/big" 8<"$m/tree/dir/large"
head -c 1000000 <&7 >part1
head -c 1000 <&8 >/dev/null
dd if=/dev/zero of="$m/w" bs=64k count=8000 2>dd.err &
dd=$!
until_true 10 test -s srv/w
kill_sessions
# It fails unless nothing was under way in that moment, and then nothing is missing.
if wait $dd; then same "a write across a lost connection has lost nothing" $((8000 * 65536)) "$(stat -c %s srv/w)"; else
    check "a write across a lost connection fails" grep -Eq 'Input/output error|not connected|Stale' dd.err; fi
check "the next request connects again" ls "$m/tree"
same "a file that was open is read on" "$(sha256sum <srv/big)" "$(cat part1 - <&7 | sha256sum)"
check "a new file is written" bash -c "echo again >$m/again && grep -q again srv/again"
kill_sessions
head -c 3000000 /dev/urandom >other
mv other srv/tree/dir/large
ls "$m" >/dev/null 2>&1
refuse 1 'Stale' "a file that is another one now is not taken for it" dd bs=4096 skip=500 count=1 status=none of=/dev/null <&8
exec 7<&- 8<&-
check "unmounted" unmount
rm -f srv/w

# --- A server that is silent ---------------------------------------------------------------------------------------------------------
stop_sessions() { for pid in $(sessions); do kill -STOP "$pid" 2>/dev/null; done; }
go_on() { for pid in $(sessions); do kill -CONT "$pid" 2>/dev/null; done; }
# ends_when_killed SIGNAL SENTENCE COMMAND...
ends_when_killed() {
    local signal=$1 sentence=$2 pid
    shift 2
    "$@" >/dev/null 2>&1 &
    pid=$!
    sleep 0.3
    if ! kill -0 $pid 2>/dev/null; then fail "$sentence: it did not even wait"; return; fi
    kill "-$signal" $pid
    if until_true 5 bash -c "! kill -0 $pid"; then pass "$sentence"; else fail "$sentence"; kill -KILL $pid; fi
    wait $pid 2>/dev/null
}
check "mounted with short memory" on dcache_timeout=0,attr_timeout=0
stop_sessions
ends_when_killed TERM "a silent server: who asks for attributes can be ended" stat "$m/big"
ends_when_killed TERM "who reads can be ended" cat "$m/big"
ends_when_killed TERM "who removes can be ended" rm -f "$m/again"
ends_when_killed KILL "who makes can be killed" mkdir "$m/silent"
go_on
check "the server is used again when it answers" until_true 10 stat "$m/big"
check "unmounted after silence" unmount
check "mounted with a short deadline" on timeout=2,dcache_timeout=0,attr_timeout=0
stop_sessions
refuse 1 'timed out' "a request has a deadline" stat "$m/big"
go_on
check "and the mount lives on" until_true 10 stat "$m/big"
stop_sessions
check "the mount of a silent server can be ended" unmount
check "and its program ends too" until_true 20 bash -c "! pgrep -f '[u]mfusessh test:$srv $m'"
go_on

# --- Options ----------------------------------------------------------------------------------------------------------------------------
refuse 32 'No such file' "a directory that is not there is named" "$BIN/umfusessh" test:/no/such/dir "$m" -o "$to"
# A user namespace has no user but one.
ids="12 34"
[ "$HOW" != userns ] || ids="0 0"
check "symbolic links are followed and owners shown as wanted" on "follow_symlinks,uid=${ids% *},gid=${ids#* },umask=077,max_conns=2"
same "a link is what it leads to" "regular file $ids 600" "$(stat -c '%F %u %g %a' "$m/tree/link")"
check "two connections carry both ways" bash -c "cp $m/big $m/two && cmp srv/big srv/two && cmp $m/two srv/big"
check "unmounted from two connections" unmount
ln -s "$srv/tree/dir/large" srv/absolute
check "links are made relative, owners go by name" on transform_symlinks,idmap=name
same "an absolute link stays in the mount" tree/dir/large "$(readlink "$m/absolute")"
same "an owner of the same name is the same" "$(id -un)" "$(stat -c %U "$m/again")"
check "unmounted at last" unmount

# --- Others on this machine, and mount(8) ---------------------------------------------------------------------------------------------
if [ "$HOW" = root ]; then
    # Who may use the mount is who logs in on the server, unless the modes are to be checked here.
    other() { setpriv --reuid 65534 --regid 65534 --clear-groups "$@"; }
    echo secret >srv/secret
    chmod 600 srv/secret
    mkdir -m 700 srv/closed
    mkdir -m 1777 srv/common
    check "mounted for one alone" on
    refuse 2 'Permission denied' "others are kept out" other ls "$m"
    check "unmounted" unmount
    check "mounted for all" on allow_other
    same "others do what who mounted may" secret "$(other cat "$m/secret" 2>&1)"
    check "unmounted" unmount
    check "mounted for all, as modes say" on allow_other,default_permissions
    check "others look at it" other ls "$m"
    refuse 1 'Permission denied' "a file of mode 600 is closed to others" other cat "$m/secret"
    refuse 2 'Permission denied' "nor is it written" other sh -c "echo >>'$m/secret'"
    refuse 1 'Permission denied' "nor removed" other rm -f "$m/secret"
    refuse 2 'Permission denied' "nor a closed directory listed" other ls "$m/closed"
    check "what all may write is written" other sh -c "echo >'$m/common/x'"
    refuse 1 'not permitted' "and a mode is only its owner's to change" other chmod 777 "$m/secret"
    same "who mounted may all" secret "$(cat "$m/secret")"
    check "unmounted" unmount
    check "default_permissions alone" on default_permissions
    same "who mounted may all then too" secret "$(cat "$m/secret")"
    check "unmounted" unmount

    if command -v mount.fuse3 >/dev/null; then
        # mount(8) looks in the usual places only; ours is made one of them, in this namespace.
        mount -t tmpfs -o mode=755 none /usr/local/bin && ln -s "$BIN/umfusessh" /usr/local/bin/
        check "mount -t fuse.umfusessh" mount -t fuse.umfusessh -o "$to" "test:$srv" "$m"
        check "its type and source are shown" grep -q "^test:$srv $m fuse.umfusessh " /proc/self/mounts
        check "umount(8) ends it" umount "$m"
        printf '%s\n' "test:$srv $m fuse.umfusessh noauto,user,_netdev,nofail,x-systemd.automount,reconnect,allow_other,default_permissions,idmap=user,$to 0 0" >fstab
        check "a line of fstab mounts it" mount -T "$TMP/fstab" "$m"
        check "for all, nosuid and nodev for a user's line" grep -Eq "^test:$srv $m fuse.umfusessh rw,nosuid,nodev,.*allow_other" /proc/self/mounts
        refuse 1 'Permission denied' "as modes say" other cat "$m/secret"
        check "umount(8) ends that too" umount "$m"
        echo "umfusessh#test:$srv $m fuse ro,noauto,_netdev,$to 0 0" >fstab
        check "a line of the old form mounts it" mount -T "$TMP/fstab" "$m"
        refuse 1 'Read-only' "read-only if it says so" touch "$m/x"
        check "umount(8) ends it as well" umount "$m"
        echo "test:/nowhere $m fuse.umfusessh noauto,_netdev,$to 0 0" >fstab
        refuse 32 'No such file' "what goes wrong is told by mount(8)" mount -T "$TMP/fstab" "$m"
        echo "test:$srv $m fuse.umfusessh noauto,nonsense,$to 0 0" >fstab
        refuse 1 'unknown option' "and an option that nobody takes" mount -T "$TMP/fstab" "$m"
        umount /usr/local/bin
    else
        skip "fstab: mount.fuse3 is missing"
    fi
    rm -rf srv/secret srv/closed srv/common
fi
