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
    # By seccomp stops it hangs now and then: view/engine/DEVIATIONS.md.
    [ $trap = trace ] || same "$trap: threads, and exec from one of them" thread "$(in_view python3 -c '
import os, threading, time
os.chdir("m")
threads = [threading.Thread(target=lambda: open("f").read()) for _ in range(20)]
[t.start() for t in threads]
[t.join() for t in threads]
threading.Thread(target=lambda: os.execv("./ec", ["ec", "thread"])).start()
time.sleep(5)')"
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
