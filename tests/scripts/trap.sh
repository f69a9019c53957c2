#!/bin/bash
# The mechanisms by which a view catches calls, each forced (B1): the same commands have the same outcome.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
cd "$TMP" || exit 1

mkdir d m b
echo hello >d/f
printf '#!/bin/sh\necho script %s\n' "\$1" >d/s
cp /bin/echo d/ec
chmod 755 d/s d/ec
dd if=/dev/zero of=img bs=1M count=4 status=none
mke2fs -q -F -E "root_owner=$(id -u):$(id -g)" -d d img
cat >exec.py <<'END'
import os, sys, threading, time
os.chdir("m")
threads = [threading.Thread(target=lambda: open("f").read()) for _ in range(20)]
for thread in threads: thread.start()
for _ in range(10): threading.Thread(target=time.sleep, args=(9,), daemon=True).start()
for thread in threads: thread.join()
def run(): os.execv("./ec", ["ec", "thread"])
if sys.argv[1] == "1": run()
threading.Thread(target=run).start()
time.sleep(5)
END
view=("$VEDUTA" run --mount "ext2:img:$TMP/m" --mount "bind:$TMP/d:$TMP/b" --)

for trap in notify trace ptrace; do
    export VEDUTA_TRAP=$trap
    in_view() { timeout -k 1 20 "${view[@]}" "$@" 2>&1; }
    same "$trap: pipelines read what is mounted" "2 hello" "$(in_view sh -c 'cat m/f b/f | uniq -c | tr -s " " | cut -c2-')"
    same "$trap: virtual programs and scripts run" "virtual script one" "$(in_view sh -c 'm/ec virtual; m/s one' | xargs)"
    same "$trap: a working directory may be virtual" "$TMP/m hello" "$(in_view sh -c 'cd m && pwd && cat f' | xargs)"
    same "$trap: writing and appending" "hello more" "$(in_view sh -c 'echo hello >m/n; echo more >>m/n; cat m/n' | xargs)"
    in_view sh -c 'exit 7' >/dev/null
    same "$trap: the exit status is the command's" 7 $?
    same "$trap: signals kill" 143 "$(in_view sh -c 'sh -c "kill -TERM \$\$" 2>/dev/null; echo $?' | tail -1)"
    same "$trap: signals are caught" caught "$(in_view sh -c 'trap "echo caught; exit" USR1; kill -USR1 $$; sleep 5')"
    same "$trap: a process stops and goes on" "T went on" "$(in_view sh -c \
        'sh -c "kill -STOP \$\$; echo went on" & sleep .5; cut -d" " -f3 /proc/$!/stat | tr t T; kill -CONT $!; wait' | xargs)"
    # While a program is loaded, the other threads end, and execve(2) waits until their tracer has heard of each.
    for _ in $(seq "${VEDUTA_EXECS:-3}"); do
        in_view python3 exec.py "$((RANDOM % 2))"
    done | sort | uniq -c >execs
    same "$trap: one of many threads runs a virtual program" "${VEDUTA_EXECS:-3} thread" "$(xargs <execs)"
    # Until Linux 5.19 a signal ends the wait for an answer, and the call comes once more: it must not be done once more.
    same "$trap: what a signal interrupts is done once" "300" "$(in_view python3 -c '
import os, signal
signal.signal(signal.SIGALRM, lambda *_: None); signal.siginterrupt(signal.SIGALRM, False)
signal.setitimer(signal.ITIMER_REAL, 0.0007, 0.0007)
done = 0
os.chdir("m")
while done < 300:
    os.mkdir("once"); os.rename("once", "again"); os.rmdir("again")
    file = os.open("once", os.O_CREAT | os.O_EXCL | os.O_RDWR)
    assert os.write(file, b"four") == 4 and os.lseek(file, 0, 1) == 4 and len(os.listdir("/proc/self/fd")) < 8
    os.close(file); os.link("once", "again"); os.unlink("once"); os.unlink("again")
    done += 1
print(done)' | tail -n 1)"
    same "$trap: a view in which nothing is mounted yet" "hello hello again" "$(timeout -k 1 20 "$VEDUTA" run --no-rc -- sh -c '
        sh -c "until [ -e b/f ]; do sleep .05; done; cat b/f" & mount --bind d b; cat b/f; wait $!; cd b; echo again' 2>&1 | xargs)"
    same "$trap: two first mounts at one time" "hello hello" "$(timeout -k 1 20 "$VEDUTA" run --no-rc -- sh -c '
        mount --bind d b & mount --bind d m & wait; cat b/f m/f' 2>&1 | xargs)"
    same "$trap: a process may have as many virtual files open as its limit says" "19 EMFILE (20, 40)" "$(in_view python3 -c "
import errno, os, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (20, 40))
try:
    while True: last = os.open('m/f', os.O_RDONLY)
except OSError as error: print(last, errno.errorcode[error.errno], resource.getrlimit(resource.RLIMIT_NOFILE))")"
    check "$trap: explain says so" bash -c '"$@" "$VEDUTA" explain m/f | grep -q "calls are caught by"' _ timeout -k 1 20 "${view[@]}"
    timeout -k 1 20 "${view[@]}" sh -c 'echo $$ $PPID >pids; exec sleep 30' 2>/dev/null &
    for _ in $(seq 100); do [ -s pids ] && break; sleep .05; done
    read -r command engine <pids
    rm pids
    kill -9 "$engine"
    wait $!
    check "$trap: the engine's end ends the command" test ! -e "/proc/$command"
done
unset VEDUTA_TRAP
out=$(VEDUTA_TRAP=other "$VEDUTA" run true 2>&1)
check "an unknown mechanism is an error that lists them" grep -q 'notify, trace, ptrace' <<<"$out"

# What is not to be had is not used: 317 is seccomp(2), bit 8 of its flags asks for a listener; 101 ptrace(2), 438 pidfd_getfd(2).
same "notification is taken where it works" "seccomp notification" "$("$VEDUTA" run --no-rc --trace none -- true 2>&1 | sed 's/.*caught by //; s/, those of the fast path excepted$//')"
for errno in 1 22 38; do
    under() { timeout -k 1 20 "$TESTS/filtered" "$@" 2>&1; }
    same "no listener (error $errno): seccomp stops take its place" "seccomp stops and ptrace hello" \
        "$(under 317:8=$errno "${view[@]:0:2}" --trace none "${view[@]:2}" cat m/f | sed 's/.*caught by //' | xargs)"
    same "no filter (error $errno): ptrace alone takes its place" "ptrace at every call hello" \
        "$(under 317=$errno "${view[@]:0:2}" --trace none "${view[@]:2}" cat m/f | sed 's/.*caught by //' | xargs)"
done
refuse 125 'calls cannot be caught here.*notification.*seccomp.*ptrace' "where nothing works, one sentence says what was tried" \
    "$TESTS/filtered" 317=1 101=1 "${view[@]}" true
refuse 125 'pidfd_getfd' "a call that every mechanism needs is named" "$TESTS/filtered" 438=1 "${view[@]}" true
check "doctor tells which are there" bash -c '"$TESTS/filtered" 317:8=1 "$VEDUTA" doctor | grep -q "^yes.*by seccomp stops.*used"'

# S44: a view inside a view sees what the outer one has; what it mounts itself, the outer one does not see.
mkdir inner
cat >nested.sh <<'END'
cat m/f
mount --bind d inner; cat inner/f; umount inner; ls inner
END
nested() { timeout -k 1 30 "${view[@]}" "$@" 2>&1; }
same "S44 a view inside a view has the outer one's mounts, and its own" $'hello\nhello' "$(nested "$VEDUTA" run --no-rc -- sh nested.sh)"
same "S44 what it mounts is not seen around it" "" \
    "$(nested sh -c '"$0" run --no-rc --mount "bind:$PWD/d:$PWD/inner" -- true; ls inner' "$VEDUTA")"
