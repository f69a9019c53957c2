#!/bin/bash
# S64: programs that are unchanged by a view in which everything is bound over itself, through our own tree: same output, same exit status as
# natively. view.sh has coreutils, findutils, tar and sqlite on every plane; here are those that take longer, once: as root on the default
# plane, as a user on `emulated`. PROGRAMS=all runs both, and the longer tests of Python.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
cd "$TMP" || exit 1
export LC_ALL=C HOME=$TMP TMPDIR=$TMP
planes=default
case $HOW in
    user) planes=emulated ;;
    userns | bare) [ "${PROGRAMS-}" = all ] || { skip "what root and a user run" fine; exit 0; } ;;
esac
[ "${PROGRAMS-}" != all ] || planes="default emulated"

# alike SENTENCE SCRIPT: natively and in the view, each in an empty directory of the same name.
alike() {
    local native shown
    rm -rf work && mkdir work
    native=$(cd work && timeout -k 1 300 bash -c "$2" 2>&1 </dev/null; echo "status $?")
    rm -rf work && mkdir work
    shown=$(cd work && timeout -k 1 300 "$VEDUTA" run -N --mount bind:/:/ -- bash -c "$2" 2>&1 </dev/null; echo "status $?")
    same "S64: $plane: $1" "$native" "$shown"
}
has() { for program; do command -v "$program" >/dev/null || { skip "no $program here" fine; return 1; }; done; }

for plane in $planes; do
    if [ "$plane" = default ]; then unset VEDUTA_PLANE; else export VEDUTA_PLANE=$plane; fi
    alike "bash: pipes, jobs, traps, here documents, process substitution, globs" 'set -u; trap "echo bye" EXIT
        cat <<<"here"; diff <(seq 5) <(seq 2 6); mkdir -p a/b; touch a/{x,y}.c a/b/z.c; shopt -s globstar; echo a/**/*.c; (cd a && pwd -P | sed s,.*/,,)
        sleep 0.1 & wait $!; echo $?; (exit 4) & wait $!; echo $?; coproc cat; echo through >&"${COPROC[1]}"; read -r line <&"${COPROC[0]}"; eval "exec ${COPROC[1]}>&-"; echo "$line"
        exec 5<>f; echo five >&5; cat f; mkfifo p; (echo fifo >p &); cat p; set -o noclobber; echo x >f; echo $?; [ -x /bin/sh ] && [ f -nt a ]; echo $?
        printf "#!/bin/bash\necho \$0 \$# \$BASH_SUBSHELL" >s; chmod +x s; ./s 1 2; kill -TERM $BASHPID & wait; (sh -c "kill -9 \$\$"; echo $?) 2>&1 | sed "s/line [0-9]*: *[0-9]* Killed/Killed/"'
    ! has git || alike "git: commits, branches, a clone, a merge, gc" 'export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null GIT_AUTHOR_DATE=@1000000000 GIT_COMMITTER_DATE=@1000000000
        export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b; git init -q -b main r; cd r
        for n in 1 2 3 4 5; do seq $n 400 >f$n; mkdir -p d/$n; echo $n >d/$n/x; git add .; git commit -qm "number $n"; done; git checkout -qb side HEAD~2; echo side >>f1; git commit -qam side
        git checkout -q main; git merge -q side -m merged; git log --format=%H%s; git status --short; git gc -q; git fsck 2>/dev/null; git clone -q . ../c 2>&1; cd ../c; git log -1 --format=%H; echo x >>f2; git diff --stat
        git stash -q; git stash pop -q; git status --short; git worktree add -q ../w side; ls ../w | wc -l; git grep -c 399 | wc -l; git archive HEAD | tar t | wc -l'
    if has gcc make; then
        alike "gcc and make: a library, a program that loads it, two jobs" 'for n in 1 2 3 4 5 6; do printf "int f$n(void) { return $n; }\n" >f$n.c; done
            printf "#include <stdio.h>\n#include <dlfcn.h>\nint main(void) { void *l = dlopen(\"./libf.so\", RTLD_NOW); int (*f)(void) = (int (*)(void))dlsym(l, \"f6\"); printf(\"%%d\\\\n\", f()); return f(); }\n" >main.c
            printf "OBJECTS = f1.o f2.o f3.o f4.o f5.o f6.o\nall: main libf.so\nlibf.so: \$(OBJECTS)\n\tgcc -shared -o \$@ \$^\n%%.o: %%.c\n\tgcc -O1 -fPIC -c \$<\nmain: main.c\n\tgcc -o \$@ \$< -ldl\n" >Makefile
            make -s -j2; ./main; echo $?; make; ar rc libf.a f*.o; nm libf.a | grep -c " T f"; touch f3.c; make -n; make -s clean; echo $?; gcc broken.c; echo $?; ldd ./main | grep -c libc; strip main; ./main'
    fi
    ! has perl || alike "perl" 'perl -MFile::Temp=tempdir -MFile::Find -MFile::Copy -MPOSIX -MFcntl=:flock -e "
        my \$d = tempdir(CLEANUP => 1); for my \$n (1..50) { open my \$f, \">\", \"\$d/\$n\" or die; print \$f \"x\" x \$n; close \$f } my \$s = 0; find(sub { \$s += -s if -f }, \$d); print \"\$s\n\";
        copy(\"\$d/7\", \"\$d/c\"); rename \"\$d/c\", \"\$d/r\"; print -s \"\$d/r\", \"\n\"; opendir my \$h, \$d; print scalar(grep { !/^\./ } readdir \$h), \"\n\"; my \$p = telldir \$h; rewinddir \$h; my @l = readdir \$h; print scalar(@l), \"\n\";
        open my \$l, \">\", \"\$d/lock\"; print flock(\$l, LOCK_EX|LOCK_NB), \"\n\"; if (!fork) { open my \$m, \">\", \"\$d/lock\"; print flock(\$m, LOCK_EX|LOCK_NB) ? \"taken\" : \"locked\", \"\n\"; exit } wait; print \`echo back\`; symlink \"7\", \"\$d/s\"; print readlink(\"\$d/s\"), \"\n\";
        truncate \"\$d/50\", 3; print +(stat \"\$d/50\")[7], \"\n\"; print join(\" \", map { sprintf \"%o\", (stat \"\$d/\$_\")[2] & 07777 } 1..3), \"\n\"; chmod 0600, \"\$d/1\"; printf \"%o\n\", (stat \"\$d/1\")[2] & 0777; open STDIN, \"<\", \"\$d/9\"; print <STDIN>, \"\n\"; system(\"exit 3\"); print \$? >> 8, \"\n\"; exit 5"'
    if has cargo rustc && (cd / && cargo --version >/dev/null 2>&1); then
        alike "cargo builds, tests and runs a crate" 'export CARGO_HOME=$PWD/home; cargo new --quiet --vcs none --name small small 2>&1; cd small
            printf "pub fn twice(n: u32) -> u32 { n * 2 }\n#[test]\nfn doubles() { assert_eq!(twice(2), 4) }\n" >src/lib.rs; printf "fn main() { println!(\"{}\", small::twice(21)) }\n" >src/main.rs
            cargo build --quiet --offline 2>&1; cargo run --quiet --offline; cargo test --quiet --offline 2>&1 | sed "s/finished in .*//"; echo "broken" >>src/main.rs; cargo build --quiet --offline 2>/dev/null; echo $?; ls target/debug | grep -c small'
    fi
    if has apt-get dpkg-deb; then
        # From a repository in a directory: no network.
        alike "apt-get updates and downloads from a repository of files" 'mkdir -p p/DEBIAN r s/lists/partial s/archives/partial e; printf "Package: tiny\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b>\nDescription: tiny\n" >p/DEBIAN/control
            export SOURCE_DATE_EPOCH=1000000000; dpkg-deb --root-owner-group -b p r/tiny_1_all.deb | sed "s/.*/built/"; cd r; { dpkg-deb -f tiny_1_all.deb; printf "Filename: ./tiny_1_all.deb\nSize: %d\nSHA256: %s\n\n" "$(stat -c %s tiny_1_all.deb)" "$(sha256sum <tiny_1_all.deb | cut -d" " -f1)"; } >Packages; cd ..
            echo "deb [trusted=yes] file:$PWD/r ./" >e/list; touch status
            apt() { apt-get -q -o Dir::State="$PWD/s" -o Dir::State::status="$PWD/status" -o Dir::Cache="$PWD/s" -o Dir::Etc::sourcelist="$PWD/e/list" -o Dir::Etc::sourceparts=/nowhere -o Dir::Etc::Parts=/nowhere -o APT::Sandbox::User="" -o Debug::NoLocking=true "$@" 2>&1 | sed "s/in [0-9]*s.*//; /Get:\|Ign:\|Hit:/d"; }
            apt update; apt download tiny; ls *.deb && dpkg-deb -c tiny_1_all.deb | wc -l; apt download none; ls s/lists | sed "s/.*_//" | sort'
    fi
    # Python's own tests say how long they took, and in what order warnings came. Those of AF_VSOCK hang, also natively, where a machine has the
    # device and nobody at the other end.
    python=
    for candidate in python3 /usr/bin/python3; do [ -n "$python" ] || ! "$candidate" -c 'import test.support, test.test_shutil' 2>/dev/null || python=$candidate; done
    if [ -n "$python" ]; then
        tests="test_tempfile test_mmap test_select test_shutil"
        [ "${PROGRAMS-}" != all ] || tests="$tests test_os test_subprocess test_socket"
        for test in $tests; do
            alike "python's own tests: $test" "export PYTHONDONTWRITEBYTECODE=1; timeout -k 1 280 $python -c 'import socket, unittest
vars(socket).pop(\"IOCTL_VM_SOCKETS_GET_LOCAL_CID\", None)
unittest.main(module=None, argv=[\"test\", \"-q\", \"test.$test\"])' 2>&1 | grep -E '^(OK|FAILED|ERROR:|FAIL:)' | sort; echo \${PIPESTATUS[0]}"
        done
    else
        skip "python's own tests are not here" fine
    fi
done
