/* The code of the shim; see shim.rs. Two pages, mapped at a fixed address; nothing refers to anything outside of its file.
 *
 * Entry: rax is the call's number, rdi rsi rdx r10 r8 r9 its arguments, rcx the address of a syscall instruction. r11 is free.
 * Exit: either to rcx + 2 with the result in rax, or to rcx with everything as it was.
 *
 * Within: r12 is the table, r13 the descriptor that a path is relative to, rbp the path, r14 what the kernel said,
 * ebx what is known of the path (1: absolute, 2: has "..", 4: names a mount point, 8: a component is called like one, 16: the last is called like
 * something on the way to one), r11d how many names are in it.
 */
    .section .text.veduta_shim, "ax", @progbits
    .p2align 6

    .set SWITCH, 0x7000
    .set TABLE, 0x2000
    .set PREFIXES, 0x2000            /* from the table on, as the next */
    .set NAMES, 0x3000
    .set WAYS, 0xb000
    .set PROC_COUNT, 12
    .set COVERED_COUNT, 16
    .set IMAGE_COUNT, 20
    .set PROC, 1664
    .set KINDS, 128
    .set IMAGE, 640
    .set COVERED, 2048
    .set PLANE_COUNT, 24
    .set MOUNT_COUNT, 28
    .set THROUGH, 32
    .set TREES, 6144
    .set PLANES, 6400
    .set MOUNTS, 0x4000
    .set PROGRAMS, 0x6000
    .set LOADERS, 0xa000
    .set TRUE_PROC, 36
    .set ROOT_COUNT, 40
    .set ROOTS, 7424
    .set CHANGES_HERE, 1            /* bits of THROUGH */
    .set HAS_ROOTS, 2
    .set DIFFERS, 8
    .set REACH, 0xf00000
    .set DIFFERENT, 0x7e000
    .set DIFFERENT_PROBES, 32
    /* What is known of virtual trees: known.rs. */
    .set COUNT, 0x0fe000
    .set STARTS, 0x13e000
    .set NAME_INDEX, 0x17e000
    .set ATTR_INDEX, 0x1be000
    .set NAME_RECORDS, 0x1fe000
    .set ATTR_RECORDS, 0x4fe000
    .set NAME_MAX, 43
    .set SPREAD, 0x1e3779b1

    /* The frame: a struct stat, then these. */
    .set AT, 144
    .set NUMBER, 152
    .set RDI, 160
    .set RSI, 168
    .set RDX, 176
    .set R10, 184
    .set R8, 192
    .set R9, 200
    .set RBX, 208
    .set RBP, 216
    .set R12, 224
    .set R13, 232
    .set R14, 240
    .set GENERATION, 248
    .set HOW, 256                    /* struct open_how */
    .set FRAME, 280
    .set RED_ZONE, 128

    .macro arguments
    mov NUMBER(%rsp), %rax
    mov RDI(%rsp), %rdi
    mov RSI(%rsp), %rsi
    mov RDX(%rsp), %rdx
    mov R10(%rsp), %r10
    mov R8(%rsp), %r8
    mov R9(%rsp), %r9
    .endm

    /* Zero flag: no component on the way is one that leads into the view. What somebody put in the place of a file below has other
     * numbers: so where the host is seen through a mount, its name says that it is one of those. */
    .macro passes
    mov THROUGH(%r12), %eax
    and $8, %eax
    or $4, %eax
    test %eax, %ebx
    .endm

    /* The struct stat of the record at r9, to the frame, if what was looked at is still so. */
    .macro take_stat
    lea 32(%r9), %rsi
    mov %rsp, %rdi
    mov $18, %ecx
    rep movsq
    mov COUNT(%r12), %rax
    cmp HOW(%rsp), %rax
    jne .Ltrap
    mov (%r12), %r11
    cmp GENERATION(%rsp), %r11
    jne .Ltrap
    .endm

    /* Device and inode of the struct stat at an address, to r8 and r9, and their hash, to rax. */
    .macro hashed stat
    mov (\stat), %r8
    mov 8(\stat), %r9
    mov %r8, %rax
    xor %r9, %rax
    imul $SPREAD, %rax, %rax
    shr $16, %rax
    .endm

    /* Goes elsewhere unless the struct stat in the frame is of the file whose device, inode, time of change and size are at an address. */
    .macro is_file record, at, otherwise
    mov 0(%rsp), %r10
    cmp %r10, \at+0(\record)
    jne \otherwise
    mov 8(%rsp), %r10
    cmp %r10, \at+8(\record)
    jne \otherwise
    mov 88(%rsp), %r10
    cmp %r10, \at+16(\record)
    jne \otherwise
    mov 96(%rsp), %r10
    cmp %r10, \at+24(\record)
    jne \otherwise
    mov 48(%rsp), %r10
    cmp %r10, \at+32(\record)
    jne \otherwise
    .endm

    .macro restore
    mov RDI(%rsp), %rdi
    mov RSI(%rsp), %rsi
    mov RDX(%rsp), %rdx
    mov R10(%rsp), %r10
    mov R8(%rsp), %r8
    mov R9(%rsp), %r9
    mov RBX(%rsp), %rbx
    mov RBP(%rsp), %rbp
    mov R12(%rsp), %r12
    mov R13(%rsp), %r13
    mov R14(%rsp), %r14
    mov AT(%rsp), %rcx
    lea FRAME+RED_ZONE(%rsp), %rsp
    .endm

    .globl veduta_shim_start
    .hidden veduta_shim_start
veduta_shim_start:
    cmpl $0, veduta_shim_start+SWITCH(%rip)
    jne .Lleave
    cmp $512, %rax
    jae .Lleave
    lea -FRAME-RED_ZONE(%rsp), %rsp
    mov %rcx, AT(%rsp)
    mov %rax, NUMBER(%rsp)
    mov %rdi, RDI(%rsp)
    mov %rsi, RSI(%rsp)
    mov %rdx, RDX(%rsp)
    mov %r10, R10(%rsp)
    mov %r8, R8(%rsp)
    mov %r9, R9(%rsp)
    mov %rbx, RBX(%rsp)
    mov %rbp, RBP(%rsp)
    mov %r12, R12(%rsp)
    mov %r13, R13(%rsp)
    mov %r14, R14(%rsp)
    lea veduta_shim_start+TABLE(%rip), %r12
    mov (%r12), %r11
    mov %r11, GENERATION(%rsp)
    test $1, %r11b
    jnz .Ltrap
    movzbl KINDS(%r12,%rax), %ebx
    lea .Lhandlers(%rip), %rcx
    movslq (%rcx,%rbx,4), %rbx
    add %rcx, %rbx
    jmp *%rbx

.Lleave:
    jmp *%rcx

    /* The call as it was, where it comes to the engine. */
.Ltrap:
    mov NUMBER(%rsp), %rax
    restore
    jmp *%rcx

    .p2align 3
.Lhandlers:
    .long .Ltrap - .Lhandlers
    .long .Lnative - .Lhandlers
    .long .Lopen - .Lhandlers
    .long .Lopenat - .Lhandlers
    .long .Lstat - .Lhandlers
    .long .Lstatat - .Lhandlers
    .long .Lstatx - .Lhandlers
    .long .Laccess - .Lhandlers
    .long .Laccessat - .Lhandlers
    .long .Laccessat2 - .Lhandlers
    .long .Lreadlink - .Lhandlers
    .long .Lreadlinkat - .Lhandlers
    .long .Ldata - .Lhandlers
    .long .Lfstat - .Lhandlers
    .long .Lmap - .Lhandlers
    .long .Ldescriptor - .Lhandlers
    .long .Lgetcwd - .Lhandlers
    .long .Lexec - .Lhandlers
    .long .Lstatfs - .Lhandlers
    .long .Lunlink - .Lhandlers
    .long .Lunlinkat - .Lhandlers

.Lnative:
    arguments
    syscall
    /* fall through */

    /* The result in rax. */
.Ldone:
    restore
    lea 2(%rcx), %rcx
    jmp *%rcx

    /* The result in r14, if nothing was mounted meanwhile. */
.Ldecided:
    mov (%r12), %r11
    cmp GENERATION(%rsp), %r11
    jne .Ltrap
    mov %r14, %rax
    jmp .Ldone

.Lopen:
    mov $-100, %r13
    mov %rdi, %rbp
    mov %esi, %edx
    jmp .Lopen_with
.Lopenat:
    movslq %edi, %r13
    mov %rsi, %rbp
.Lopen_with:
    /* O_PATH, O_TMPFILE; and what only openat2 refuses: unknown flags. */
    test $0xff800000, %edx
    jnz .Ltrap
    test $0x600000, %edx
    jnz .Ltrap
    test $0x240, %edx                /* O_CREAT, O_TRUNC */
    jnz .Lcreate
    testb $CHANGES_HERE, THROUGH(%r12)
    jz 1f
    test $3, %dl                     /* to write: what is written to is the view's */
    jnz .Ltrap
1:  mov %edx, %edx
    or $0x8000, %edx                 /* O_LARGEFILE, as open implies */
    mov %rdx, HOW(%rsp)
    movq $0, HOW+8(%rsp)
    movq $2, HOW+16(%rsp)            /* RESOLVE_NO_MAGICLINKS */
    testb $DIFFERS, THROUGH(%r12)
    jz 2f
    testl $0x10000, HOW(%rsp)        /* O_DIRECTORY */
    jnz 2f
    /* Fifos and devices are the view's own: to open one might wait for ever. */
    mov $262, %eax                   /* newfstatat */
    mov %r13, %rdi
    mov %rbp, %rsi
    mov %rsp, %rdx
    mov HOW(%rsp), %r10d
    and $0x20000, %r10d              /* O_NOFOLLOW, as AT_SYMLINK_NOFOLLOW */
    shr $9, %r10d
    syscall
    test %eax, %eax
    jnz 2f
    mov 24(%rsp), %eax
    and $0xb000, %eax                /* a file or a directory */
    cmp $0x8000, %eax
    je 2f
    test %eax, %eax
    jnz .Ltrap
2:  call .Lopen_how
    mov %rax, %r14
    test %rax, %rax
    js .Lopen_failed
    mov $5, %eax                     /* fstat */
    mov %r14, %rdi
    mov %rsp, %rsi
    syscall
    test %eax, %eax
    jnz .Lclose
    movq $64, HOW+16(%rsp)           /* rounds */
.Lopened:
    mov %rsp, %rsi
    call .Lobject
    jz 3f
    /* Of /proc, one file that many programs read, and which is the same in a view. */
    call .Lin_proc
    jnz .Lclose
    lea .Lfilesystems(%rip), %rcx
    xor %eax, %eax
2:  movzbl (%rbp,%rax), %edx
    cmp %dl, (%rcx,%rax)
    jne .Lclose
    inc %eax
    test %edx, %edx
    jnz 2b
3:  call .Lpath
    passes
    jnz .Lclose
    call .Lclimbs
    jnz .Lclose
    mov (%r12), %r11
    cmp GENERATION(%rsp), %r11
    jne 1f
    mov %r14, %rax
    jmp .Ldone
    /* The table changed. To close the file would end the locks that the process has on it, and to open it again might be noticed by others:
     * so it is judged again, by what the table says when it has been made. Each round waits for the engine. */
1:  decq HOW+16(%rsp)
    js .Lclose
    mov $0x7ed0, %eax
    mov $9, %edi
    xor %esi, %esi
    xor %edx, %edx
    xor %r10d, %r10d
    xor %r8d, %r8d
    xor %r9d, %r9d
    syscall
    test %rax, %rax
    jnz .Lclose
    mov (%r12), %r11
    mov %r11, GENERATION(%rsp)
    test $1, %r11b
    jnz 1b
    mov NUMBER(%rsp), %eax
    cmpb $0, KINDS(%r12,%rax)        /* nothing is decided here any more */
    je .Lclose
    mov $5, %eax                     /* fstat: the struct was written over where a path started */
    mov %r14, %rdi
    mov %rsp, %rsi
    syscall
    test %eax, %eax
    jz .Lopened
    jmp .Lclose
.Lopen_failed:
    cmp $-4, %rax                    /* EINTR: the program's business, and nothing was opened */
    je .Ldone
    jmp .Lfailed

    /* What was opened is not to be had. */
.Lclose:
    mov $3, %eax
    mov %r14, %rdi
    syscall
    jmp .Ltrap

    /* What changes something cannot be taken back. So it is judged first: no symbolic link is followed, and the path as it is written leads past all that
     * is the view's, from a directory that is not. Who mounts at the same time comes after. */
.Lcreate:
    testb $CHANGES_HERE, THROUGH(%r12)
    jnz .Ltrap
    mov %edx, %edx
    or $0x8000, %edx                 /* O_LARGEFILE, as open implies */
    mov %rdx, HOW(%rsp)
    cmpl $2, NUMBER(%rsp)            /* open */
    cmovne R10(%rsp), %rax
    cmove RDX(%rsp), %rax
    and $0xfff, %eax
    xor %ecx, %ecx
    test $0x40, %edx                 /* without O_CREAT, openat2 wants none */
    cmovz %ecx, %eax
    mov %rax, HOW+8(%rsp)
    movq $4, HOW+16(%rsp)            /* RESOLVE_NO_SYMLINKS */
    call .Llast
    jnz 4f
    mov %rsp, %rsi
    call .Lobject
    jnz .Ltrap
1:  call .Lpath
    test $18, %bl
    jnz .Ltrap
    test $1, %bl
    jnz 2f
    test $8, %bl
    jnz .Ltrap
    call .Lstart
    jnz .Ltrap
    jmp 3f
2:  test $4, %bl
    jnz .Ltrap
3:  mov (%r12), %r11
    cmp GENERATION(%rsp), %r11
    jne .Ltrap
    call .Lopen_how
    test %rax, %rax
    jns .Ldone
    cmp $-4, %rax                    /* EINTR */
    je .Ldone
    jmp .Ltrap
4:  cmp $-2, %r14                    /* ENOENT */
    je 1b
    jmp .Ltrap

.Lunlink:
    mov $-100, %r13
    mov %rdi, %rbp
    jmp .Lunlink_with
.Lunlinkat:
    test %edx, %edx                  /* AT_REMOVEDIR */
    jnz .Ltrap
    movslq %edi, %r13
    mov %rsi, %rbp
.Lunlink_with:
    testb $CHANGES_HERE, THROUGH(%r12)
    jnz .Ltrap
    call .Llast
    jz 1f
    cmp $-2, %r14                    /* ENOENT */
    jne .Ltrap
    jmp 2f
1:  mov 24(%rsp), %eax
    and $0xf000, %eax
    cmp $0x4000, %eax                /* a directory */
    je .Ltrap
2:  call .Lpath
    test $27, %bl
    jnz .Ltrap
    cmp $1, %r11d                    /* one name, in a directory that is known */
    jne .Ltrap
    cmpb $'/', -1(%rsi)              /* a link would be followed */
    je .Ltrap
    call .Lstart
    jnz .Ltrap
    test %r14, %r14
    jnz .Ldecided
    mov (%r12), %r11
    cmp GENERATION(%rsp), %r11
    jne .Ltrap
    arguments
    syscall
    test %rax, %rax
    jz .Ldone
    jmp .Ltrap

    /* Zero flag: there is something at a path, without following what is last; its struct stat is in the frame. r14: what the kernel said. */
.Llast:
    mov $262, %eax                   /* newfstatat */
    mov %r13, %rdi
    mov %rbp, %rsi
    lea 8(%rsp), %rdx
    mov $0x100, %r10d                /* AT_SYMLINK_NOFOLLOW */
    syscall
    mov %rax, %r14
    test %rax, %rax
    ret

    /* openat2(r13, rbp, HOW). */
.Lopen_how:
    mov $437, %eax
    mov %r13, %rdi
    mov %rbp, %rsi
    lea HOW+8(%rsp), %rdx
    mov $24, %r10d
    syscall
    ret

.Lstat:
    mov $-100, %r13
    mov %rdi, %rbp
    arguments
    syscall
    mov %rax, %r14
    test %rax, %rax
    jnz .Lfailed
    mov RSI(%rsp), %rsi
    jmp .Lfound

.Lstatat:
    movslq %edi, %r13
    mov %rsi, %rbp
    arguments
    syscall
    mov %rax, %r14
    test %rax, %rax
    jnz .Lfailed
    mov RDX(%rsp), %rsi
    testl $0x1000, R10(%rsp)         /* AT_EMPTY_PATH */
    jz .Lfound
.Lfound_empty:
    test %rbp, %rbp
    jz .Ltrap
    cmpb $0, (%rbp)
    jne .Lfound
    call .Lobject
    jz .Ldecided
    call .Lin_proc
    jz .Ldecided
    cmpl $262, NUMBER(%rsp)          /* newfstatat */
    jne .Ltrap
    mov RDX(%rsp), %rbp
    jmp .Lknown_descriptor

    /* Something is there, with the struct stat at rsi. */
.Lfound:
    call .Lobject
    jnz .Lknown
    call .Lpath
    passes
    jnz .Lknown
    call .Lclimbs
    jnz .Lknown
    test $2, %bl
    jz .Ldecided
    /* ".." of what a magic link of /proc leads to is another thing in the view. Files are opened without following such links. */
    movq $0x280000, HOW(%rsp)        /* O_PATH, O_CLOEXEC */
    movq $0, HOW+8(%rsp)
    movq $2, HOW+16(%rsp)            /* RESOLVE_NO_MAGICLINKS */
    call .Lopen_how
    test %rax, %rax
    js .Ltrap
    mov %rax, %rdi
    mov $3, %eax
    syscall
    jmp .Ldecided

.Lstatx:
    testb $HAS_ROOTS, THROUGH(%r12)
    jz 1f
    test $0x5000, %r10d              /* STATX_MNT_ID, STATX_MNT_ID_UNIQUE */
    jnz .Ltrap
1:  movslq %edi, %r13
    mov %rsi, %rbp
    arguments
    syscall
    mov %rax, %r14
    test %rax, %rax
    jnz .Lfailed
    mov R8(%rsp), %rcx
    testl $0x100, (%rcx)             /* STATX_INO */
    jz .Ltrap
    /* Device, inode and links as struct stat has them. */
    mov 136(%rcx), %eax
    mov 140(%rcx), %edx
    mov %edx, %esi
    and $0xff, %edx
    and $0xffffff00, %esi
    shl $12, %rsi
    shl $8, %rax
    or %rdx, %rax
    or %rsi, %rax
    mov %rax, (%rsp)
    mov 32(%rcx), %rax
    mov %rax, 8(%rsp)
    mov 16(%rcx), %eax
    mov %rax, 16(%rsp)
    mov %rsp, %rsi
    testb $HAS_ROOTS, THROUGH(%r12)
    jz 3f
    /* That it is the root of a mount is told with it. */
    mov (%rsp), %rax
    mov 8(%rsp), %rdx
    mov ROOT_COUNT(%r12), %ecx
    lea ROOTS(%r12), %rdi
1:  sub $1, %ecx
    js 3f
    cmp %rdx, 8(%rdi)
    jne 2f
    cmp %rax, (%rdi)
    je .Ltrap
2:  add $16, %rdi
    jmp 1b
3:  testl $0x1000, RDX(%rsp)
    jz .Lfound
    jmp .Lfound_empty

.Laccess:
    mov $-100, %r13
    mov %rdi, %rbp
    mov %esi, %edx
    xor %r10d, %r10d
    jmp .Laccess_with
.Laccessat:
    movslq %edi, %r13
    mov %rsi, %rbp
    xor %r10d, %r10d
    jmp .Laccess_with
.Laccessat2:
    movslq %edi, %r13
    mov %rsi, %rbp
    test $0xfffffcff, %r10d          /* all but AT_SYMLINK_NOFOLLOW and AT_EACCESS */
    jnz .Ltrap
    and $0x100, %r10d
.Laccess_with:
    testb $CHANGES_HERE, THROUGH(%r12)
    jz 1f
    test $2, %dl                     /* W_OK */
    jnz .Ltrap
1:  mov %r10, HOW(%rsp)
    arguments
    syscall
    mov %rax, %r14
    test %rax, %rax
    jnz .Lfailed
    mov HOW(%rsp), %r10
    jmp .Llook

.Lreadlink:
    mov $-100, %r13
    mov %rdi, %rbp
    jmp .Lreadlink_with
.Lreadlinkat:
    movslq %edi, %r13
    mov %rsi, %rbp
    mov %r10, %rdx
.Lreadlink_with:
    test %edx, %edx
    jle .Ltrap
    arguments
    syscall
    mov %rax, %r14
    test %rax, %rax
    jns 1f
    cmp $-22, %rax                   /* EINVAL: there, and no link */
    jne .Lfailed
1:  cmpb $0, (%rbp)
    je .Ltrap
    mov $0x100, %r10d                /* AT_SYMLINK_NOFOLLOW */
    /* fall through */

    /* What is it that the path leads to, with the flags in r10? */
.Llook:
    mov $262, %eax
    mov %r13, %rdi
    mov %rbp, %rsi
    mov %rsp, %rdx
    syscall
    test %eax, %eax
    jnz .Ltrap
    mov %rsp, %rsi
    jmp .Lfound

    /* An error in r14: is it so in the view? */
.Lfailed:
    cmp $-2, %r14                    /* ENOENT */
    je 1f
    cmp $-20, %r14                   /* ENOTDIR */
    jne .Ltrap
1:  test %rbp, %rbp
    jz .Ltrap
    call .Lpath
    mov %ebx, %eax
    and $3, %eax
    cmp $1, %eax
    je 2f
    /* Relative, or with "..": the end of any mount point that it came to would be among its names, or above its start. */
    test $8, %bl
    jnz .Lknown
    test $1, %bl
    jnz 3f
    call .Lstart
    jnz .Lknown
    jmp 3f
2:  test $4, %bl
    jnz .Lknown
3:  movq $0x280000, HOW(%rsp)        /* O_PATH, O_CLOEXEC */
    movq $0, HOW+8(%rsp)
    movq $4, HOW+16(%rsp)            /* RESOLVE_NO_SYMLINKS */
    call .Lopen_how
    cmp %r14, %rax
    je .Ldecided
    test %rax, %rax
    js .Ltrap
    mov %rax, %r14
    jmp .Lclose

.Lstatfs:
    testb $CHANGES_HERE, THROUGH(%r12) /* that of the tree through which the host is seen is another */
    jne .Ltrap
    mov $-100, %r13
    mov %rdi, %rbp
    arguments
    syscall
    mov %rax, %r14
    test %rax, %rax
    jnz .Lfailed
    xor %r10d, %r10d
    jmp .Llook

    /* A program that the engine has seen, by a loader that is where it was: nothing of the view's is loaded. */
.Lexec:
    mov $-100, %r13
    mov %rdi, %rbp
    mov $262, %eax                   /* newfstatat */
    mov %r13, %rdi
    mov %rbp, %rsi
    mov %rsp, %rdx
    xor %r10d, %r10d
    syscall
    mov %rax, %r14
    test %rax, %rax
    jnz .Lfailed
    mov %rsp, %rsi
    call .Lobject
    jnz .Ltrap
    call .Lpath
    passes
    jnz .Ltrap
    test $2, %bl
    jnz .Ltrap
    hashed %rsp
    mov $8, %edx
1:  movzbl %al, %ecx
    shl $6, %ecx
    lea PROGRAMS(%r12,%rcx), %rcx
    mov (%rcx), %rdi                 /* its loader, from 1 on; written last */
    test %rdi, %rdi
    jz .Ltrap
    is_file %rcx, 8, 2f
    jmp 3f
2:  inc %eax
    dec %edx
    jnz 1b
    jmp .Ltrap
3:  shl $8, %edi
    lea LOADERS-256(%r12,%rdi), %r14
    mov $262, %eax
    mov %r13, %rdi
    lea 64(%r14), %rbp
    mov %rbp, %rsi
    mov %rsp, %rdx
    xor %r10d, %r10d
    syscall
    test %eax, %eax
    jnz .Ltrap
    is_file %r14, 0, .Ltrap
    testb $DIFFERS, THROUGH(%r12)
    jz 4f
    mov %rsp, %rsi                   /* it might have come to differ */
    call .Lobject
    jnz .Ltrap
    call .Lpath
    passes
    jnz .Ltrap
4:  mov (%r12), %r11
    cmp GENERATION(%rsp), %r11
    jne .Ltrap
    arguments
    syscall
    jmp .Ltrap                       /* it failed, and nothing has happened */

    /* A virtual directory was removed, and has no path. */
.Lgetcwd:
    testb $DIFFERS, THROUGH(%r12)
    jz 1f
    mov $-100, %r13
    call .Lstart
    jnz .Ltrap
1:  arguments
    syscall
    test %rax, %rax
    jle .Ltrap
    cmpb $'/', (%rdi)
    je .Ldone
    jmp .Ltrap

    /* Data of a descriptor. What may wait does so where it always did. */
.Ldata:
    mov $5, %eax
    mov %rsp, %rsi
    syscall
    test %eax, %eax
    jnz .Ltrap
    mov %rsp, %rsi
    call .Lstand_in
    jnz .Ltrap
    mov 24(%rsp), %eax
    and $0xf000, %eax
    cmp $0x8000, %eax                /* a file */
    je .Lnative
    cmp $0x4000, %eax                /* a directory */
    je .Lowned
    cmp $0x2000, %eax                /* /dev/null and its like */
    jne .Ltrap
    mov 40(%rsp), %rax
    shr $8, %rax
    cmp $1, %rax
    je .Lnative
    jmp .Ltrap

.Ldescriptor:
    mov $5, %eax
    mov %rsp, %rsi
    syscall
    test %eax, %eax
    jnz .Ltrap
.Lowned:
    mov %rsp, %rsi
    call .Lobject
    jnz .Ltrap
.Lunchanged:
    mov (%r12), %r11
    cmp GENERATION(%rsp), %r11
    je .Lnative
    jmp .Ltrap

.Lfstat:
    mov %rsi, %rbp
    syscall
    test %eax, %eax
    jnz .Ltrap
    mov %rbp, %rsi
    xor %r14d, %r14d
    call .Lobject
    jz .Ldecided
    call .Lin_proc
    jz .Ldecided
    jmp .Lknown_descriptor

.Lmap:
    testl $0x20, R10(%rsp)           /* MAP_ANONYMOUS */
    jnz .Lnative
    mov RDX(%rsp), %eax
    and $6, %eax
    cmp $4, %eax                     /* to be run, and not to be written */
    je 1f
    cmpb $0, KINDS(%r12)             /* is read(2) not caught, then this is not either */
    je .Lnative
1:  mov $5, %eax
    mov %r8, %rdi
    mov %rsp, %rsi
    syscall
    test %eax, %eax
    jnz .Ltrap
    mov %rsp, %rsi
    call .Lobject
    jnz .Ltrap
    mov RDX(%rsp), %eax
    and $6, %eax
    cmp $4, %eax                     /* to be run, and not to be written */
    jne .Lnative
    mov R10(%rsp), %eax
    and $3, %eax
    cmp $2, %eax                     /* MAP_PRIVATE */
    jne .Lnative
    /* Is it a library that there is a patched copy of? */
    mov IMAGE_COUNT(%r12), %ecx
    lea IMAGE(%r12), %r13
1:  sub $1, %ecx
    js .Lnative
    mov (%rsp), %rax
    cmp %rax, (%r13)
    jne 2f
    mov 8(%rsp), %rax
    cmp %rax, 8(%r13)
    jne 2f
    mov 88(%rsp), %rax
    cmp %rax, 16(%r13)
    jne 2f
    mov 96(%rsp), %rax
    cmp %rax, 24(%r13)
    jne 2f
    mov 48(%rsp), %rax
    cmp %rax, 32(%r13)
    jne 2f
    mov R9(%rsp), %rax
    cmp %rax, 40(%r13)
    jne 2f
    mov RSI(%rsp), %rax
    cmp %rax, 48(%r13)
    jae 3f
2:  add $64, %r13
    jmp 1b
    /* It is mapped behind the shim already, and is moved from there where that is all that is wanted. */
3:  mov 56(%r13), %rdi
    mov RSI(%rsp), %rsi
    add $4095, %rsi
    and $-4096, %rsi
    lea (%rdi,%rsi), %rax
    cmp $REACH, %rax
    ja 4f
    cmpl $5, RDX(%rsp)               /* PROT_READ, PROT_EXEC */
    jne 4f
    mov R10(%rsp), %eax
    and $~0x800, %eax                /* MAP_DENYWRITE says nothing */
    cmp $0x12, %eax                  /* MAP_PRIVATE, MAP_FIXED */
    jne 4f
    lea veduta_shim_start(%rip), %rax
    add %rax, %rdi
    mov %rsi, %rdx
    mov $3, %r10d                    /* MREMAP_MAYMOVE, MREMAP_FIXED */
    mov RDI(%rsp), %r8
    mov $25, %eax
    syscall
    cmp RDI(%rsp), %rax
    je .Ldone
4:  mov $0x7ed0, %eax                /* the engine gives a descriptor of our file */
    mov $7, %edi
    xor %esi, %esi
    xor %edx, %edx
    xor %r10d, %r10d
    xor %r8d, %r8d
    xor %r9d, %r9d
    syscall
    mov %rax, %r14
    test %rax, %rax
    js .Lnative
    arguments
    mov %r14, %r8
    mov 56(%r13), %r9
    syscall
    mov %rax, %rbx
    mov $3, %eax
    mov %r14, %rdi
    syscall
    cmp $-4096, %rbx
    ja .Lnative
    mov %rbx, %rax
    jmp .Ldone

    /* Zero flag: the object whose struct stat is at rsi is nothing of the view's. */
.Lobject:
    call .Lstand_in
    jnz 9f
    mov (%rsi), %rax
    mov PROC_COUNT(%r12), %ecx
1:  sub $1, %ecx
    js 2f
    cmp %rax, PROC(%r12,%rcx,8)
    jne 1b
    jmp 8f
2:  mov 8(%rsi), %rdx
    mov COVERED_COUNT(%r12), %ecx
    lea COVERED(%r12), %rdi
3:  sub $1, %ecx
    js 5f
    cmp %rdx, 8(%rdi)
    jne 4f
    cmp %rax, (%rdi)
    je 8f
4:  add $16, %rdi
    jmp 3b
5:  testb $DIFFERS, THROUGH(%r12)
    jz 7f
    /* What differs from the host where that is seen through a mount. */
    rol $32, %rax
    xor %rdx, %rax
    movabs $0x9e3779b97f4a7c15, %rdi
    imul %rdi, %rax
    mov %rax, %rcx
    shr $48, %rcx
    or $1, %rax
    mov $DIFFERENT_PROBES, %edx
6:  mov DIFFERENT(%r12,%rcx,8), %rdi
    test %rdi, %rdi
    jz 7f
    cmp %rax, %rdi
    je 8f
    inc %ecx
    movzwl %cx, %ecx
    dec %edx
    jnz 6b
7:  xor %ecx, %ecx
    ret
8:  or $1, %ecx
    test %rsp, %rsp
9:  ret

    /* Zero flag: what the struct stat at rsi tells of is no stand-in. */
.Lstand_in:
    cmpq $0, 16(%rsi)                /* they have no name */
    je 8b
    jmp 7b

    /* Zero flag: the struct stat at rsi is of something in /proc that has a name. */
.Lin_proc:
    cmpq $0, 16(%rsi)
    je 8b
    mov (%rsi), %rax
    mov TRUE_PROC(%r12), %ecx
1:  sub $1, %ecx
    js 8b
    cmp %rax, PROC(%r12,%rcx,8)
    jne 1b
    jmp 7b

    /* Zero flag: where the path starts (r13) is nothing of the view's. */
.Lstart:
    mov $262, %eax
    mov %r13, %rdi
    lea .Lnothing(%rip), %rsi
    lea 8(%rsp), %rdx
    mov $0x1000, %r10d
    syscall
    test %eax, %eax
    jnz 9b
    lea 8(%rsp), %rsi
    jmp .Lobject

    /* Zero flag: the path does not climb out of something of the view's. */
.Lclimbs:
    mov %ebx, %eax
    and $3, %eax
    cmp $2, %eax                     /* relative, with ".." */
    je .Lstart
    xor %eax, %eax
    ret

    /* Looks at the path, which the kernel has read: ebx. */
.Lpath:
    mov %rbp, %rsi
    xor %ebx, %ebx
    xor %r11d, %r11d
    mov $0x811c9dc5, %edi            /* of the prefix */
    cmpb $'/', (%rsi)
    jne 1f
    or $1, %ebx
1:  /* A component begins, or a slash. */
    movzbl (%rsi), %eax
    test %eax, %eax
    jz 9f
    cmp $'/', %eax
    jne 2f
    inc %rsi
    jmp 1b
2:  mov %edi, %r10d                  /* the prefix before */
    xor $'/', %edi
    imul $0x01000193, %edi, %edi
    mov $0x811c9dc5, %r8d            /* of the component */
    mov %rsi, %r9
3:  xor %eax, %edi
    imul $0x01000193, %edi, %edi
    xor %eax, %r8d
    imul $0x01000193, %r8d, %r8d
    inc %rsi
    movzbl (%rsi), %eax
    test %eax, %eax
    jz 4f
    cmp $'/', %eax
    jne 3b
4:  mov %rsi, %rdx
    sub %r9, %rdx
    cmpb $'.', (%r9)
    jne 6f
    cmp $1, %rdx
    je 5f
    cmp $2, %rdx
    jne 6f
    cmpb $'.', 1(%r9)
    jne 6f
    or $2, %ebx
5:  mov %r10d, %edi
    jmp 1b
6:  mov %edi, %ecx
    shr $17, %ecx
    xor %edi, %ecx
    and $32767, %ecx
    bt %ecx, PREFIXES(%r12)
    jnc 7f
    test $1, %bl
    jz 7f
    or $4, %ebx
7:  mov %r8d, %ecx
    shr $17, %ecx
    xor %r8d, %ecx
    and $32767, %ecx
    bt %ecx, NAMES(%r12)
    jnc 8f
    or $8, %ebx
8:  inc %r11d
    and $~16, %ebx
    bt %ecx, WAYS(%r12)
    jnc 1b
    or $16, %ebx
    jmp 1b
9:  ret

    /* A path concerns the view. Is it known where it leads? All is looked at with the count that is put in HOW. */
.Lknown:
    mov COUNT(%r12), %rax
    test $1, %al
    jnz .Ltrap
    mov %rax, HOW(%rsp)
    movl $0, HOW+8(%rsp)             /* whether it has any names */
    mov %rbp, %rsi
    cmpb $'/', (%rbp)
    je 1f
    mov $262, %eax
    mov %r13, %rdi
    lea .Lnothing(%rip), %rsi
    mov %rsp, %rdx
    mov $0x1000, %r10d
    syscall
    test %eax, %eax
    jnz .Ltrap
    mov %rsp, %rsi
    call .Lstart_of
    jnz .Ltrap
    mov %rbp, %rsi
    jmp .Lwalk
1:  mov MOUNT_COUNT(%r12), %ecx
    lea MOUNTS(%r12), %rdx
2:  sub $1, %ecx
    js .Ltrap
    mov (%rdx), %r8
    xor %eax, %eax
3:  cmp %r8, %rax
    je 4f
    mov (%rbp,%rax), %bl
    cmp 16(%rdx,%rax), %bl
    jne 5f
    inc %rax
    jmp 3b
4:  mov (%rbp,%rax), %bl
    test %bl, %bl
    jz 6f
    cmp $'/', %bl
    je 6f
5:  add $256, %rdx
    jmp 2b
6:  lea (%rbp,%rax), %rsi
    mov 8(%rdx), %rdi
    movl $1, HOW+8(%rsp)

    /* From the directory rdi on, by what is at rsi. */
.Lwalk:
    movzbl (%rsi), %eax
    test %eax, %eax
    jz .Larrived
    cmp $'/', %eax
    jne 1f
    inc %rsi
    jmp .Lwalk
1:  movl $1, HOW+8(%rsp)
    call .Lattributes
    jnz .Ltrap
    mov 16(%r9), %ecx
    and $7, %ecx
    cmp $7, %ecx                     /* VALID, DIRECTORY, SEARCHABLE */
    jne .Ltrap
    mov %rdi, %rax
    imul $SPREAD, %rax, %rax
    shr $16, %rax
    mov %rsi, %r10
2:  movzbl (%rsi), %ecx
    test %ecx, %ecx
    jz 3f
    cmp $'/', %ecx
    je 3f
    xor %ecx, %eax
    imul $0x01000193, %eax, %eax
    inc %rsi
    jmp 2b
3:  mov %rsi, %r8
    sub %r10, %r8
    cmpb $'.', (%r10)
    jne 4f
    cmp $1, %r8
    je .Lwalk
    cmp $2, %r8
    jne 4f
    cmpb $'.', 1(%r10)
    jne 4f
    testb $16, 16(%r9)               /* ROOT */
    jnz .Ltrap
    mov 8(%r9), %rdi
    test %rdi, %rdi
    jz .Ltrap
    jmp .Lwalk
4:  cmp $NAME_MAX, %r8
    ja .Ltrap
    mov %eax, %r11d
    shr $16, %eax
    xor %r11d, %eax
    mov $8, %edx
5:  movzwl %ax, %ecx
    mov NAME_INDEX(%r12,%rcx,4), %ecx
    test %ecx, %ecx
    jz .Ltrap
    cmp $-1, %ecx
    je 7f
    shl $6, %rcx
    lea NAME_RECORDS(%r12,%rcx), %r9
    cmp %rdi, (%r9)
    jne 7f
    cmp %r11d, 16(%r9)
    jne 7f
    cmp %r8b, 20(%r9)
    jne 7f
    xor %ecx, %ecx
6:  cmp %r8, %rcx
    je 8f
    mov (%r10,%rcx), %bl
    cmp 21(%r9,%rcx), %bl
    jne 7f
    inc %ecx
    jmp 6b
7:  inc %eax
    dec %edx
    jnz 5b
    jmp .Ltrap
8:  mov 8(%r9), %rdi
    test %rdi, %rdi
    jnz .Lwalk
    mov $-2, %r14                    /* ENOENT */

    /* The result in r14, if what was looked at is still so. */
.Lknown_decided:
    mov COUNT(%r12), %rax
    cmp HOW(%rsp), %rax
    jne .Ltrap
    jmp .Ldecided

    /* The path leads to rdi. */
.Larrived:
    cmpl $0, HOW+8(%rsp)
    je .Ltrap
    call .Lattributes
    jnz .Ltrap
    mov 16(%r9), %edx
    test $1, %dl                     /* VALID */
    jz .Ltrap
    cmpb $'/', -1(%rsi)
    jne 1f
    test $2, %dl                     /* DIRECTORY */
    jz .Ltrap
1:  mov NUMBER(%rsp), %ecx
    movzbl KINDS(%r12,%rcx), %eax
    mov RSI(%rsp), %rbp
    xor %r10d, %r10d
    cmp $4, %eax                     /* stat, lstat */
    jne 2f
    cmp $6, %ecx
    sete %r10b
    jmp .Larrived_stat
2:  mov RDX(%rsp), %rbp
    cmp $5, %eax                     /* newfstatat */
    jne 3f
    testl $0x100, R10(%rsp)
    setnz %r10b
.Larrived_stat:
    test $8, %dl                     /* LINK */
    jz 1f
    test %r10d, %r10d
    jz .Ltrap
1:  take_stat
    mov $262, %eax                   /* can the result be written? The kernel knows. */
    mov $-100, %edi
    lea .Lnothing(%rip), %rsi
    mov %rbp, %rdx
    mov $0x1000, %r10d
    syscall
    test %eax, %eax
    jnz .Ltrap
.Lstat_out:
    mov %rsp, %rsi
    mov %rbp, %rdi
    mov $18, %ecx
    rep movsq
    xor %eax, %eax
    jmp .Ldone
3:  test $8, %dl                     /* LINK */
    jnz .Ltrap
    lea -10(%rax), %ecx              /* readlink, readlinkat: no link */
    cmp $1, %ecx
    ja 4f
    mov $-22, %r14
    jmp .Lknown_decided
4:  cmp $7, %eax
    cmove RSI(%rsp), %rbp            /* access; rbp is what the others have */
    jb .Ltrap
    cmp $9, %eax
    ja .Ltrap
    xor %r14d, %r14d
    test %ebp, %ebp                  /* F_OK */
    jz .Lknown_decided
    cmp $4, %ebp                     /* R_OK */
    jne .Ltrap
    test $32, %dl                    /* READABLE */
    jnz .Lknown_decided
    jmp .Ltrap

    /* A descriptor is the view's, whose struct stat is at rsi; the true one is to be put at rbp, where the kernel has written already. */
.Lknown_descriptor:
    mov COUNT(%r12), %rax
    test $1, %al
    jnz .Ltrap
    mov %rax, HOW(%rsp)
    call .Lstart_of
    jz 3f
    mov (%rsi), %rax
    mov 8(%rsi), %rdi
    mov PLANE_COUNT(%r12), %ecx
    lea PLANES(%r12), %rdx
1:  sub $1, %ecx
    js .Ltrap
    cmp %rax, (%rdx)
    je 2f
    add $16, %rdx
    jmp 1b
2:  mov %rdi, %rcx
    shr $56, %rcx                    /* what is no number of a node would be one of another tree */
    jnz .Ltrap
    or 8(%rdx), %rdi
3:  call .Lattributes
    jnz .Ltrap
    testb $1, 16(%r9)                /* VALID */
    jz .Ltrap
    take_stat
    jmp .Lstat_out

    /* Zero flag, and rdi: what the struct stat at rsi stands for, in a tree that may be spoken of. */
.Lstart_of:
    hashed %rsi
    mov $4, %edx
1:  mov %eax, %ecx
    and $8191, %ecx
    shl $5, %ecx
    lea STARTS(%r12,%rcx), %rcx
    cmp %r8, (%rcx)
    jne 2f
    cmp %r9, 8(%rcx)
    je 3f
2:  inc %eax
    dec %edx
    jnz 1b
    or $1, %edx
    ret
3:  mov 16(%rcx), %rdi
    mov %rdi, %rax
    shr $56, %rax
    cmpb $1, TREES(%r12,%rax)
    ret

    /* Zero flag: the record of the node rdi is at r9. */
.Lattributes:
    mov %rdi, %rax
    imul $SPREAD, %rax, %rax
    shr $16, %rax
    mov $8, %edx
1:  movzwl %ax, %ecx
    mov ATTR_INDEX(%r12,%rcx,4), %ecx
    test %ecx, %ecx
    jz 3f
    cmp $-1, %ecx
    je 2f
    imul $192, %rcx, %rcx
    lea ATTR_RECORDS(%r12,%rcx), %r9
    cmp %rdi, (%r9)
    je 4f
2:  inc %eax
    dec %edx
    jnz 1b
3:  or $1, %ecx
4:  ret

.Lnothing:
    .byte 0
.Lfilesystems:
    .asciz "/proc/filesystems"

    .globl veduta_shim_end
    .hidden veduta_shim_end
veduta_shim_end:
    .text

/* What a program's interpreter runs once, behind its first call: maps the shim. The words 0x11..., 0x22... and so on are filled in,
 * and behind the end come the instructions that the jump to here took the place of.
 */
    .section .text.veduta_boot, "ax", @progbits
    .p2align 4
    .globl veduta_boot_start
    .hidden veduta_boot_start
veduta_boot_start:
    lea -128(%rsp), %rsp
    push %rax
    push %rdi
    push %rsi
    push %rdx
    push %r10
    push %r8
    push %r9
    sub $16, %rsp
    mov $27, %eax                    /* mincore: is it there? */
    movabs $0x7e9000000000, %rdi
    mov $4096, %esi
    mov %rsp, %rdx
    syscall
    test %eax, %eax
    jz 3f
    mov $9, %eax                     /* mmap: also what is behind, which the loader's next libraries are taken from */
    mov $0xf00000, %esi
    mov $5, %edx                     /* to read and to run */
    mov $0x100002, %r10d             /* MAP_PRIVATE, MAP_FIXED_NOREPLACE */
    mov $0x11111111, %r8d            /* the descriptor */
    xor %r9d, %r9d
    syscall
    cmp %rdi, %rax
    je 1f
    mov $0x7ed0, %eax                /* no: the engine takes the jumps back */
    mov $8, %edi
    movabs $0x2222222222222222, %rsi
    mov $0x33333333, %edx
    syscall
    jmp 2f
1:  mov $462, %eax                   /* mseal: the shim stays */
    mov $0xb00000, %esi
    xor %edx, %edx
    syscall
2:  mov $3, %eax                     /* close */
    mov $0x11111111, %edi
    syscall
    /* The engine's thread was pushed aside by this one when it answered. Until it has gone to sleep the processor passes for one with two
     * programs to run, and whoever this one wakes is sent to another processor. */
    mov $24, %eax                    /* sched_yield */
    syscall
3:  add $16, %rsp
    pop %r9
    pop %r8
    pop %r10
    pop %rdx
    pop %rsi
    pop %rdi
    pop %rax
    lea 128(%rsp), %rsp
    .globl veduta_boot_end
    .hidden veduta_boot_end
veduta_boot_end:
    .text
