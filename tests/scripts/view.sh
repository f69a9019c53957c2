#!/bin/bash
# Views: programs with mounts of their own. The scenarios of View-OS's tutorials carry their numbers (S1...), those of ours
# are called B1...; all is tried on both data planes, and needs no privilege, no /dev/fuse and no namespaces.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
cd "$TMP" || exit 1
export LC_ALL=C VEDUTA TMP IMAGES

# The family's names for the program.
mkdir names m n d
for name in umvu umview vumount vuumount vuname viewname vu_insmod vu_lsmod vu_rmmod um_add_service um_fsalias vudebug; do
    ln -s "$VEDUTA" "names/$name"
done
PATH=$TMP/names:$PATH

# view ARGUMENT...: a view that cannot hang the tests.
view() { timeout -k 1 30 "$VEDUTA" run -N "$@"; }
# in_view [--mount M]... SCRIPT: what a shell script says in a view, and its exit status.
in_view() { view "${@:1:$#-1}" -- bash -c "${!#}" 2>&1; echo "status $?"; }
# like_native SENTENCE SCRIPT: the same output and status in a view in which everything is bound over itself. Each run has an
# empty directory of the same name.
like_native() {
    local native shown
    rm -rf work && mkdir work
    native=$(cd work && timeout -k 1 60 bash -c "$2" 2>&1; echo "status $?")
    rm -rf work && mkdir work
    shown=$(cd work && timeout -k 1 60 "$VEDUTA" run -N --mount bind:/:/ -- bash -c "$2" 2>&1; echo "status $?")
    same "$plane: $1" "$native" "$shown"
}
has() { for program; do command -v "$program" >/dev/null || { skip "no $program here" fine; return 1; }; done; }

# --- fixtures, made with other people's tools ---
mkdir -p tree/bin tree/dir
echo ciao >tree/greetings
printf '#!/bin/sh\necho "script $0 $*"\n' >tree/bin/script
printf '#!%s/m/bin/script one\n' "$TMP" >tree/bin/nested
chmod 755 tree/bin/*
cp "$(type -P true)" tree/bin/true
ln -s dir tree/link
mke2fs -q -t ext4 -d tree ext4.img 8M >/dev/null
mke2fs -q -t ext2 -L other other.img 1M >/dev/null
xorriso -outdev cd.iso -volid CD -map tree / >/dev/null 2>&1 || xorriso -as mkisofs -R -o cd.iso tree >/dev/null 2>&1
truncate -s 4M fat.img
mkfs.fat fat.img >/dev/null 2>&1

same "a bind shows what is covered, a recursive one what covers it" "below
above
above" "$(mkdir -p outside/in copy; echo below >outside/in/f; view --mount "tmpfs:none:$TMP/outside/in" -- sh -c 'echo above >outside/in/f
    mount --bind outside copy; cat copy/in/f; umount copy; mount --rbind outside copy; cat copy/in/f outside/in/f' 2>&1)"

# The planes that there are here. By default a bind has the host's descriptors and an image what is possible; `fuse` is both through the kernel.
planes="default emulated"
if out=$(VEDUTA_PLANE=fuse view --mount bind:/:/ -- true 2>&1); then planes="default fuse emulated"
else same "the plane fuse is refused with its name" 0 "$(grep -q 'VEDUTA_PLANE=fuse' <<<"$out"; echo $?)"; fi

# --- the view itself: the same on every plane ---
same "S1: the exit status of a view is the command's" "status 3" "$(in_view 'exit 3')"
refuse 127 'not found' "S1: a command that does not exist" env PATH=/usr/bin:/bin timeout -k 1 30 "$VEDUTA" run -N -- no-such-command
refuse 125 "unexpected argument '--no-such'" "an option that there is not" "$VEDUTA" run -N --no-such -- true
refuse 125 'takes TYPE:SOURCE:TARGET' "a mount that is written wrong" "$VEDUTA" run -N --mount nonsense -- true
same "options of the command are its own" "-N -l" "$(timeout -k 1 30 "$VEDUTA" run -N echo -N -l)"
same "S1: a shell's view is the host's" "$(ls /)" "$(umvu -N ls /)"
check "S1: vuname -P marks the prompt" umvu -N bash -c '[[ $(vuname -P) == "["*"]" ]]'
check "S1: vu_lsmod lists what is built in" bash -c 'umvu -N vu_lsmod | grep -q ^ext2:'
check "S1: a module that is built in can be loaded" umvu -N vu_insmod vufuse vufs
same "S54: a view has a name" 'mine' "$(view --name mine -- viewname)"
same "S54: a view is given a name" 'new' "$(view -- bash -c 'viewname new; viewname')"
refuse 2 'not a view' "S54: outside is no view" vuname
same "two processes make the first mounts at the same time" "$(printf 'ciao\nciao\n%.0s' 1 2 3 4 5)" "$(for round in 1 2 3 4 5; do
    view -- bash -c 'mount --bind tree m & mount --bind tree n & wait; cat m/greetings n/greetings' || echo "round $round failed"; done)"
printf '#!/bin/bash\nvumount -t ext2 %s/ext4.img %s/m\n' "$TMP" "$TMP" >.vurc
chmod 755 .vurc
same "S7: an rc file runs before the command" ciao "$(umvu cat m/greetings)"
same "S7: -N skips it" "" "$(umvu -N ls m)"
sed s/m$/n/ .vurc >other.rc && chmod 755 other.rc
same "S7: -f takes another" ciao "$(umvu -f other.rc cat n/greetings)"
rm .vurc
check "S9: calls are reported, with path and decision" bash -c \
    'umvu -N sh -c "vumount -t ext2 ext4.img m; vudebug +p; cat m/greetings; vudebug -p" 2>&1 | grep -q "open.*greetings.* descriptor"'

for plane in $planes; do
    if [ "$plane" = default ]; then unset VEDUTA_PLANE; else export VEDUTA_PLANE=$plane; fi

    same "$plane: S2: the tree once more" "$(ls /)" "$(umvu -N bash -c 'vu_insmod vufs; vumount -t vufs / m; ls m')"
    same "$plane: S2: its copy does not contain itself" "" "$(umvu -N bash -c "vumount -t vufs / m; ls m$TMP/m")"
    same "$plane: S3: layers, and back" "$(ls /; echo --; echo --; echo --)" "$(umvu -N bash -c "
        vumount -t vufs / m; vumount -t vufs / m; ls m$TMP/m; echo --; ls m$TMP/m$TMP/m; echo --; vuumount m; ls m$TMP/m; echo --")"
    same "$plane: S4: a mount point that does not exist, is listed" "unreal
/unreal
$(ls /)" "$(umvu -N bash -c 'vumount -t vufs / /unreal; cd /; ls -d unreal; ls -d /unreal; ls /unreal' 2>&1)"
    check "$plane: S4: its directory lists it" umvu -N bash -c 'vumount -t vufs / /unreal && ls / | grep -qx unreal'
    echo host >conf
    same "$plane: S5: a file is mounted over another" "80.80.80.80
host" "$(echo 80.80.80.80 >over; umvu -N bash -c 'vumount -t vufs over conf; cat conf'; cat conf)"
    same "$plane: S6: an open file keeps a mount busy, a lazy end does not" "32
ciao
0" "$(umvu -N bash -c 'vumount -t ext2 ext4.img m; exec 3<m/greetings; vuumount m 2>/dev/null; echo $?; vuumount -d m; cat <&3; ls m | wc -l')"
    refuse 32 busy "$plane: S6: a permanent mount stays" umvu -N bash -c 'vumount -t ext2 -o permanent ext4.img m; vuumount m'
    like_native "S8: read, write, rename, link, times, mmap, exec, cwd twice over" "
        echo one >a; mkdir d; mv a d/b; ln d/b c; ln -s d e; chmod 600 c; touch -d @1000 c; cat e/b; stat -c '%s %a %h %F' c d e; stat -c %Y c
        cd e; pwd; pwd -P; cp \$(type -P true) t; ./t; echo \$?; grep -c o b; rm ../c; stat -c %h b; rmdir ../d; truncate -s 10 b; wc -c b"
    same "$plane: S24: a writable image keeps what was written" "ciao
ciao
status 0" "$(view --mount "fat:$TMP/fat.img:$TMP/m" -- sh -c 'mkdir m/d; echo ciao >m/d/g; cat m/d/g; mv m/d/g m/g; rmdir m/d'; in_view --mount "fat:$TMP/fat.img:$TMP/m" 'cat m/g; rm m/g')"
    check "$plane: S24: fsck finds it clean" fsck.fat -n fat.img
    same "$plane: S24: outside nothing was mounted" "" "$(ls m)"
    before=$(cksum ext4.img)
    same "$plane: S25: a read-only image" "bin
dir
greetings
link
lost+found
touch: cannot touch 'm/new': Read-only file system
status 1" "$(in_view --mount "ext2:$TMP/ext4.img:$TMP/m:ro" 'ls m; touch m/new')"
    same "$plane: S25: its bytes stay" "$before" "$(cksum ext4.img)"
    same "$plane: S27: a CD" "bin dir greetings link ciao
status 0" "$(in_view --mount "iso9660:$TMP/cd.iso:$TMP/m" 'echo $(ls m) $(cat m/greetings)')"
    rm -f small.img; mke2fs -q -t ext2 -E "root_owner=$(id -u):$(id -g)" small.img 4M >/dev/null 2>&1
    same "$plane: the room of removed files is free again, also of one that was open or mapped, or gave way to another" "0
status 0" "$(in_view --mount "ext2:$TMP/small.img:$TMP/m" 'fill() { head -c 2500000 /dev/zero; }
        for n in 1 2 3; do fill >m/f || echo "no room for $n"; rm m/f; done; fill >m/g; exec 3<m/g; rm m/g; exec 3<&-; fill >m/h || echo "no room after an open one"
        : >m/i; mv m/i m/h; fill >m/k || echo "no room after one that gave way"; rm m/k
        ! command -v python3 >/dev/null || python3 -c "
import mmap, os
f = open(\"m/l\", \"w+b\"); f.truncate(2500000); p = mmap.mmap(f.fileno(), 0); p[:] = b\"x\" * 2500000; os.unlink(\"m/l\"); p.close(); f.close()"
        fill >m/n || echo "no room after a mapped one"; rm m/n; find m -type f -size +0 | wc -l')"
    check "$plane: and fsck finds the volume clean" e2fsck -fn small.img
    cp ext4.img d/
    same "$plane: S33: an image is mounted over the directory that it is in" "ciao
status 0" "$(in_view 'vumount -t ext2 d/ext4.img d; cat d/greetings; [ ! -e d/ext4.img ]')"
    same "$plane: S34: mount(8) and umount(8) mount and unmount" "on $TMP/m type ext2
ciao
gone
status 0" "$(in_view "mount -t ext2 ext4.img m && mount | sed -n 's/ (.*//; s/^[^ ]* on/on/; \\|$TMP/m|p'; cat m/greetings; umount m; ls m; echo gone")"
    # Busy while somebody may write; back again, unless it was never to be written.
    same "$plane: a mount is made read-only and writable again" "32
refused
two
32" "$(view -- bash -c 'mount -t tmpfs none m; exec 3>m/f; mount -o remount,ro m 2>/dev/null; echo $?; exec 3>&-; exec 4<m/f
        mount -o remount,ro m && { echo one >m/f; } 2>/dev/null || echo refused; mount -o remount,rw m && echo two >m/f; cat m/f; umount m -l; mount -o ro -t ext2 ext4.img m; mount -o remount,rw m 2>/dev/null; echo $?')"
    ! has python3 || same "$plane: a socket in a virtual tree is called what it was bound to" "m/sock m/sock m/sock m/so" "$(view --mount "tmpfs:none:$TMP/m" -- python3 -c '
import ctypes, socket
s = socket.socket(socket.AF_UNIX); s.bind("m/sock"); s.listen(); c = socket.socket(socket.AF_UNIX); c.connect("m/sock"); a, _ = s.accept()
room = ctypes.c_uint(6); text = ctypes.create_string_buffer(110); ctypes.CDLL(None).getsockname(s.fileno(), text, ctypes.byref(room))
print(s.getsockname(), c.getpeername(), a.getsockname() + c.getsockname(), text.raw[2:].rstrip(b"\0").decode() if room.value == 9 else room)' 2>&1)"
    view --mount "ext2:$TMP/ext4.img:$TMP/m" -- bash -c 'touch one; until [ -e two ]; do sleep 0.02; done; ls m' >one.out &
    until_true 5 test -e one
    same "$plane: S35: two views mount on one directory" lost+found "$(view --mount "ext2:$TMP/other.img:$TMP/m" -- ls m)"
    touch two
    wait $!
    same "$plane: S35: and each sees its own" "bin dir greetings link lost+found" "$(tr "\n" " " <one.out | sed "s/ $//")"
    rm -f one two one.out

    # --- files of an image, used in all ways at once ---
    if has python3; then
        rm -rf work files.img && mkdir work
        mke2fs -q -t ext4 -E "root_owner=$(id -u):$(id -g)" files.img 16M >/dev/null 2>&1
        # Emulated programs are copies, which may be run while they are open for writing.
        case "$plane of $planes" in "default of default fuse"* | fuse*) but='^$' ;; *) but='^busy' ;; esac
        same "$plane: files of an image are like the host's" "$(cd work && timeout -k 1 60 python3 "$TESTS/files.py" 2>&1 | grep -v "$but"; rm -r "$TMP/work")" \
            "$(view --mount "ext2:$TMP/files.img:$TMP/m" -- bash -c 'cd m; rmdir lost+found; python3 "$TESTS/files.py"' 2>&1 | grep -v "$but")"
        check "$plane: e2fsck finds the image clean" e2fsck -fn files.img
    fi

    # --- devices: those that reach nothing ---
    truncate -s 0 dev.img && truncate -s 4M dev.img && mke2fs -q -t ext4 dev.img >/dev/null 2>&1
    same "$plane: null and zero of an image work, other devices do not, and the host's stay as they are" "gone 000000 640 Permission denied $(stat -c %a /dev/null)" \
        "$(view --root --mount "ext2:$TMP/dev.img:$TMP/m" -- bash -c 'cd m; mknod null c 1 3; mknod zero c 1 5; mknod mem c 1 1; echo text >null && cat null && echo gone; head -c 3 zero | od -An -tx1 | tr -d " "
            chmod 640 null; python3 -c "import os; os.fchmod(os.open(\"null\", os.O_WRONLY), 0o600)" 2>/dev/null; stat -c %a null | sed s/600/640/; { cat mem 2>&1 || true; } | sed "s/.*: //"; stat -c %a /dev/null' | xargs)"
    rm -f dev.img

    # --- programs ---
    same "$plane: B2: programs and scripts in an image run" "script m/bin/script a b
script $TMP/m/bin/script one m/bin/nested x
status 0" "$(in_view --mount "ext2:$TMP/ext4.img:$TMP/m" 'm/bin/true && m/bin/script a b; m/bin/nested x')"
done

# The engine waited for ever for a thread that had become its process.
! has python3 || same "S65: one of 50 threads runs a program of an image" "script m/bin/script x
status 0" "$(view --mount "ext2:$TMP/ext4.img:$TMP/m" -- python3 -c "
import os, threading, time
for n in range(50): threading.Thread(target=time.sleep, args=(9,), daemon=True).start()
threading.Thread(target=lambda: os.execv('m/bin/script', ['m/bin/script', 'x'])).start(); time.sleep(9)" 2>&1; echo "status $?")"

# Files that were closed kept the engine's descriptors for seconds, until it had none left.
same "3000 files, one after the other, need no 3000 descriptors" "3000
status 0" "$(mkdir many; cd many && VEDUTA_PLANE=emulated prlimit --nofile=3500:3500 timeout -k 1 30 "$VEDUTA" run -N --mount bind:/:/ -- \
    bash -c 'for i in {1..3000}; do : >f$i || exit; done; ls | wc -l' 2>&1; echo "status $?")"
rm -r many

# What a program needs of the kernel, in a view in which everything is virtual.
for plane in $planes; do
    if [ "$plane" = default ]; then unset VEDUTA_PLANE; else export VEDUTA_PLANE=$plane; fi
    like_native "S64: coreutils" 'seq 1000 >a; sort -R a | sort -n | cmp a && split -l 100 a x; cat x* | md5sum; ls | wc -l
        cp -a a b; mv b c; ln -s c l; readlink -f l; install -m 700 -d p/q; dd if=a of=f bs=7 skip=3 seek=2 count=9 conv=notrunc status=none; md5sum f; du -b --apparent-size a
        truncate -s 1M s; cp --sparse=always s s2; stat -c %b s2; shred -u c; tac a | head -n 2; tail -c 5 a; tee t <a | wc -l; rm -r p; ls -1; df --output=target . | wc -l'
    like_native "S64: find, tar" 'mkdir -p t/{a,b}/{c,d}; for i in t/*/*; do echo $i >$i/f; ln $i/f $i/h; done; ln -s nowhere t/dangling; mkfifo t/fifo
        find t -printf "%p %y %m %n %s\n" | sort; tar cf x.tar t; tar tf x.tar | sort; mkdir u; tar xf x.tar -C u; diff -r --no-dereference -x fifo t u/t && find u -links 2 -type f | wc -l'
    ! has python3 || like_native "S67: descriptors go through sockets, over exec and fork" "python3 - <<'P'
import os, socket, array, subprocess, fcntl
open('f', 'w').write('hello')
a, b = socket.socketpair()
fd = os.open('f', os.O_RDWR)
if os.fork() == 0:
    socket.send_fds(a, [b'x'], [fd]); os._exit(0)
os.wait()
got = socket.recv_fds(b, 1, 1)[1][0]
print(os.read(got, 2), os.read(fd, 9), os.lseek(got, 0, 1))
os.set_inheritable(fd, True); os.lseek(fd, 1, 0)
print(subprocess.run(['cat', '/proc/self/fd/%d' % fd], close_fds=False, stdout=subprocess.PIPE).stdout)
os.dup2(fd, 0); print(subprocess.run(['cat'], stdout=subprocess.PIPE).stdout)
P"
    ! has python3 || like_native "S65: 200 threads, vfork, a group stop" "python3 - <<'P'
import os, threading, subprocess, signal, time
def work(n):
    with open('t%d' % n, 'w') as f: f.write(str(n))
    os.rename('t%d' % n, 'u%d' % n)
threads = [threading.Thread(target=work, args=(n,)) for n in range(200)]
[t.start() for t in threads]; [t.join() for t in threads]
print(sum(int(open('u%d' % n).read()) for n in range(200)))
p = subprocess.Popen(['sleep', '9']); os.kill(p.pid, signal.SIGSTOP)
print(os.WIFSTOPPED(os.waitpid(p.pid, os.WUNTRACED)[1])); p.send_signal(signal.SIGCONT); p.kill(); print(p.wait())
P"
    # Where a directory was listed from was kept for all who list it, by the number of the entry.
    ! has python3 || like_native "whoever removes what he lists misses none, though others list it too" "python3 - <<'P'
import os
os.mkdir('d')
for n in range(2000): os.mknod('d/%04d' % n + 'x' * 100)
for n, entry in enumerate(os.scandir('d')):
    os.unlink(entry.path)
    if n % 50 == 0: os.listdir('d')
print(os.listdir('d')); os.rmdir('d')
P"
    # A mapping that was written back in between brought back what was cut off.
    ! has python3 || like_native "a file that is cut stays cut, though mappings are written back" "python3 - <<'P'
import mmap, os
fd = os.open('f', os.O_RDWR | os.O_CREAT); os.ftruncate(fd, 200000); m = mmap.mmap(fd, 200000)
pids = []
for _ in range(4):
    pid = os.fork()
    if pid == 0:
        while True: os.sync()
    pids.append(pid)
wrong = 0
for n in range(150):
    os.ftruncate(fd, 200000); m[:] = bytes([n + 1]) * 200000; os.ftruncate(fd, 100)
    wrong += os.fstat(fd).st_size != 100; os.ftruncate(fd, 5000); wrong += os.pread(fd, 5000, 100) != bytes(4900)
[os.kill(pid, 9) for pid in pids]; print(wrong)
P"
    # umount(2), which says that it is busy, has the engine let go of what nobody uses.
    ! has python3 || same "$plane: what was stored in a map does not come back into a file that is made anew" "True 0
True 0
True 0" "$(view --mount "tmpfs:none:$TMP/m" -- python3 -c '
import ctypes, mmap, os, time
libc = ctypes.CDLL(None); os.chdir("m"); end = time.time() + 1; pids = []; hold = os.open("hold", os.O_CREAT)
for worker in range(3):
    pid = os.fork(); rounds = wrong = 0; path = "f%d" % worker
    while pid == 0 and time.time() < end:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC); os.ftruncate(fd, 100000)
        with mmap.mmap(fd, 100000) as memory: memory[60000:60100] = b"x" * 100
        os.close(fd)
        fd = os.open(path, os.O_RDWR | os.O_TRUNC); os.pwrite(fd, b"y", 150000); time.sleep(0.001)
        rounds += 1; wrong += os.pread(fd, 100, 60000) != bytes(100) or os.fstat(fd).st_size != 150001
        os.close(fd)
    if pid == 0: os.write(1, b"%s %d\n" % (str(rounds > 0).encode(), wrong)); os._exit(0)
    pids.append(pid)
while time.time() < end: libc.umount(b".")
for pid in pids: os.waitpid(pid, 0)' 2>&1)"
    ! has python3 || like_native "S65: 500 threads use paths at one time" "python3 - <<'P'
import os, threading
threading.stack_size(65536)
start, failed = threading.Barrier(500), []
def work(n):
    start.wait()
    try:
        for turn in range(5):
            name = 'f%d-%d' % (n, turn)
            with open(name, 'w') as f: f.write(name)
            os.rename(name, name + 'x'); assert os.stat(name + 'x').st_size == len(name) and os.path.lexists('.') and not os.path.exists(name)
            with open(name + 'x') as f: assert f.read() == name
            if turn < 4: os.unlink(name + 'x')
    except Exception as error: failed.append(error)
threads = [threading.Thread(target=work, args=(n,)) for n in range(500)]
[t.start() for t in threads]; [t.join() for t in threads]
print(len(os.listdir('.')), failed[:3])
P"
    ! has python3 || like_native "datagrams go to a path without connect, with descriptors" "mkdir d; cd d; python3 - <<'P'
import os, socket, array
a, b = [socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in '12']
a.bind('a'); b.bind(os.path.abspath('b')); print(a.sendto(b'one', 'b'), b.recv(9)); print(b.sendto(b'two', os.path.abspath('a')), a.recv(9))
r, w = os.pipe(); print(a.sendmsg([b'th', b'ree'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [w]))], 0, 'b'))
data, fds, *_ = socket.recv_fds(b, 9, 2); os.write(fds[0], b'through'); print(data, os.read(r, 9))
for where in ('nowhere', '/'):
    try: a.sendto(b'x', where)
    except OSError as error: print(error.strerror)
P"
    ! has python3 || like_native "S66: a signal ends a read of a fifo, or restarts it" "python3 - <<'P'
import os, signal
os.mkfifo('p'); r = os.open('p', os.O_RDWR)
class Hit(Exception): pass
def hit(*_): raise Hit
signal.signal(signal.SIGALRM, hit); signal.setitimer(signal.ITIMER_REAL, 0.05)
try: os.read(r, 1)
except Hit: print('interrupted')
import threading
signal.signal(signal.SIGALRM, lambda *_: None); signal.siginterrupt(signal.SIGALRM, False)
threading.Timer(0.2, os.write, (r, b'x')).start(); signal.setitimer(signal.ITIMER_REAL, 0.05); print(os.read(r, 1))
P"
    ! has python3 || like_native "what the Linux Test Project found: refusals, limits, set-id bits, O_PATH, splice" "python3 - <<'P'
import ctypes, os, resource, signal
libc = ctypes.CDLL(None, use_errno=True)
def said(what, work):
    try: print(what, work())
    except OSError as error: print(what, error.strerror)
def call(*args):
    done = libc.syscall(*[ctypes.c_long(a) if isinstance(a, int) else a for a in args])
    if done < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return done
open('f', 'w').write('hello'); os.mkdir('d'); buf = ctypes.create_string_buffer(512)
said('unknown flags: newfstatat', lambda: call(262, -100, b'f', buf, 9999))
said('unlinkat', lambda: call(263, -100, b'f', 9999)); said('linkat', lambda: call(265, -100, b'f', -100, b'g', 1))
said('statx', lambda: call(332, -100, b'f', 0, 0x80000000, buf)); said('faccessat2', lambda: call(439, -100, b'f', 0, -1))
said('readlink of nothing', lambda: call(89, b'', buf, 9))
how = (ctypes.c_uint64 * 3)
for name, flags, mode, resolve in (('a mode without O_CREAT', 0, 0o600, 0), ('a flag', 1 << 40, 0, 0), ('two roots', 0, 0, 24)):
    said('openat2 with ' + name, lambda: call(437, -100, b'f', how(flags, mode, resolve), 24))
fd = os.open('f', os.O_RDWR); vector = (ctypes.c_uint64 * 2)(ctypes.addressof(buf), 5)
said('preadv2 with a flag', lambda: call(327, fd, vector, 1, 0, 0, 1 << 30))
said('sync_file_range', lambda: call(277, fd, -1, 1, 1)); said('and', lambda: call(277, fd, 0, 1, 8))
name = os.open('f', os.O_PATH)
for work in (lambda: os.fchmod(name, 0o600), lambda: os.read(name, 1), lambda: os.ftruncate(name, 0), lambda: os.stat(name).st_size): said('O_PATH', work)
r, w = os.pipe()
said('splice out', lambda: (call(275, fd, 0, w, 0, 100, 0), os.read(r, 9)))
os.write(w, b'pipe'); said('splice in', lambda: (call(275, r, 0, fd, 0, 100, 0), os.pread(fd, 20, 0)))
said('a position of a pipe', lambda: call(275, fd, 0, w, (ctypes.c_int64 * 1)(0), 1, 0))
signal.signal(signal.SIGXFSZ, lambda *_: print('SIGXFSZ'))
resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))
said('a write up to the limit', lambda: os.pwrite(fd, b'x' * 30, 10)); said('beyond', lambda: os.pwrite(fd, b'x', 20))
said('truncate', lambda: os.truncate('f', 30)); said('fallocate', lambda: os.posix_fallocate(fd, 0, 30))
if os.getuid() == 0 and open('/proc/self/uid_map').read().split()[2] != '1':
    os.chown('d', 65534, 12345); os.chmod('d', 0o2777); os.setgroups([65534]); os.setegid(65534); os.seteuid(65534)
    os.close(os.open('d/f', os.O_CREAT, 0o2755)); print(oct(os.stat('d/f').st_mode), os.stat('d/f').st_gid)
    os.chmod('d', 0o3777); print(oct(os.stat('d').st_mode))
os.chmod('d', 0o700); d = os.open('d', 0); os.chmod('d', 0o400); said('fchdir', lambda: os.fchdir(d)); os.chmod('d', 0o700)
P"
    like_native "a directory that may be listed and not searched" "mkdir -m 700 d; touch d/x; chmod 600 d; ls -U d; chmod 300 d; ls -U d; ls d/x; chmod 700 d; rm -r d"
    ! has python3 || like_native "a socket is called what it was bound to" "python3 -c \"
import socket
s = socket.socket(socket.AF_UNIX); s.bind('sock'); s.listen(); c = socket.socket(socket.AF_UNIX); c.connect('sock'); a, _ = s.accept()
print([f() for f in (s.getsockname, c.getpeername, c.getsockname, a.getsockname, a.getpeername)], socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).getsockname())
\""
    ! has python3 || like_native "utimensat of no path is about a descriptor, and none is a bad address" "python3 -c \"
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True); call = lambda function, *words: (function(*words), ctypes.get_errno())
print(call(libc.utimes, None, None), call(libc.futimens, os.open('f', os.O_CREAT), None), call(libc.utimes, b'none', None))
\""
    ! has python3 || like_native "F_CREATED_QUERY tells who made a file (Linux 6.12)" "python3 -c \"
import errno, fcntl, os
def made(fd):
    try: return fcntl.fcntl(fd, 1028)
    except OSError as error: return errno.errorcode[error.errno]
for flags in os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_EXCL:
    fd = os.open('f%d' % flags, os.O_CREAT | flags, 0o600)
    again = os.open('f%d' % flags, os.O_CREAT | flags & ~os.O_EXCL)
    print(made(fd), made(os.dup(fd)), made(again), made(os.open('.', os.O_RDONLY)), made(0))
\""
    ! has python3 || like_native "a directory is watched" "python3 - <<'P'
import ctypes, os, struct
libc = ctypes.CDLL(None); fd = libc.inotify_init1(0); os.mkdir('d'); print(libc.inotify_add_watch(fd, b'd', 0x3c2))
open('d/f', 'w').write('x'); os.rename('d/f', 'd/g'); os.unlink('d/g')
seen, data = [], os.read(fd, 4096)
while data:
    _, mask, _, length = struct.unpack('iIII', data[:16]); seen.append((hex(mask), data[16:16 + length].rstrip(bytes(1)))); data = data[16 + length:]
print([event for n, event in enumerate(seen) if event not in seen[:n]])
P"
    ! has python3 || like_native "a file without a name is given one; chown to nobody new takes set-id bits" "python3 -c \"
import os
fd = os.open('.', os.O_TMPFILE | os.O_RDWR, 0o600); os.write(fd, b'x')
os.link('/proc/self/fd/%d' % fd, 'named', follow_symlinks=True); print(open('named').read(), os.fstat(fd).st_nlink)
os.close(os.open('f', os.O_CREAT)); os.chmod('f', 0o6755); os.chown('f', -1, -1); print(oct(os.stat('f').st_mode))\""
    # The engine gave the kernel the whole path, which had no room in an address.
    ! has python3 || like_native "a socket with a short name in a deep directory" "for i in 1 2 3 4 5 6; do mkdir dddddddddddddddddddd; cd dddddddddddddddddddd; done; python3 -c \"
import socket, os
a = socket.socket(socket.AF_UNIX); a.bind('s'); a.listen(); b = socket.socket(socket.AF_UNIX); b.connect('s')
print(a.getsockname(), b.getpeername(), os.listdir('.')); os.unlink('s')\""
    ! has chattr || like_native "flags of files and directories" 'touch f; mkdir d; chattr +d f d 2>&1; lsattr -d f d; chattr +i f; rm -f f; chattr -i f 2>/dev/null; lsattr f'
    if [ "$(id -u)" = 0 ] && setpriv --reuid 65534 --clear-groups true 2>/dev/null && has setfacl; then
        like_native "access control lists are shown and obeyed" 'chmod 755 .; mkdir d; chmod 700 d; echo x >f; chmod 640 f; echo y >d/g; cp f h
            setfacl -m u:65534:r f; setfacl -m u:65534:x d; setfacl -m u:65534:rw,m:: h; setfacl -d -m u:65534:rwx d; touch d/new; getfacl -p f d d/new
            nobody="setpriv --reuid 65534 --regid 65534 --clear-groups"; $nobody cat f; $nobody cat d/g; $nobody ls d; $nobody cat h; $nobody sh -c "echo z >f"; $nobody sh -c "echo z >d/new; cat d/new"
            setfacl -b f; $nobody cat f; getfacl -p f'
    fi
    ! has sqlite3 || like_native "B2: sqlite with a write-ahead log and mmap" 'sqlite3 x.db "pragma journal_mode=wal; pragma mmap_size=1000000; create table t(a); with recursive c(n) as (select 1 union all select n+1 from c where n<2000) insert into t select n from c; select count(*), sum(a) from t;"; sqlite3 x.db "pragma integrity_check; select max(a) from t"; ls'
done
unset VEDUTA_PLANE

# Directories that were opened kept a descriptor of the engine's each, for ever.
same "3000 directories need no 3000 descriptors" "3001 $TMP/many/5 ." "$(mkdir many; cd many && mkdir {1..3000} && prlimit --nofile=1000:1000 timeout -k 1 30 "$VEDUTA" run -N --mount bind:/:/ -- \
    sh -c 'cd 5; echo $(find .. -type d | wc -l) $(pwd) $(find .)' 2>&1 | tail -5)"
rm -r many

# A map of a sparse file was read and compared hole by hole.
su=$(command -v su || echo /bin/su)
if [ -u "$su" ] && [ "$(stat -c %u "$su")" != "$(id -u)" ]; then
    for mount in "bind:$TMP:$TMP/m" bind:/:/ none; do
        with=(--mount "$mount")
        [ "$mount" != none ] || with=()
        same "set-user-id programs run without that right, which is said once: $mount" "veduta: su: in a view, set-user-id programs run without the rights of their owner" \
            "$(timeout -k 1 20 "$VEDUTA" run -N "${with[@]}" -- sh -c "$su --help; $su --help" 2>&1 >/dev/null)"
    done
fi
# What stands for virtual files costs the engine descriptors. The last ones are kept for what lasts no longer than a call, so a program that
# has too many open hears it, and whatever else happens in the view goes on.
! has python3 || same "an engine that may have few descriptors says so when files are opened, and nothing else fails" "ENFILE [0, 0, 0]
fine" "$(ulimit -n 256; VEDUTA_PLANE=emulated timeout -k 1 40 "$VEDUTA" run -N --mount "bind:$TMP:$TMP" -- python3 -c "
import errno, os, subprocess
os.mkdir('few'); fds = []
try:
    while len(fds) < 150: fds.append(os.open('few/%d' % len(fds), os.O_RDWR | os.O_CREAT))
    print('all')
except OSError as error:
    said = [subprocess.run(words, stdout=subprocess.DEVNULL).returncode for words in (['sync'], ['sync', 'few/0'], ['stat', 'few/1'])]
    print(errno.errorcode[error.errno], said)
os.closerange(fds[0], fds[-1] + 1)
for n in range(300):
    os.close(os.open('few/%d' % n, os.O_RDWR | os.O_CREAT)); os.unlink('few/%d' % n)
os.rmdir('few'); print('fine')" 2>&1)"
! has python3 || check "a shared map of a sparse file of 20 GiB is quick" bash -c 'VEDUTA_PLANE=emulated timeout -k 1 10 "$VEDUTA" run -N --mount bind:/:/ -- python3 -c "
import mmap, os
f = open(\"sparse\", \"w+b\"); f.truncate(20 << 30); m = mmap.mmap(f.fileno(), 0); m[15 << 30] = 7; m.flush()
assert os.pread(f.fileno(), 2, 15 << 30) == bytes([7, 0]); m[-1] = 9; m.close()" && [ "$(tail -c 1 sparse | od -An -tu1)" -eq 9 ] && rm sparse'
traced() { timeout -k 1 30 "$VEDUTA" run -N --mount "ext2:$TMP/ext4.img:$TMP/m" -- strace -f -o st sh -c "cat m/greetings; true"; }
if ! has strace; then :
elif [[ ${VEDUTA_TRAP-} = *trace ]]; then
    refuse 1 'PTRACE_TRACEME.*Operation not permitted' "B7: a view that traces its processes itself leaves none for strace" traced
else
    check "B7: strace -f inside a view" bash -c "$(declare -f traced)"'; traced | grep -q ciao && grep -q exited st'
fi

# With programs of the host, with those that a bind shows, and with those of an image, which the engine cannot have run by changing registers.
# Who traces what stood already: it stands when ptrace(2) has returned, though the view has grown for it.
if [[ ${VEDUTA_TRAP-} != *trace ]] && [ "$(uname -m)" = x86_64 ] && has python3; then
    cat >attach.py <<'END'
import ctypes, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
child = os.fork()
if child == 0:
    os.kill(os.getpid(), signal.SIGSTOP)
    os._exit(0)
os.waitpid(child, os.WUNTRACED)
# PTRACE_ATTACH, then PTRACE_PEEKUSER of a register
done = [libc.ptrace(16, child, 0, 0), libc.ptrace(3, child, 0, 0) == -1 and ctypes.get_errno()]
os.kill(child, signal.SIGKILL)
sys.exit(done != [0, False] and print(done) or 0)
END
    same "what stands is traced at once, by the first of a view who traces" "" "$(seq 10 | while read -r _; do view --mount "tmpfs:none:$TMP/m" -- python3 attach.py 2>&1 </dev/null; done)"
fi

if [[ ${VEDUTA_TRAP-} != *trace ]] && has gcc gdb; then
    gcc -g -O0 -o debugged -x c - <<'END'
#include <stdio.h>
static int twice(int number) { return 2 * number; }
int main(int argc, char **argv) {
    FILE *file = fopen("m/greetings", "r");
    int sum = 0;
    for (int n = 0; n < 3; n++) sum += twice(n);
    printf("%d %d %s\n", sum, argc, file ? "greeted" : "not greeted");
    return sum;
}
END
    debug() { "${@:2}" gdb -nx -q -batch -ex 'set debuginfod enabled off' -ex 'break twice if number == 1' -ex 'run one' -ex backtrace -ex 'print number' -ex finish -ex 'info sharedlibrary' -ex continue "$1" 2>&1 | sed 's/0x[0-9a-f]*/ADDRESS/g; s/process [0-9]*/process/'; }
    native=$(debug ./debugged timeout -k 1 30)
    check "gdb does what is asked natively" grep -q 'Value returned is .2 = 2' <<<"$native"
    same "S65: gdb in a view: break, run, backtrace, print, finish" "${native/not greeted/greeted}" "$(debug ./debugged view --mount "ext2:$TMP/ext4.img:$TMP/m" --)"
    view --mount "ext2:$TMP/ext4.img:$TMP/m" -- cp debugged "$(type -P true)" m/
    same "S65: gdb with a program of an image" "$(sed "s,$TMP/debugged,$TMP/m/debugged," <<<"${native/not greeted/greeted}")" "$(debug m/debugged view --mount "ext2:$TMP/ext4.img:$TMP/m" --)"
    if has strace; then
        same "S65: strace with a program of an image, by a short path and by a long one, and of children" "exited with 6
exited with 0
exited with 6
0
6 one two $TMP/m/debugged" "$(view --mount "ext2:$TMP/ext4.img:$TMP/m" -- bash -c 'strace -o st -e trace=none m/debugged >out; grep -o "exited with [0-9]*" st; cd m; strace -o ../st -e trace=none ./true; grep -o "exited with [0-9]*" ../st
            cd ..; strace -o st -e trace=none "$TMP/m/debugged" >out; grep -o "exited with [0-9]*" st; strace -f -qq -o st make -s -f /dev/stdin <<<"all:; @m/bin/true one; $TMP/m/true two"; echo $?
            strace -f -qq -o st -e trace=execve python3 -c "import subprocess, sys; sys.exit(subprocess.run([sys.argv[1], sys.argv[2]], executable=sys.argv[1]).returncode)" "$TMP/m/debugged" "one two" >out; echo $? one two $(grep -o "$TMP/m/debugged" st | tail -n 1)' 2>&1)"
    fi
    view --mount "ext2:$TMP/ext4.img:$TMP/m" -- rm m/debugged m/true
    same "S65: gdb where everything is bound over itself" "$native" "$(debug ./debugged view --mount bind:/:/ --)"
    ! has strace || same "strace where everything is bound over itself" "+++ exited with 6 +++" "$(view --mount bind:/:/ -- strace -e trace=none ./debugged 2>&1 | tail -n 1)"
fi
same "a mount is moved with those that are in it" "bin dir greetings link lost+found deep lost+found
status 0" "$(in_view 'mount -t ext2 ext4.img m; mount -t ext2 other.img m/dir; touch m/dir/deep; mount --move m n; ls m; echo $(ls n) $(ls n/dir); umount n/dir; umount n; rm -f m/deep; mount -t ext2 other.img m; rm m/deep')"
same "a tree in memory is mounted by the name of the kernel's" "1777 64M data
touch: cannot touch '$TMP/m/x': Read-only file system
status 1" "$(in_view "mount -t tmpfs -o size=64M none m; echo data >m/f; echo \$(stat -c %a m) \$(df --output=size -BM m | tail -n 1) \$(cat m/f); umount m; [ ! -e m/f ] && mount -t tmpfs -o ro none m; touch $TMP/m/x")"
same "a loop device gets its image after it was opened, and lets go of it once" "0 1024
0
No such device or address" "$(view --mount "ext2:$TMP/ext4.img:$TMP/m" -- python3 -c "
import fcntl, os
control = os.open('/dev/loop-control', os.O_RDWR); name = '/dev/loop%d' % fcntl.ioctl(control, 0x4c82)
device = os.open(name, os.O_RDWR); image = os.open('$TMP/other.img', os.O_RDWR)
print(fcntl.ioctl(device, 0x4c00, image), os.pwrite(device, os.pread(device, 1024, 0), 0), flush=True)
other = os.open(name, os.O_RDWR); print(fcntl.ioctl(other, 0x4c01))
try: fcntl.ioctl(other, 0x4c01)
except OSError as error: print(error.strerror)" 2>&1)"

# The one that waits stopped once by the terminal and once more when told of it, so that fg stopped it again.
cat >keys.py <<'END'
import os, pty, re, select, sys, time
pid, terminal = pty.fork()
if pid == 0:
    os.environ["PS1"] = "ready> "
    os.execv("/bin/bash", ["bash", "--norc", "--noprofile", "-i"])
seen = b""
def expect(pattern, seconds=10):
    global seen
    end = time.time() + seconds
    while not re.search(pattern, seen):
        if time.time() > end:
            sys.exit("not seen: %r in %r" % (pattern, seen))
        if select.select([terminal], [], [], 0.1)[0]:
            seen += os.read(terminal, 65536)
    seen = b""
expect(rb"ready> ")
os.write(terminal, b"'%s' run -N -- sh -c 'echo be''gun; sleep 2; echo en''ded'\n" % sys.argv[1].encode())
expect(rb"begun")
time.sleep(0.5)  # a shell that is between vfork and exec does not stop, in a view or not
os.write(terminal, b"\x1a")
expect(rb"Stopped")
os.write(terminal, b"fg\n")
expect(rb"ended")
os.write(terminal, b"exit\n")
print("went on")
END
same "Ctrl-Z stops a view, and fg goes on with it" "went on" "$(timeout 40 python3 keys.py "$VEDUTA" 2>&1)"
