#!/bin/bash
# inotify(7) in a view: the events of virtual trees are those that the kernel gives for a directory of the host, one for one.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
cd "$TMP" || exit 1
command -v python3 >/dev/null || { skip "no python3 here"; exit; }
export HOSTDIR=$TMP/h
mkdir a m h low up host
cat >events.py <<'END'
import ctypes, os, select, struct, sys, threading, fcntl
libc = ctypes.CDLL(None, use_errno=True)
NAMES = {1: 'ACCESS', 2: 'MODIFY', 4: 'ATTRIB', 8: 'CLOSE_WRITE', 16: 'CLOSE_NOWRITE', 32: 'OPEN', 64: 'MOVED_FROM', 128: 'MOVED_TO', 256: 'CREATE', 512: 'DELETE', 1024: 'DELETE_SELF', 2048: 'MOVE_SELF', 0x2000: 'UNMOUNT', 0x4000: 'OVERFLOW', 0x8000: 'IGNORED'}
fd = libc.inotify_init1(0o4000)
watches = {}
def watch(path, mask=0xfff):
    wd = libc.inotify_add_watch(fd, path.encode(), mask)
    if wd < 0:
        print('watch', path, os.strerror(ctypes.get_errno())); return
    watches[wd] = path
    return wd
cookies = []
def events(title):
    seen = []
    p = select.poll(); p.register(fd, select.POLLIN)
    while p.poll(150):
        data = os.read(fd, 65536)
        while data:
            wd, mask, cookie, length = struct.unpack('iIII', data[:16])
            name = data[16:16 + length].rstrip(b'\0').decode(); data = data[16 + length:]
            if cookie and cookie not in cookies: cookies.append(cookie)
            what = '|'.join(n for bit, n in NAMES.items() if mask & bit) + ('|ISDIR' if mask & 0x40000000 else '')
            seen.append('%s:%s%s%s' % (watches.get(wd, '-'), what, ' ' + name if name else '', ' #%d' % cookies.index(cookie) if cookie else ''))
    print(title + ': ' + ', '.join(seen))
os.makedirs('d/sub'); open('d/old', 'w').write('old'); open('other', 'w').write('x')
watch('d')
open('d/f', 'w').write('x'); events('create')
os.mkdir('d/g'); os.symlink('f', 'd/l'); os.mkfifo('d/p'); os.link('d/f', 'd/h'); events('make')
os.chmod('d/f', 0o600); os.utime('d/f'); os.truncate('d/f', 0); events('change')
open('d/old').read(); events('read')
with open('d/old', 'a') as f: f.write('more')
events('append')
os.rename('d/f', 'd/r'); events('rename')
os.rename('d/r', 'out'); os.rename('out', 'd/in'); events('out and in')
watch('d/in', 0xe0e); os.rename('d/in', 'd/in2'); os.chmod('d/in2', 0o644); os.unlink('d/in2'); events('self')
os.unlink('d/l'); os.rmdir('d/g'); os.unlink('d/h'); events('remove')
libc.inotify_rm_watch(fd, 1); open('d/new', 'w').close(); events('no more')
watch('d/sub', 0x100 | 0x80000000); open('d/sub/1', 'w').close(); open('d/sub/2', 'w').close(); events('once')
watch('other', 0x01000000 | 2); watch('missing'); watch('d', 0)
w = watch('d', 0x100); watch('d', 0x200 | 0x20000000); open('d/m', 'w').close(); os.unlink('d/m'); events('added mask')
watch('d', 0x100 | 0x10000000)
watch(os.environ['HOSTDIR'], 0x100); open(os.environ['HOSTDIR'] + '/h', 'w').close(); open('d/v', 'w').close(); events('both')
os.unlink(os.environ['HOSTDIR'] + '/h')
t = threading.Timer(0.2, lambda: open('d/late', 'w').close()); t.start()
fcntl.fcntl(fd, fcntl.F_SETFL, 0); data = os.read(fd, 4096); t.join(); print('blocking read', data[16:].rstrip(b'\0'))
fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK); events('rest')
watch('d', 0xf00); watch('d/sub', 0xf00)
os.rename('d/sub', 'd/sub2'); open('d/sub2/x', 'w').close(); os.unlink('d/sub2/x'); events('dir moved')
for n in sorted(os.listdir('d/sub2')): os.unlink('d/sub2/' + n)
os.rmdir('d/sub2'); events('dir removed')
END
(cd a && python3 ../events.py) >native 2>&1
in_view() { timeout -k 1 30 "$VEDUTA" run --no-rc "$@" 2>&1; }
image() { rm -f img && truncate -s 8M img && mke2fs -q -F -E "root_owner=$(id -u):$(id -g)" img; }
for trap in notify trace ptrace; do
    image
    same "$trap: an image is watched as a directory is" "$(<native)" \
        "$(VEDUTA_TRAP=$trap in_view --mount "ext2:$TMP/img:$TMP/m" -- sh -c 'cd m && python3 ../events.py')"
done
# What a layer has a descriptor for is served by the engine while it is watched.
same "layers are watched as a directory is" "$(<native)" \
    "$(in_view --mount "viewfs:$TMP/up:$TMP/low:cow" -- sh -c 'cd low && python3 ../events.py')"

image
if command -v inotifywait >/dev/null; then
    same "inotifywait hears of files made, written and closed, and of those below" "m/ CREATE f
m/ OPEN f
m/ MODIFY f
m/ CLOSE_WRITE,CLOSE f
m/s/ CREATE g" "$(in_view --mount "ext2:$TMP/img:$TMP/m" -- sh -c '
        mkdir m/s
        timeout 5 inotifywait -q -m -r m >out & sleep .7; echo x >m/f; sleep .3; : >m/s/g; sleep .3; kill $!; head -5 out')"
else
    skip "no inotifywait here"
fi
image
same "tail -F follows a file of an image, and the next of its name" "one two three" "$(in_view --mount "ext2:$TMP/img:$TMP/m" -- sh -c '
    echo one >m/log; tail -F m/log >out 2>/dev/null & sleep .4; echo two >>m/log; sleep .2; mv m/log m/log.1; echo three >m/log
    for i in 1 2 3 4 5 6 7 8 9; do grep -q three out && break; sleep .2; done; kill $!; cat out' | xargs)"
same "a full queue overflows" overflow "$(in_view --mount "ext2:$TMP/img:$TMP/m" -- python3 -c '
import ctypes, os
libc = ctypes.CDLL(None); fd = libc.inotify_init1(0o4000); libc.inotify_add_watch(fd, b"m", 0x300)
most = int(open("/proc/sys/fs/inotify/max_queued_events").read())
for n in range(most // 2 + 2):
    os.mkdir("m/d"); os.rmdir("m/d")
data = b""
while True:
    try: data = os.read(fd, 1 << 20)
    except BlockingIOError: break
print("overflow" if data[-12:-8] == (0x4000).to_bytes(4, "little") else data[-16:])')"

# The end of a mount is an event of the kernel's, for whom shadows are a filesystem of their own. Natively, it is the same for a tmpfs.
cat >unmounted.py <<'END'
import ctypes, os, struct, subprocess, sys, time
libc = ctypes.CDLL(None)
fd = libc.inotify_init1(0o4000)
os.makedirs('m/d/e', exist_ok=True); open('m/f', 'w').close()
names = {libc.inotify_add_watch(fd, path.encode(), mask): path for path, mask in (('m', 0xfff), ('m/d', 0x100), ('m/f', 0xc00), ('m/d/e', 0x80000800), ('.', 0x100))}
open('m/f', 'w').close(); os.rename('m/d/e', 'm/d/g')
if sys.argv[1] == 'lazy':
    held = open('m/f'); subprocess.run(['umount', '-l', 'm'], check=True); held.close()
else:
    held = os.open('m', os.O_RDONLY); busy = subprocess.run(['umount', 'm'], stderr=subprocess.DEVNULL).returncode; os.close(held)
    print('busy' if busy else 'not busy'); subprocess.run(['umount', 'm'], check=True)
data, end = b'', time.time() + 12
while time.time() < end and data.count(struct.pack('II', 0x8000, 0)) < 4:
    try: data += os.read(fd, 65536)
    except BlockingIOError: time.sleep(0.02)
seen = []
while data:
    wd, mask, _, length = struct.unpack('iIII', data[:16]); data = data[16 + length:]
    if mask & 0xa000: seen.append((names[wd], 'unmount' if mask & 0x2000 else 'ignored'))
print(sorted(seen, key=lambda one: one[0]))
os.mkdir('m/' + sys.argv[1]); os.rmdir('m/' + sys.argv[1])
END
expected="busy
[('m', 'unmount'), ('m', 'ignored'), ('m/d', 'unmount'), ('m/d', 'ignored'), ('m/d/e', 'ignored'), ('m/f', 'unmount'), ('m/f', 'ignored')]"
if unshare -Urm true 2>/dev/null; then
    mkdir native.d && cp unmounted.py native.d
    same "umount natively: this is what the kernel tells" "$expected" "$(cd native.d && mkdir m && unshare -Urm sh -c 'mount -t tmpfs none m && python3 unmounted.py plain' 2>&1)"
    for plane in default emulated; do
        if [ $plane = default ]; then unset VEDUTA_PLANE; else export VEDUTA_PLANE=$plane; fi
        image
        same "$plane: umount is told to whom watches" "$expected" "$(in_view --mount "ext2:$TMP/img:$TMP/m" -- python3 unmounted.py plain)"
    done
    unset VEDUTA_PLANE
    image
    same "umount -l is told when the last file is closed" "${expected#*
}" "$(in_view --mount "ext2:$TMP/img:$TMP/m" -- python3 unmounted.py lazy)"
    image
    same "what is watched is watched where a mount was moved to, too" "['new', 'there'] busy [True, True]" "$(in_view --mount "ext2:$TMP/img:$TMP/m" -- python3 -c '
import ctypes, os, subprocess, struct
libc = ctypes.CDLL(None); fd = libc.inotify_init1(0o4000)
os.makedirs("m2", exist_ok=True); libc.inotify_add_watch(fd, b"m", 0x100)
subprocess.run(["mount", "--move", "m", "m2"], check=True)
os.mkdir("m2/new"); os.mkdir("m2/there")
data = os.read(fd, 4096); names = []
while data:
    length = struct.unpack("iIII", data[:16])[3]; names.append(data[16:16 + length].rstrip(b"\0").decode()); data = data[16 + length:]
os.chdir("m2"); busy = subprocess.run(["umount", "../m2"], stderr=subprocess.DEVNULL).returncode; os.chdir("..")
subprocess.run(["umount", "m2"], check=True); data = os.read(fd, 4096)
print(names, "busy" if busy else "free", [struct.pack("II", bit, 0) in data for bit in (0x40002000, 0x8000)])')"
else
    skip "the end of a mount as an event: no user namespaces here" fine
fi

# No shadow stays behind, also of an engine that was killed. Shadows are in a folder where no namespace can be had.
left() {
    local dir
    for dir in "${XDG_RUNTIME_DIR:-/dev/shm}" /dev/shm "${TMPDIR:-/tmp}" /var/tmp; do
        [ ! -e "$dir/.veduta-$1-watched" ] || echo "$dir/.veduta-$1-watched"
    done
}
if unshare -Ur true 2>/dev/null; then
    image
    # shellcheck disable=SC2016 # the view's shell expands it
    unshare -Ur sh -c 'echo 0 >/proc/sys/user/max_user_namespaces; echo 0 >/proc/sys/user/max_mnt_namespaces; exec "$@"' _ \
        timeout -k 1 20 "$VEDUTA" run --no-rc --mount "ext2:$TMP/img:$TMP/m" -- sh -c 'echo $PPID >engine; touch m/log.1; exec tail -F m/log.1' >/dev/null 2>&1 &
    until_true 10 test -s engine
    engine=$(<engine)
    has_shadows() { [ -n "$(left "$engine")" ]; }
    until_true 5 has_shadows
    check "without namespaces, a watch of an image has shadows in a folder" test -n "$(left "$engine")"
    kill -9 "$engine"
    wait $!
    same "an engine that is killed leaves no shadow" "" "$(left "$engine")"
else
    skip "shadows in a folder: no user namespaces here" fine
fi
