#!/bin/bash
# Views of --root: programs are told that they are root, become others, and own what they make in trees that keep owners.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
cd "$TMP" || exit 1
export LC_ALL=C
view() { timeout -k 1 60 "$VEDUTA" run -N --root "$@"; }
mkdir m d
mke2fs -q -t ext4 disk.img 16M
mounts=(--mount "ext4:disk.img:$TMP/m:rw" --mount "bind:$TMP/d:$TMP/d")

same "who they are, where nothing is mounted" "0 0 0 0" "$(view -- sh -c 'echo $(id -u) $(id -g) $(id -G) $(id -ru)')"

# Random calls, and what is told after each: natively, as root, they are the kernel's; then in a view.
cat >calls.py <<'END'
import ctypes, os, random, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
NUMBERS = {"setuid": 105, "setgid": 106, "setreuid": 113, "setregid": 114, "setresuid": 117, "setresgid": 119, "setfsuid": 122, "setfsgid": 123}
def call(number, *args):
    value = libc.syscall(number, *[ctypes.c_long(a) if isinstance(a, int) else a for a in args])
    return value if value >= 0 else "E%d" % ctypes.get_errno()
def told():
    sets = (ctypes.c_uint32 * 6)()
    head = (ctypes.c_uint32 * 2)(0x20080522, 0)
    call(125, head, sets)
    # Root may lack some here.
    full = FULL or list(sets)
    caps = ["none" if not sets[i] | sets[i + 3] else "all" if (sets[i], sets[i + 3]) == (full[1], full[4]) else "some" for i in range(3)]
    return os.getresuid(), os.getresgid(), os.getgroups(), caps, libc.prctl(7, 0, 0, 0, 0), list(sets) if not FULL else None
FULL = None
FULL = told()[-1]
for seed in range(int(sys.argv[1])):
    sys.stdout.flush()
    if child := os.fork():
        os.waitpid(child, 0)
        continue
    r = random.Random(seed)
    any_id = lambda: r.choice([0, 0, 1, 2, 3, 0xffffffff])
    print("seed", seed, call(116, 0, None), told())
    for _ in range(12):
        name = r.choice([*NUMBERS, "setgroups", "keep", "drop"])
        if name == "setgroups":
            groups = [r.choice([4, 5, 6]) for _ in range(r.randrange(4))]
            done = call(116, len(groups), (ctypes.c_uint32 * 4)(*groups))
        elif name == "keep":
            done = libc.prctl(8, r.randrange(2), 0, 0, 0)
        elif name == "drop":
            # All but CAP_CHOWN and CAP_SETUID, the inheritable ones unchanged.
            few = 1 | 1 << 7
            done = call(126, (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(few, few, 0, 0, 0, 0))
        else:
            done = call(NUMBERS[name], *[any_id() for _ in range(3)])
        print(name, done, told())
    sys.stdout.flush()
    os._exit(0)
END
in_view=$(view "${mounts[@]}" -- python3 calls.py "${SEEDS:-40}" 2>&1)
check "some hundred changes are answered" test "$(grep -c . <<<"$in_view")" -gt 400
if [ "$HOW" = root ]; then
    same "random changes of users, groups and capabilities are the kernel's" "$(python3 calls.py "${SEEDS:-40}" 2>&1)" "$in_view"
fi

cat >told.py <<'END'
import ctypes
sets = (ctypes.c_uint32 * 6)()
ctypes.CDLL(None).syscall(125, (ctypes.c_uint32 * 2)(0x20080522, 0), sets)
print("%x %x" % (sets[0], sets[1]))
END
same "a program that root runs has all capabilities again, another's none" "ffffffff ffffffff 0 0" "$(view -- python3 -c '
import ctypes, os, subprocess, sys
libc = ctypes.CDLL(None)
libc.syscall(126, (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(128, 128, 0, 0, 0, 0))
subprocess.run([sys.executable, "told.py"])
libc.prctl(8, 1, 0, 0, 0)
os.setuid(5)
subprocess.run([sys.executable, "told.py"])' 2>&1 | xargs)"

cat >orphan.py <<'END'
import os, sys, time
os.chdir("m")
os.chroot(".")
os.setresgid(8, 8, 8)
os.setresuid(7, 7, 7)
r, w = os.pipe()
middle = os.fork()
if middle == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(0.3)
        os.write(w, b"%d %d %s" % (os.getuid(), os.getgid(), " ".join(os.listdir("/")).encode()))
    os._exit(0)
os.waitpid(middle, 0)
print(os.read(r, 100).decode())
END
same "an orphan in a session of its own is who it was, and where" "7 8 lost+found" "$(view "${mounts[@]}" -- python3 orphan.py 2>&1)"

same "what root makes on an image is root's, and can be given away" "0:0 5:6 644" "$(view "${mounts[@]}" -- sh -c '
    echo hello >m/f; stat -c %u:%g m/f; mkdir m/home; chown 5:6 m/home; stat -c "%u:%g" m/home; stat -c %a m/f' 2>&1 | xargs)"
cat >other.sh <<'END'
exec 2>&1
(echo more >>m/f) | sed 's/.*: //'
echo own >m/home/x && stat -c '%u:%g %a' m/home/x
chown 0 m/home/x | sed 's/.*: //'
rm m/f | sed 's/.*: //'
cat m/secret | sed 's/.*: //'
cat m/f
END
same "another user may there what the bits say" "Permission denied|5:6 644|Operation not permitted|Permission denied|Permission denied|hello|" \
    "$(view "${mounts[@]}" -- sh -c 'umask 077; echo secret >m/secret; umask 022; setpriv --reuid 5 --regid 6 --clear-groups sh other.sh </dev/null' 2>&1 |
        sed 's/.*: \(.* \(denied\|permitted\)\)$/\1/' | tr '\n' '|')"
check "e2fsck finds the image clean" e2fsck -fn disk.img
same "the image keeps whose they are" "5 6" "$(debugfs -R 'stat /home/x' disk.img 2>/dev/null | sed -n 's/^User: *\([0-9]*\) *Group: *\([0-9]*\).*/\1 \2/p')"

me=$(id -u):$(id -g)
same "on the host, what is made is still one's own" "$me $me" "$(view "${mounts[@]}" -- sh -c 'echo a >d/a; echo b >b; stat -c %u:%g d/a b' 2>&1 | xargs)"
if [ "$HOW" = user ]; then
    same "and may not be given away" "Operation not permitted" "$(view "${mounts[@]}" -- sh -c 'chown 5 d/a' 2>&1 | sed 's/.*: //')"
fi
same "limits are told as they are" "unlimited unlimited 9 9 EPERM 0" "$(view "${mounts[@]}" -- python3 -c '
import os, resource as r
os.setuid(5)
R = r.RLIMIT_RTTIME
say = lambda: " ".join("unlimited" if x == -1 else str(x) for x in r.getrlimit(R))
print(say())
r.setrlimit(R, (9, 9)); print(say())
try: r.setrlimit(R, (3, 9))
except (PermissionError, ValueError): print("EPERM")
print(os.getuid() - 5)' 2>&1 | xargs)"

# A system in an image, run by somebody who is not root: the programs of busybox go by what they are told.
if busybox=$(type -P busybox); then
    cat >system.sh <<'END'
mkdir m/bin m/etc m/root m/tmp m/dev m/home; chmod 1777 m/tmp
cp "$1" m/bin/busybox
for name in sh id su chown cat touch stat mkdir tar; do ln -s busybox m/bin/$name; done
printf '%s\n' root:x:0:0::/root:/bin/sh tom:x:1000:1000::/home/tom:/bin/sh >m/etc/passwd; printf '%s\n' root:x:0: tom:x:1000: >m/etc/group
printf '%s\n' '#!/bin/sh' 'id -un; touch /home/tom/x /etc/x; stat -c %U:%G /home/tom/x' >m/bin/work; chmod 755 m/bin/work
chroot m /bin/sh -c 'mkdir /home/tom; chown tom:tom /home/tom; su tom -c work; tar cf /tmp/t.tar home; tar tvf /tmp/t.tar'
END
    same "S21: a system in an image has users" "tom|touch: /etc/x: Permission denied|tom:tom|tom/tom home/tom/x" \
        "$(view "${mounts[@]}" -- sh system.sh "$busybox" 2>&1 | sed -n 's/^-.* \([a-z]*\/[a-z]*\) .* \(home.*x\)$/\1 \2/p; /^\(tom\|touch.*\|tom:tom\)$/p' | paste -sd '|')"
fi
