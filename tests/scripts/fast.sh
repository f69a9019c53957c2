#!/bin/bash
# The fast path: what concerns no mount is decided in the process itself, and nobody can tell. Each sentence is tried with it and, where
# there is something to compare, without. Needs python3; gcc and gdb where they are there.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
cd "$TMP" || exit 1
export LC_ALL=C VEDUTA TMP
mkdir -p outer mnt src/sub full
echo virtual >src/file; echo deep >src/sub/file; echo covered >full/file; echo outside >outer/file
ln -s ../mnt/file outer/into; ln -s "$TMP/mnt" outer/mount; ln -s nowhere outer/dangling; ln -s /proc/self/fd outer/fds
M="bind:$TMP/src:$TMP/mnt"

view() { timeout -k 1 60 "$VEDUTA" run -N "$@"; }
fast() { view --mount "$M" "$@"; }
# alike SENTENCE SCRIPT: the same with and without the fast path.
alike() {
    local plain quick
    rm -rf work && mkdir work
    plain=$(VEDUTA_FAST=0 view --mount "$M" -- bash -c "$2" 2>&1; echo "status $?")
    rm -rf work && mkdir work
    quick=$(fast -- bash -c "$2" 2>&1; echo "status $?")
    same "$1" "$plain" "$quick"
}

if [ "$(uname -m)" != x86_64 ]; then skip "the fast path is for x86_64" fine; exit 0; fi
said=$(fast -- sh -c '"$VEDUTA" explain /etc/passwd')
case $said in
    *"fast path: on; "[1-9]*) pass "the fast path is on, and says so" ;;
    *"caught by seccomp notification"*) fail "the fast path is on, and says so" "$said" ;;
    *) skip "calls are not caught by notification here" fine; exit 0 ;;
esac
case $(VEDUTA_FAST=0 view --mount "$M" -- sh -c '"$VEDUTA" explain /etc/passwd') in
    *"fast path: off"*) pass "VEDUTA_FAST=0 turns it off" ;; *) fail "VEDUTA_FAST=0 turns it off" ;;
esac
caught() { grep -cE ' (openat|read|newfstatat|mmap) .*host$' "$1"; }
fast --trace all -- ls /usr/bin >/dev/null 2>trace.fast
VEDUTA_FAST=0 view --mount "$M" --trace all -- ls /usr/bin >/dev/null 2>trace.plain
check "calls outside of mounts do not come to the engine" test "$(($(caught trace.fast) * 5))" -lt "$(caught trace.plain)"

alike "what is virtual is seen by every way" '
    cat mnt/file outer/into outer/mount/file "$TMP/mnt/../mnt/./file" outer/../mnt/sub/../file mnt/sub/file
    cd mnt/sub && cat file ../file ../../outer/file ../../outer/into; ls .. ; cd ..; pwd; cat sub/../../outer/file; stat -c %n file
    cd ../outer; ls mount into; readlink into mount; test -e ../mnt/nothing || echo none; test -e ../mnt/file && echo there'
alike "what is not there is not there" '
    cat outer/nothing outer/file/x outer/dangling mnt/nothing mnt/file/x nothing/x "" /nothing outer/dangling/x; ls mnt/none outer/none
    stat "$TMP/mnt/none" outer/../none; readlink outer/file outer/none; test -x outer/file; echo $?; test -d outer/file/.; echo $?'
alike "changes are seen at once" '
    ln mnt/file mnt/hard; ln -s "$TMP/mnt/file" work/link; cat work/link mnt/hard; mv work/link work/moved; cat work/moved; rm mnt/hard
    mkdir work/a; ln -s ../../mnt work/a/m; cat work/a/m/file; mv work/a work/b; cat work/b/m/file; cat work/a/m/file; rm work/b/m
    echo new >work/b/f; cat work/b/f; (cd work/b && mv ../b ../c && cat f && ls ../c); chmod 0 work/c/f; stat -c %a work/c/f'
alike "mount points that move, go and come are followed" '
    mkdir -p work/p/q; mount --bind src work/p/q; cat work/p/q/file; mv work/p work/o; cat work/o/q/file; cat work/p/q/file
    mkdir -p work/p/q; cat work/p/q/file; umount work/p/q; ls work/p/q; mount --bind src work/p/none; cat work/p/none/file; ls work/p
    umount work/p/none; ls work/p; mount --bind src/file full/file; cat full/file; ln full/file work/same 2>/dev/null; umount full/file; cat full/file'
alike "a mount over a directory that is not empty" '
    mount --bind src full; cat full/file full/sub/file; cd full; cat file; cd ..; ln -s full work/f; cat work/f/file; umount full; cat full/file work/f/file'
alike "files of /proc tell the view's truth" '
    grep -c "$TMP/mnt" /proc/self/mounts /proc/self/mountinfo; readlink /proc/self/exe; exec 5<mnt/file; readlink /proc/self/fd/5; cat /proc/self/fd/5
    cat outer/fds/5 /dev/fd/5; cd mnt; readlink /proc/self/cwd; cat /proc/self/cwd/file; grep -c "libc.so.6" /proc/self/maps
    grep -E "r-xp.*(libc|ld-linux)" /proc/self/maps | sed "s/^[^ ]* //" | tr -s " "; head -c 0 /proc/version; sha256sum /lib/x86_64-linux-gnu/libc.so.6'
alike "descriptors are what they were" '
    exec 3<mnt/file 4<outer/file; read -r a <&3; read -r b <&4; echo "$a $b"; cat <&3; exec 3<&-; cat mnt/file mnt/file | wc -c
    (exec 3>work/out; echo x >&3; echo y >&3); cat work/out; echo z >>work/out; cat work/out; : >work/out; wc -c work/out; ls -l /dev/null | cut -c1'
alike "names are made and removed where they are" '
    ln -s ../mnt/made work/into; ln -s "$TMP/mnt/file" work/over; ln -s nowhere work/dangling; echo one >work/into; cat mnt/made; echo two >work/over; cat mnt/file; echo virtual >mnt/file; rm mnt/made; : >work/dangling; ls work
    cd work; : >a; echo x >>a; set -C; : >a; set +C; : >"$TMP/work/b"; : >../work/c; : >./d; rm a ../work/c ./d; rm -f none ../mnt/none ./none; unlink b; ls; rm -f over; cat ../mnt/file; mkdir dir; rm dir; unlink dir; : >dir; : >a/; rm a/; rm into/
    umask 077; : >mode; stat -c %a mode; umask 0; : >mode2; stat -c %a mode2; umask 022; : >file; mount --bind file mode; rm mode; unlink mode; echo new >mode; cat file; ln mode other; umount mode; cat mode; rm mode; ls
    mkdir -p way/to; mount --bind ../src way/to; rmdir way/to way; rm way; : >way; cat way/to/file; umount way/to; rm -r way; : >way; ls; rm way; mkdir p; mount --bind ../src p/absent; : >p/absent; cat p/absent/file; rm p/absent; rm -f p/absent; umount p/absent; : >p/absent; ls p
    : >/dev/null; echo >/dev/full; : >/proc/version; : >/proc/self/fd/1; (cd ../mnt && : >here && rm here && rm -f here && ls); cd ..; rm -rf work; : >work/x; mkdir work; cd work; (rmdir ../work; : >x; rm -f x; ls; mkdir ../work)'
alike "programs are those that are there now, and fail as ever" '
    cd work; cp /bin/true prog; for i in 1 2 3; do ./prog a; echo $?; done; mount --bind /bin/false prog; ./prog; echo $?; "$PWD/prog"; echo $?; umount prog; ./prog; echo $?
    cp /bin/false other; mv other prog; ./prog; echo $?; ./prog; echo $?; cp /bin/true prog; ./prog; echo $?; ln -s prog link; ln prog hard; ./link; ../work/hard; echo $?
    chmod 644 prog; ./prog; echo $?; chmod 755 prog; ./prog; echo $?; mkdir dir; ./dir; echo $?; ./none; echo $?; ./prog/x; echo $?; : >empty; chmod 755 empty; ./empty; echo $?
    printf "#!/bin/echo hello\n" >script; chmod 755 script; ./script; ./script; mkdir bin; mv prog bin/prog; for i in 1 2 3; do bin/prog; done; mount --bind ../src bin; bin/prog; echo $?
    umount bin; bin/prog; echo $?; env PATH=/nowhere:bin:/bin prog; echo $?; cd bin; ./prog; exec -a name ./prog'
alike "what many programs ask of the system is what it was" '
    cat /proc/filesystems; stat -c "%s %a %h" /proc/filesystems /proc/self/mounts /proc/version; stat -f -c %T / mnt mnt/file /proc /none outer/into outer/dangling; grep -c . <mnt/file </proc/filesystems'
fast --trace exec -- bash -c 'for i in 1 2 3 4 5 6 7 8 9 10; do /bin/ls -d / ; done' >/dev/null 2>trace.exec
check "a program that was run before does not come to the engine" test "$(grep -c '/bin/ls.*host$' trace.exec)" -lt 4

fast --trace all -- bash -c 'cd work; for i in 1 2 3 4 5 6 7 8 9 10; do : >made; echo >>"$TMP/work/made"; rm made; rm -f made none; done' >/dev/null 2>trace.names
check "nor does who makes or removes a name" test "$(grep -cE ' (openat|unlinkat) "[^"]*(made|none)"' trace.names)" -lt 4

cat >calls.py <<'END'
import ctypes, errno, os, sys, threading, signal, subprocess, mmap
libc = ctypes.CDLL(None, use_errno=True)
def told(name, *a):
    ctypes.set_errno(0)
    r = getattr(libc, name)(*a)
    print(name, r if r <= 0 else "ok", errno.errorcode.get(ctypes.get_errno(), 0) if r < 0 else "")
    return r
AT, bad, buf = -100, ctypes.c_void_p(8), ctypes.create_string_buffer(4096)
for path in [b"outer/file", b"mnt/file", b"outer/dangling", b"none", b"outer/file/", b"outer/", b".", b"..", b"/", b"", bad, None, b"x" * 300, b"/" * 4095, b"a/" * 2100]:
    for name, args in [("open", (path, os.O_RDONLY)), ("open", (path, os.O_RDONLY | os.O_NOFOLLOW)), ("open", (path, os.O_RDONLY | os.O_DIRECTORY)),
            ("open", (path, os.O_RDWR)), ("open", (path, os.O_PATH)), ("access", (path, os.R_OK)), ("access", (path, 99)), ("readlink", (path, buf, 4096)),
            ("readlink", (path, buf, 0)), ("faccessat", (AT, path, os.X_OK, 0x100)), ("stat", (path, buf)), ("stat", (path, bad)), ("lstat", (path, buf)),
            ("fstatat", (AT, path, buf, 0x1000)), ("fstatat", (77, path, buf, 0)), ("openat", (0, path, 0)), ("statx", (AT, path, 0, 0x7ff, buf)), ("statx", (AT, path, 0, 0, buf))]:
        told(name, *args)
for fd in [-1, 77, os.open("outer/file", 0), os.open("mnt/file", 0), os.open("outer", 0), os.open("mnt", 0), os.pipe()[0], os.open("/dev/null", 0), os.open("/proc/self/stat", 0)]:
    for name, args in [("fstat", (fd, buf)), ("fstat", (fd, bad)), ("lseek", (fd, 0, 2)), ("read", (fd, bad, 0)), ("pread", (fd, buf, 3, 1)), ("write", (fd, b"", 0)), ("fstatat", (fd, b"", buf, 0x1000)),
            ("openat", (fd, b"file", 0)), ("openat", (fd, b"../mnt/file", 0)), ("openat", (fd, b"none", 0)), ("faccessat", (fd, b"sub/none", 0, 0))]:
        told(name, *args)
    told("fchmod", fd, 0o644) if fd > 77 else None
print(os.fstat(os.open("outer/file", os.O_RDONLY | os.O_CLOEXEC)).st_nlink, os.fstat(os.memfd_create("x")).st_nlink)
with open("outer/file", "rb") as f: print(mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)[:3])
with open("mnt/file", "rb") as f: print(mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)[:3])
# Threads, signals in between, children.
wrong = []
def work(n):
    for i in range(300):
        if open("outer/file").read() != "outside\n" or open("mnt/file").read() != "virtual\n" or os.path.exists("outer/no%d" % i): wrong.append(n)
count = [0]
signal.signal(signal.SIGALRM, lambda *_: count.__setitem__(0, count[0] + 1))
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
[t.start() for t in threads]; work(9); [t.join() for t in threads]
signal.setitimer(signal.ITIMER_REAL, 0)
print("wrong", wrong, "signals", count[0] > 0)
print(subprocess.run(["cat", "outer/file", "mnt/file"], capture_output=True).stdout)
os.chdir("mnt/sub"); print(os.getcwd(), open("file").read(), open("../../outer/file").read(), os.path.exists("../../none"), sorted(os.listdir("..")))
END
alike "calls with every kind of argument answer as ever" 'python3 calls.py'

cat >race.py <<'END'
# Mounts and unmounts in one process; others, told by pipes, look at once, by every way.
import ctypes, os, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
T = os.environ["TMP"] + "/race"
os.makedirs(T + "/at", exist_ok=True); os.makedirs(T + "/from", exist_ok=True); os.makedirs(T + "/d", exist_ok=True)
open(T + "/from/f", "w").write("view"); open(T + "/plain", "w").write("host"); open(T + "/other", "w").write("view")
os.path.lexists(T + "/d/l") or os.symlink("../at", T + "/d/l")
def mount(a, b):
    if libc.mount(a.encode(), b.encode(), b"none", 4096, None): raise OSError(ctypes.get_errno(), "mount")
def umount(b): # lazily: somebody may be reading
    if libc.umount2(b.encode(), 2): raise OSError(ctypes.get_errno(), "umount")
def see(path):
    try: return open(path).read()
    except OSError: return None
def look(n):
    os.chdir(T)
    ways = [T + "/at/f", "at/f", "d/l/f", "d/../at/f", T + "/d/l/f"]
    files = [T + "/plain", "plain", "d/../plain"]
    return [see(w) for w in ways] + [os.path.exists(w) for w in ways] + [see(w) for w in files]
rounds, children = int(sys.argv[1]), []
for n in range(3):
    ask, asked = os.pipe(); say, said = os.pipe()
    if os.fork() == 0:
        os.close(asked)
        stop = []
        def noise():
            while not stop: look(n)
        threading.Thread(target=noise, daemon=True).start()
        while os.read(ask, 1): os.write(said, repr(look(n)).encode() + b"\n")
        os._exit(0)
    os.close(ask); children.append((asked, os.fdopen(say)))
wrong = 0
def all_see(expected):
    global wrong
    for asked, _ in children: os.write(asked, b"x")
    for _, say in children:
        line = say.readline().strip()
        if line != repr(expected): wrong += 1; print(line, "is not", expected)
with_mount = ["view"] * 5 + [True] * 5; without = [None] * 5 + [False] * 5
for i in range(rounds):
    mount(T + "/from", T + "/at"); all_see(with_mount + ["host"] * 3)
    mount(T + "/other", T + "/plain"); all_see(with_mount + ["view"] * 3)
    os.rename(T + "/d", T + "/e"); os.rename(T + "/e", T + "/d")
    umount(T + "/at"); all_see(without + ["view"] * 3)
    os.link(T + "/from/f", T + "/from/g"); os.unlink(T + "/from/g")
    umount(T + "/plain"); all_see(without + ["host"] * 3)
for asked, _ in children: os.close(asked)
print("wrong", wrong)
END
same "after mount(2) and umount2(2) returned, nobody sees what was there before" "wrong 0" "$(fast -- python3 race.py "${RACES:-25}" 2>&1)"
same "nor in a view that was idle" "wrong 0" "$(view -- sh -c "mount --bind src mnt && python3 race.py 5" 2>&1)"
cat >locks.py <<'END'
# A file is opened again and again while others mount: what was locked before stays locked.
import ctypes, fcntl, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
T = os.environ["TMP"]
os.makedirs(T + "/race/at", exist_ok=True)
mounter = os.fork()
if mounter == 0:
    while True:
        libc.mount((T + "/src").encode(), (T + "/race/at").encode(), b"none", 4096, None); libc.umount2((T + "/race/at").encode(), 2)
held = open(T + "/full/file", "r+"); fcntl.lockf(held, fcntl.LOCK_EX)
end, opened, lost = time.time() + float(sys.argv[1]), [], 0
while time.time() < end:
    opened += [os.open(T + "/full/file", os.O_RDONLY) for _ in range(100)]
    asked = fcntl.fcntl(held, 36, b"\1\0" + bytes(30)) # F_OFD_GETLK of a write lock: whoever else has one
    lost += asked[0] == 2
    if lost: break
    if len(opened) > 800:
        for fd in opened: os.close(fd)
        opened = []; fcntl.lockf(held, fcntl.LOCK_EX)
os.kill(mounter, 9); os.waitpid(mounter, 0)
print("lost", lost)
END
same "record locks stay while a file is opened and others mount" "lost 0" "$(fast -- python3 locks.py "${LOCKS:-2}" 2>&1)"
if command -v strace >/dev/null; then
    alike "strace inside shows the program's own calls" 'strace -o work/out -e trace=file,desc cat outer/file mnt/file && sed "s/0x[0-9a-f]*//g; s/[0-9]* vars//; s/st_[a-z]*=[^,}]*//g" work/out'
fi

if command -v gcc >/dev/null; then
    cat >own.c <<'END'
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>
/* Nothing but read, write, open and exit; access is a signal. */
#define ALLOW(n) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, n, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
static void handler(int s, siginfo_t *i, void *c) { (void)s; ((ucontext_t *)c)->uc_mcontext.gregs[REG_RAX] = i->si_syscall == SYS_access ? -EXDEV : -EIO; }
int main(void) {
    struct sigaction a = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
    sigaction(SIGSYS, &a, 0);
    struct sock_filter f[] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        ALLOW(SYS_read), ALLOW(SYS_write), ALLOW(SYS_openat), ALLOW(SYS_exit_group), ALLOW(SYS_rt_sigreturn),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_access, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)};
    struct sock_fprog p = {sizeof f / sizeof *f, f};
    char b[64] = "";
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &p)) return 9;
    int o = open("outer/file", O_RDONLY), m = open("mnt/file", O_RDONLY);
    int n = read(o, b, 32) > 0 && read(m, b + 8, 32) > 0 && access("outer/file", 0) < 0 && errno == EXDEV;
    write(1, b, 16);
    _exit(n ? 0 : 1);
}
END
    cat >more.c <<'END'
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>
static sigjmp_buf back; static volatile long jumps, alarms;
static void jump(int s) { (void)s; jumps++; siglongjmp(back, 1); }
static void count(int s) { (void)s; struct stat st; alarms += stat("outer/file", &st) == 0; }
static void cleaned(void *p) { *(int *)p = 1; }
static int clean;
static void *waits(void *p) { char c; pthread_cleanup_push(cleaned, &clean); read(*(int *)p, &c, 1); pthread_cleanup_pop(0); return 0; }
int main(void) {
    char stack[SIGSTKSZ * 4]; stack_t ss = {.ss_sp = stack, .ss_size = MINSIGSTKSZ + 1024}; sigaltstack(&ss, 0);
    struct sigaction a = {.sa_handler = count, .sa_flags = SA_ONSTACK | SA_RESTART}; sigaction(SIGALRM, &a, 0);
    struct itimerval fast = {{0, 500}, {0, 500}}, off = {{0, 0}, {0, 0}}; setitimer(ITIMER_REAL, &fast, 0);
    int bad = 0; struct stat st; char b[16];
    for (int i = 0; i < 20000; i++) { bad += stat("outer/file", &st) != 0; bad += stat("outer/none", &st) == 0; bad += access("mnt/none", 0) == 0; if (i % 16 == 0) { int f = open("mnt/file", 0); bad += read(f, b, 4) != 4 || b[0] != 'v'; close(f); } }
    (void)!sigsetjmp(back, 1); // a signal may come before the first of the loop
    a.sa_handler = jump; a.sa_flags = SA_NODEFER; sigaction(SIGALRM, &a, 0);
    for (volatile int i = 0; i < 3000; i++) if (sigsetjmp(back, 1) == 0) { for (int j = 0; j < 4; j++) bad += stat("/usr/lib/../lib/./x86_64-linux-gnu/none", &st) == 0; }
    setitimer(ITIMER_REAL, &off, 0);
    int p[2]; pipe(p); pthread_t t; pthread_create(&t, 0, waits, p); usleep(20000); pthread_cancel(t); void *r; pthread_join(t, &r);
    pid_t v = vfork(); if (v == 0) { int f = open("outer/file", 0); if (f < 0) _exit(3); execl("/bin/cat", "cat", "mnt/file", "outer/file", (char *)0); _exit(4); }
    int s; waitpid(v, &s, 0);
    printf("bad %d cancelled %d cleaned %d vfork %d signals %d\n", bad, r == PTHREAD_CANCELED, clean, s, alarms > 0);
    return 0;
}
END
    gcc -O1 -o own own.c 2>/dev/null && gcc -O1 -pthread -o more more.c 2>/dev/null
    alike "a program that filters calls itself, and handles SIGSYS" './own; echo $?; ./own; cat outer/file'
    same "a program that filters calls itself is not ended when files are emulated" "0" "$(VEDUTA_PLANE=emulated fast -- sh -c './own >/dev/null; echo $?' 2>&1)"
    alike "signals, alternate stacks, longjmp, cancelled threads, vfork" './more'
    gcc -O1 -static -o static more.c -pthread 2>/dev/null && alike "a static program" './static'
    if gcc -fsanitize=address -O1 -o asan more.c -pthread 2>/dev/null; then alike "a program with AddressSanitizer" 'ASAN_OPTIONS=detect_leaks=0 ./asan'; fi
    if command -v musl-gcc >/dev/null && musl-gcc -O1 -o musl -x c - <<<'#include <stdio.h>
int main(void) { char b[99]; FILE *f = fopen("outer/file", "r"), *g = fopen("mnt/file", "r"); fgets(b, 99, f); fputs(b, stdout); fgets(b, 99, g); fputs(b, stdout); return fopen("none", "r") != 0; }'; then
        alike "a program with another C library" './musl; echo $?'
    fi
    if command -v gdb >/dev/null; then
        gcc -g -O0 -o dbg -x c - <<<'#include <fcntl.h>
#include <unistd.h>
int main(void) { char b[9]; int f = open("outer/file", 0); int n = read(f, b, 8); return n == 8 ? 0 : 1; }'
        alike "gdb inside: breakpoints in the C library, single steps" 'gdb -nx -batch -ex "break open" -ex run -ex bt -ex finish -ex "stepi 50" -ex continue ./dbg 2>/dev/null | grep -E "^#1|exited" | sed "s/0x[0-9a-f]*//g; s/process [0-9]*//"'
    fi
    alike "a compiler and make" 'cd work && printf "#include <stdio.h>\nint main(){puts(\"built\");}" >a.c && printf "a: a.c\n\t@gcc -o a a.c\n" >Makefile && make -s a && ./a'
else
    skip "no gcc here" fine
fi
has_perl=$(command -v perl) && [ -n "$has_perl" ] && alike "perl" 'perl -MFile::Find -e "find(sub { print \"\$File::Find::name\n\" if /file/ }, qw(outer mnt full))" | sort'
