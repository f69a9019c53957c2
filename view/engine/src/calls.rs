//! Every call of the architecture, and what a view does with it: the one table from which the filter, the coverage table
//! (`veduta syscalls`) and the names in traces come.
//!
//! Unknown numbers do not exist in a view (`ENOSYS`), so a new kernel's new call cannot escape in silence. A new one becomes a
//! line here, which is a decision.

use std::sync::LazyLock;

use nix::errno::Errno;
use veduta_trace::{Program, Rule, Test, Verdict};

use Family::{Exec, File, Identity, Mount, Passed, Path, Refused, Rights, Task};

/// How a view treats a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Left to the kernel, always: it has nothing to do with files by name, or acts on descriptors for which the kernel's own
    /// answer is right in a view.
    Passed,
    /// Changes the mounts of the view. Caught from the start.
    Mount,
    /// Runs a program. Caught from the start.
    Exec,
    /// Takes a path. Caught once something is mounted.
    Path,
    /// Takes a descriptor that may stand for a virtual file. Caught once there is such a descriptor.
    File,
    /// Says who the caller is: mount(8) must believe that it may. Caught once something is mounted, and not for root.
    Identity,
    /// Says more of that, or changes it. Caught where all are told that they are root.
    Rights,
    /// Concerns the engine's access to the task, or what it keeps about it.
    Task,
    /// Fails with `ENOSYS`: it would go past the view.
    Refused,
}

impl Family {
    /// One line about it, for the coverage table.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Passed => "passed to the kernel",
            Self::Mount => "handled: mounts of the view",
            Self::Exec => "handled: programs in virtual trees",
            Self::Path => "handled: paths",
            Self::File => "handled: virtual descriptors",
            Self::Identity => "handled: identity",
            Self::Rights => "handled with --root: identity",
            Self::Task => "handled: access to the task",
            Self::Refused => "refused: ENOSYS",
        }
    }
}

/// A call.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The kernel's name for it.
    pub name: &'static str,
    /// Its number on x86_64.
    pub x86_64: Option<u16>,
    /// Its number on aarch64 and the other architectures of the generic table.
    pub generic: Option<u16>,
    /// How it is treated.
    pub family: Family,
}

const fn row(name: &'static str, x86_64: Option<u16>, generic: Option<u16>, family: Family) -> Row {
    Row { name, x86_64, generic, family }
}

impl Row {
    /// Its number on this architecture.
    pub fn number(&self) -> Option<u32> {
        if cfg!(target_arch = "x86_64") { self.x86_64 } else { self.generic }.map(u32::from)
    }
}

/// As whom the programs of a view run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// An ordinary user, who is root to mount(8).
    User,
    /// Root.
    Root,
    /// Whoever it is, they are told that it is root, and may become others.
    AllRoot,
}

/// How much a view must catch: it grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing is mounted.
    Idle,
    /// Something is: paths are caught. The content of files is the kernel's affair.
    Mounted,
    /// Somebody has a descriptor of a file whose content the engine serves: calls on descriptors are caught.
    Files,
}

/// The number of a call that no kernel has: how our own programs talk to the engine of the view that they run in.
pub const CONTROL: u32 = 0x7ed0;

/// `prctl` operation.
const PR_SET_DUMPABLE: u32 = 4;
/// Requests of `ptrace(2)` that make a tracer.
const PTRACE_TRACEME: u32 = 0;
const PTRACE_ATTACH: u32 = 16;
const PTRACE_SEIZE: u32 = 0x4206;
/// See [`PR_SET_DUMPABLE`].
const PR_SET_SECCOMP: u32 = 22;
/// See [`PR_SET_DUMPABLE`].
const PR_SET_SYSCALL_USER_DISPATCH: u32 = 59;
const MAP_ANONYMOUS: u32 = 0x20;
/// `fcntl(2)`: whether the file was made when this description of it was opened (Linux 6.12).
pub(crate) const F_CREATED_QUERY: u32 = 1028;
const SEEK_END: u32 = 2;

/// The filter of a view at a level. `fast`: what the shim does is left to it.
pub(crate) fn filter(level: Level, who: Who, fast: bool) -> Program {
    let mut rules: Vec<Rule> = CALLS.iter().filter_map(|row| rule(row, level, who, fast)).collect();
    rules.push(Rule::new(CONTROL, Verdict::Notify));
    Program::new(rules, limit())
}

fn limit() -> u32 {
    CALLS.iter().filter_map(Row::number).max().unwrap_or(0) + 1
}

fn rule(row: &Row, level: Level, who: Who, fast: bool) -> Option<Rule> {
    let number = row.number()?;
    let is_caught = match row.family {
        Passed => false,
        Refused => return Some(Rule::new(number, Verdict::Fail(Errno::ENOSYS))),
        Mount | Exec => true,
        // Before somebody is traced, the view grows for the last time. What one filter catches, the larger ones must.
        Task if row.name == "ptrace" => true,
        Path | Task => level >= Level::Mounted,
        File => level >= Level::Files || (level == Level::Mounted && is_native_exception(row.name)),
        Identity => level >= Level::Mounted && who != Who::Root,
        Rights => level >= Level::Mounted && who == Who::AllRoot,
    };
    let is_shims = matches!(row.family, Path | File | Identity) || row.name == "execve";
    let unless_shim = fast && is_shims;
    let tests = tests(row.name, fast, who);
    is_caught.then_some(Rule { number, tests, verdict: Verdict::Notify, unless_shim })
}

/// Calls on descriptors that the engine serves even where files are the kernel's: what they say of a file is not what the kernel believes, or
/// the descriptor is a directory's, a device's, a socket's, or one of `O_PATH`.
pub(crate) fn is_native_exception(name: &str) -> bool {
    let is_attribute = matches!(name, "fstat" | "fstatfs" | "fchmod" | "fchown") || name.contains("xattr");
    let is_directory = matches!(name, "getdents" | "getdents64" | "fchdir" | "fsync" | "fdatasync");
    is_attribute
        || is_directory
        || matches!(
            name,
            "fcntl" | "ioctl" | "sync" | "syncfs" | "ftruncate" | "fallocate" | "getsockname" | "getpeername"
        )
}

/// When a call of several meanings is caught.
fn tests(name: &str, fast: bool, who: Who) -> Vec<Test> {
    match name {
        "prctl" => {
            let ours: &[u32] = if who == Who::AllRoot { &crate::who::PRCTLS } else { &[] };
            // Those that filter calls themselves do without the fast path.
            let filters: &[u32] = if fast { &[PR_SET_SYSCALL_USER_DISPATCH] } else { &[] };
            let all = [&[PR_SET_DUMPABLE, PR_SET_SECCOMP], filters, ours].concat();
            all.into_iter().map(|operation| Test::Is(0, operation)).collect()
        }
        "getrlimit" => vec![Test::Is(0, crate::states::LIMIT)],
        "setrlimit" => vec![Test::Is(0, crate::states::LIMIT), Test::Is(0, crate::apart::CORE)],
        "prlimit64" => vec![Test::Is(1, crate::states::LIMIT), Test::Is(1, crate::apart::CORE)],
        // Growth adds its filters by this call.
        "seccomp" => vec![Test::IsNot(5, veduta_trace::stop::OWN_FILTER)],
        "ptrace" => vec![Test::Is(0, PTRACE_TRACEME), Test::Is(0, PTRACE_ATTACH), Test::Is(0, PTRACE_SEIZE)],
        "mmap" => vec![Test::HasNone(3, MAP_ANONYMOUS)],
        // An address that has a path is longer than its family.
        "sendto" => vec![Test::AtLeast(5, 3)],
        // F_SETSIG and F_GETSIG: marks of ours (lent.rs).
        "fcntl" => vec![Test::Is(1, F_CREATED_QUERY), Test::Is(1, 10), Test::Is(1, 11)],
        // SEEK_SET and SEEK_CUR are right on what stands for a file; its size may not be.
        "lseek" => vec![Test::AtLeast(2, SEEK_END)],
        // Terminals have requests of their own ('T'), sockets too (0x89).
        "ioctl" => vec![
            // FIGETBSZ
            Test::Is(1, 2),
            Test::Within(1, 0x1200, 0x1300),
            Test::Within(1, 0x4c00, 0x4d00),
            Test::Within(1, 0x300, 0x340),
            Test::Within(1, 0x5300, 0x5400),
            // Requests of filesystems ('X', 'f', 0x94, 0xf5) that have no argument.
            Test::Within(1, 0x5800, 0x5900),
            Test::Within(1, 0x6600, 0x6700),
            Test::Within(1, 0x9400, 0x9500),
            Test::Within(1, 0xf500, 0xf600),
            Test::AtLeast(1, 0x1_0000),
        ],
        _ => Vec::new(),
    }
}

/// The call of a number, on this architecture.
pub(crate) fn by_number(number: u32) -> Option<&'static Row> {
    static ROWS: LazyLock<Vec<Option<&Row>>> = LazyLock::new(|| {
        let mut rows = vec![None; limit() as usize];
        for row in CALLS {
            if let Some(place) = row.number().and_then(|number| rows.get_mut(number as usize)) {
                *place = Some(row);
            }
        }
        rows
    });
    ROWS.get(number as usize).copied().flatten()
}

/// All calls, in the order of x86_64.
#[rustfmt::skip]
pub const CALLS: &[Row] = &[
    row("read", Some(0), Some(63), File),
    row("write", Some(1), Some(64), File),
    row("open", Some(2), None, Path),
    row("close", Some(3), Some(57), Passed),
    row("stat", Some(4), None, Path),
    row("fstat", Some(5), Some(80), File),
    row("lstat", Some(6), None, Path),
    row("poll", Some(7), None, Passed),
    row("lseek", Some(8), Some(62), File),
    row("mmap", Some(9), Some(222), File),
    row("mprotect", Some(10), Some(226), Passed),
    row("munmap", Some(11), Some(215), Passed),
    row("brk", Some(12), Some(214), Passed),
    row("rt_sigaction", Some(13), Some(134), Passed),
    row("rt_sigprocmask", Some(14), Some(135), Passed),
    row("rt_sigreturn", Some(15), Some(139), Passed),
    row("ioctl", Some(16), Some(29), File),
    row("pread64", Some(17), Some(67), File),
    row("pwrite64", Some(18), Some(68), File),
    row("readv", Some(19), Some(65), File),
    row("writev", Some(20), Some(66), File),
    row("access", Some(21), None, Path),
    row("pipe", Some(22), None, Passed),
    row("select", Some(23), None, Passed),
    row("sched_yield", Some(24), Some(124), Passed),
    row("mremap", Some(25), Some(216), File),
    row("msync", Some(26), Some(227), File),
    row("mincore", Some(27), Some(232), Passed),
    row("madvise", Some(28), Some(233), Passed),
    row("shmget", Some(29), Some(194), Passed),
    row("shmat", Some(30), Some(196), Passed),
    row("shmctl", Some(31), Some(195), Passed),
    row("dup", Some(32), Some(23), Passed),
    row("dup2", Some(33), None, Passed),
    row("pause", Some(34), None, Passed),
    row("nanosleep", Some(35), Some(101), Passed),
    row("getitimer", Some(36), Some(102), Passed),
    row("alarm", Some(37), None, Passed),
    row("setitimer", Some(38), Some(103), Passed),
    row("getpid", Some(39), Some(172), Passed),
    row("sendfile", Some(40), Some(71), File),
    row("socket", Some(41), Some(198), Passed),
    row("connect", Some(42), Some(203), Path),
    row("accept", Some(43), Some(202), Passed),
    row("sendto", Some(44), Some(206), Path),
    row("recvfrom", Some(45), Some(207), Passed),
    row("sendmsg", Some(46), Some(211), Path),
    row("recvmsg", Some(47), Some(212), Passed),
    row("shutdown", Some(48), Some(210), Passed),
    row("bind", Some(49), Some(200), Path),
    row("listen", Some(50), Some(201), Passed),
    row("getsockname", Some(51), Some(204), File),
    row("getpeername", Some(52), Some(205), File),
    row("socketpair", Some(53), Some(199), Passed),
    row("setsockopt", Some(54), Some(208), Passed),
    row("getsockopt", Some(55), Some(209), Passed),
    row("clone", Some(56), Some(220), Passed),
    row("fork", Some(57), None, Passed),
    row("vfork", Some(58), None, Passed),
    row("execve", Some(59), Some(221), Exec),
    row("exit", Some(60), Some(93), Passed),
    row("wait4", Some(61), Some(260), Passed),
    row("kill", Some(62), Some(129), Passed),
    row("uname", Some(63), Some(160), Passed),
    row("semget", Some(64), Some(190), Passed),
    row("semop", Some(65), Some(193), Passed),
    row("semctl", Some(66), Some(191), Passed),
    row("shmdt", Some(67), Some(197), Passed),
    row("msgget", Some(68), Some(186), Passed),
    row("msgsnd", Some(69), Some(189), Passed),
    row("msgrcv", Some(70), Some(188), Passed),
    row("msgctl", Some(71), Some(187), Passed),
    row("fcntl", Some(72), Some(25), File),
    row("flock", Some(73), Some(32), Passed),
    row("fsync", Some(74), Some(82), File),
    row("fdatasync", Some(75), Some(83), File),
    row("truncate", Some(76), Some(45), Path),
    row("ftruncate", Some(77), Some(46), File),
    row("getdents", Some(78), None, File),
    row("getcwd", Some(79), Some(17), Path),
    row("chdir", Some(80), Some(49), Path),
    row("fchdir", Some(81), Some(50), File),
    row("rename", Some(82), None, Path),
    row("mkdir", Some(83), None, Path),
    row("rmdir", Some(84), None, Path),
    row("creat", Some(85), None, Path),
    row("link", Some(86), None, Path),
    row("unlink", Some(87), None, Path),
    row("symlink", Some(88), None, Path),
    row("readlink", Some(89), None, Path),
    row("chmod", Some(90), None, Path),
    row("fchmod", Some(91), Some(52), File),
    row("chown", Some(92), None, Path),
    row("fchown", Some(93), Some(55), File),
    row("lchown", Some(94), None, Path),
    row("umask", Some(95), Some(166), Passed),
    row("gettimeofday", Some(96), Some(169), Passed),
    row("getrlimit", Some(97), Some(163), Task),
    row("getrusage", Some(98), Some(165), Passed),
    row("sysinfo", Some(99), Some(179), Passed),
    row("times", Some(100), Some(153), Passed),
    row("ptrace", Some(101), Some(117), Task),
    row("getuid", Some(102), Some(174), Identity),
    row("syslog", Some(103), Some(116), Passed),
    row("getgid", Some(104), Some(176), Identity),
    row("setuid", Some(105), Some(146), Rights),
    row("setgid", Some(106), Some(144), Rights),
    row("geteuid", Some(107), Some(175), Identity),
    row("getegid", Some(108), Some(177), Identity),
    row("setpgid", Some(109), Some(154), Passed),
    row("getppid", Some(110), Some(173), Passed),
    row("getpgrp", Some(111), None, Passed),
    row("setsid", Some(112), Some(157), Passed),
    row("setreuid", Some(113), Some(145), Rights),
    row("setregid", Some(114), Some(143), Rights),
    row("getgroups", Some(115), Some(158), Rights),
    row("setgroups", Some(116), Some(159), Rights),
    row("setresuid", Some(117), Some(147), Rights),
    row("getresuid", Some(118), Some(148), Identity),
    row("setresgid", Some(119), Some(149), Rights),
    row("getresgid", Some(120), Some(150), Identity),
    row("getpgid", Some(121), Some(155), Passed),
    row("setfsuid", Some(122), Some(151), Rights),
    row("setfsgid", Some(123), Some(152), Rights),
    row("getsid", Some(124), Some(156), Passed),
    row("capget", Some(125), Some(90), Rights),
    row("capset", Some(126), Some(91), Rights),
    row("rt_sigpending", Some(127), Some(136), Passed),
    row("rt_sigtimedwait", Some(128), Some(137), Passed),
    row("rt_sigqueueinfo", Some(129), Some(138), Passed),
    row("rt_sigsuspend", Some(130), Some(133), Passed),
    row("sigaltstack", Some(131), Some(132), Passed),
    row("utime", Some(132), None, Path),
    row("mknod", Some(133), None, Path),
    row("uselib", Some(134), None, Passed),
    row("personality", Some(135), Some(92), Passed),
    row("ustat", Some(136), None, Passed),
    row("statfs", Some(137), Some(43), Path),
    row("fstatfs", Some(138), Some(44), File),
    row("sysfs", Some(139), None, Passed),
    row("getpriority", Some(140), Some(141), Passed),
    row("setpriority", Some(141), Some(140), Passed),
    row("sched_setparam", Some(142), Some(118), Passed),
    row("sched_getparam", Some(143), Some(121), Passed),
    row("sched_setscheduler", Some(144), Some(119), Passed),
    row("sched_getscheduler", Some(145), Some(120), Passed),
    row("sched_get_priority_max", Some(146), Some(125), Passed),
    row("sched_get_priority_min", Some(147), Some(126), Passed),
    row("sched_rr_get_interval", Some(148), Some(127), Passed),
    row("mlock", Some(149), Some(228), Passed),
    row("munlock", Some(150), Some(229), Passed),
    row("mlockall", Some(151), Some(230), Passed),
    row("munlockall", Some(152), Some(231), Passed),
    row("vhangup", Some(153), Some(58), Passed),
    row("modify_ldt", Some(154), None, Passed),
    row("pivot_root", Some(155), Some(41), Mount),
    row("_sysctl", Some(156), None, Passed),
    row("prctl", Some(157), Some(167), Task),
    row("arch_prctl", Some(158), None, Passed),
    row("adjtimex", Some(159), Some(171), Passed),
    row("setrlimit", Some(160), Some(164), Task),
    row("chroot", Some(161), Some(51), Path),
    row("sync", Some(162), Some(81), File),
    row("acct", Some(163), Some(89), Path),
    row("settimeofday", Some(164), Some(170), Passed),
    row("mount", Some(165), Some(40), Mount),
    row("umount2", Some(166), Some(39), Mount),
    row("swapon", Some(167), Some(224), Path),
    row("swapoff", Some(168), Some(225), Path),
    row("reboot", Some(169), Some(142), Passed),
    row("sethostname", Some(170), Some(161), Passed),
    row("setdomainname", Some(171), Some(162), Passed),
    row("iopl", Some(172), None, Passed),
    row("ioperm", Some(173), None, Passed),
    row("create_module", Some(174), None, Passed),
    row("init_module", Some(175), Some(105), Passed),
    row("delete_module", Some(176), Some(106), Passed),
    row("get_kernel_syms", Some(177), None, Passed),
    row("query_module", Some(178), None, Passed),
    row("quotactl", Some(179), Some(60), Passed),
    row("nfsservctl", Some(180), Some(42), Passed),
    row("getpmsg", Some(181), None, Passed),
    row("putpmsg", Some(182), None, Passed),
    row("afs_syscall", Some(183), None, Passed),
    row("tuxcall", Some(184), None, Passed),
    row("security", Some(185), None, Passed),
    row("gettid", Some(186), Some(178), Passed),
    row("readahead", Some(187), Some(213), Passed),
    row("setxattr", Some(188), Some(5), Path),
    row("lsetxattr", Some(189), Some(6), Path),
    row("fsetxattr", Some(190), Some(7), File),
    row("getxattr", Some(191), Some(8), Path),
    row("lgetxattr", Some(192), Some(9), Path),
    row("fgetxattr", Some(193), Some(10), File),
    row("listxattr", Some(194), Some(11), Path),
    row("llistxattr", Some(195), Some(12), Path),
    row("flistxattr", Some(196), Some(13), File),
    row("removexattr", Some(197), Some(14), Path),
    row("lremovexattr", Some(198), Some(15), Path),
    row("fremovexattr", Some(199), Some(16), File),
    row("tkill", Some(200), Some(130), Passed),
    row("time", Some(201), None, Passed),
    row("futex", Some(202), Some(98), Passed),
    row("sched_setaffinity", Some(203), Some(122), Passed),
    row("sched_getaffinity", Some(204), Some(123), Passed),
    row("set_thread_area", Some(205), None, Passed),
    row("io_setup", Some(206), Some(0), Passed),
    row("io_destroy", Some(207), Some(1), Passed),
    row("io_getevents", Some(208), Some(4), Passed),
    row("io_submit", Some(209), Some(2), Passed),
    row("io_cancel", Some(210), Some(3), Passed),
    row("get_thread_area", Some(211), None, Passed),
    row("lookup_dcookie", Some(212), Some(18), Passed),
    row("epoll_create", Some(213), None, Passed),
    row("epoll_ctl_old", Some(214), None, Passed),
    row("epoll_wait_old", Some(215), None, Passed),
    row("remap_file_pages", Some(216), Some(234), Passed),
    row("getdents64", Some(217), Some(61), File),
    row("set_tid_address", Some(218), Some(96), Passed),
    row("restart_syscall", Some(219), Some(128), Passed),
    row("semtimedop", Some(220), Some(192), Passed),
    row("fadvise64", Some(221), Some(223), Passed),
    row("timer_create", Some(222), Some(107), Passed),
    row("timer_settime", Some(223), Some(110), Passed),
    row("timer_gettime", Some(224), Some(108), Passed),
    row("timer_getoverrun", Some(225), Some(109), Passed),
    row("timer_delete", Some(226), Some(111), Passed),
    row("clock_settime", Some(227), Some(112), Passed),
    row("clock_gettime", Some(228), Some(113), Passed),
    row("clock_getres", Some(229), Some(114), Passed),
    row("clock_nanosleep", Some(230), Some(115), Passed),
    row("exit_group", Some(231), Some(94), Passed),
    row("epoll_wait", Some(232), None, Passed),
    row("epoll_ctl", Some(233), Some(21), Passed),
    row("tgkill", Some(234), Some(131), Passed),
    row("utimes", Some(235), None, Path),
    row("vserver", Some(236), None, Passed),
    row("mbind", Some(237), Some(235), Passed),
    row("set_mempolicy", Some(238), Some(237), Passed),
    row("get_mempolicy", Some(239), Some(236), Passed),
    row("mq_open", Some(240), Some(180), Passed),
    row("mq_unlink", Some(241), Some(181), Passed),
    row("mq_timedsend", Some(242), Some(182), Passed),
    row("mq_timedreceive", Some(243), Some(183), Passed),
    row("mq_notify", Some(244), Some(184), Passed),
    row("mq_getsetattr", Some(245), Some(185), Passed),
    row("kexec_load", Some(246), Some(104), Passed),
    row("waitid", Some(247), Some(95), Passed),
    row("add_key", Some(248), Some(217), Passed),
    row("request_key", Some(249), Some(218), Passed),
    row("keyctl", Some(250), Some(219), Passed),
    row("ioprio_set", Some(251), Some(30), Passed),
    row("ioprio_get", Some(252), Some(31), Passed),
    row("inotify_init", Some(253), None, Passed),
    row("inotify_add_watch", Some(254), Some(27), Path),
    row("inotify_rm_watch", Some(255), Some(28), Passed),
    row("migrate_pages", Some(256), Some(238), Passed),
    row("openat", Some(257), Some(56), Path),
    row("mkdirat", Some(258), Some(34), Path),
    row("mknodat", Some(259), Some(33), Path),
    row("fchownat", Some(260), Some(54), Path),
    row("futimesat", Some(261), None, Path),
    row("newfstatat", Some(262), Some(79), Path),
    row("unlinkat", Some(263), Some(35), Path),
    row("renameat", Some(264), Some(38), Path),
    row("linkat", Some(265), Some(37), Path),
    row("symlinkat", Some(266), Some(36), Path),
    row("readlinkat", Some(267), Some(78), Path),
    row("fchmodat", Some(268), Some(53), Path),
    row("faccessat", Some(269), Some(48), Path),
    row("pselect6", Some(270), Some(72), Passed),
    row("ppoll", Some(271), Some(73), Passed),
    row("unshare", Some(272), Some(97), Passed),
    row("set_robust_list", Some(273), Some(99), Passed),
    row("get_robust_list", Some(274), Some(100), Passed),
    row("splice", Some(275), Some(76), File),
    row("tee", Some(276), Some(77), Passed),
    row("sync_file_range", Some(277), Some(84), File),
    row("vmsplice", Some(278), Some(75), Passed),
    row("move_pages", Some(279), Some(239), Passed),
    row("utimensat", Some(280), Some(88), Path),
    row("epoll_pwait", Some(281), Some(22), Passed),
    row("signalfd", Some(282), None, Passed),
    row("timerfd_create", Some(283), Some(85), Passed),
    row("eventfd", Some(284), None, Passed),
    row("fallocate", Some(285), Some(47), File),
    row("timerfd_settime", Some(286), Some(86), Passed),
    row("timerfd_gettime", Some(287), Some(87), Passed),
    row("accept4", Some(288), Some(242), Passed),
    row("signalfd4", Some(289), Some(74), Passed),
    row("eventfd2", Some(290), Some(19), Passed),
    row("epoll_create1", Some(291), Some(20), Passed),
    row("dup3", Some(292), Some(24), Passed),
    row("pipe2", Some(293), Some(59), Passed),
    row("inotify_init1", Some(294), Some(26), Passed),
    row("preadv", Some(295), Some(69), File),
    row("pwritev", Some(296), Some(70), File),
    row("rt_tgsigqueueinfo", Some(297), Some(240), Passed),
    row("perf_event_open", Some(298), Some(241), Passed),
    row("recvmmsg", Some(299), Some(243), Passed),
    row("fanotify_init", Some(300), Some(262), Passed),
    row("fanotify_mark", Some(301), Some(263), Path),
    row("prlimit64", Some(302), Some(261), Task),
    row("name_to_handle_at", Some(303), Some(264), Path),
    row("open_by_handle_at", Some(304), Some(265), Path),
    row("clock_adjtime", Some(305), Some(266), Passed),
    row("syncfs", Some(306), Some(267), File),
    row("sendmmsg", Some(307), Some(269), Path),
    row("setns", Some(308), Some(268), Passed),
    row("getcpu", Some(309), Some(168), Passed),
    row("process_vm_readv", Some(310), Some(270), Passed),
    row("process_vm_writev", Some(311), Some(271), Passed),
    row("kcmp", Some(312), Some(272), Passed),
    row("finit_module", Some(313), Some(273), Passed),
    row("sched_setattr", Some(314), Some(274), Passed),
    row("sched_getattr", Some(315), Some(275), Passed),
    row("renameat2", Some(316), Some(276), Path),
    row("seccomp", Some(317), Some(277), Task),
    row("getrandom", Some(318), Some(278), Passed),
    row("memfd_create", Some(319), Some(279), Passed),
    row("kexec_file_load", Some(320), Some(294), Passed),
    row("bpf", Some(321), Some(280), Passed),
    row("execveat", Some(322), Some(281), Exec),
    row("userfaultfd", Some(323), Some(282), Passed),
    row("membarrier", Some(324), Some(283), Passed),
    row("mlock2", Some(325), Some(284), Passed),
    row("copy_file_range", Some(326), Some(285), File),
    row("preadv2", Some(327), Some(286), File),
    row("pwritev2", Some(328), Some(287), File),
    row("pkey_mprotect", Some(329), Some(288), Passed),
    row("pkey_alloc", Some(330), Some(289), Passed),
    row("pkey_free", Some(331), Some(290), Passed),
    row("statx", Some(332), Some(291), Path),
    row("io_pgetevents", Some(333), Some(292), Passed),
    row("rseq", Some(334), Some(293), Passed),
    row("pidfd_send_signal", Some(424), Some(424), Passed),
    row("io_uring_setup", Some(425), Some(425), Refused),
    row("io_uring_enter", Some(426), Some(426), Refused),
    row("io_uring_register", Some(427), Some(427), Refused),
    row("open_tree", Some(428), Some(428), Mount),
    row("move_mount", Some(429), Some(429), Mount),
    row("fsopen", Some(430), Some(430), Mount),
    row("fsconfig", Some(431), Some(431), Mount),
    row("fsmount", Some(432), Some(432), Mount),
    row("fspick", Some(433), Some(433), Mount),
    row("pidfd_open", Some(434), Some(434), Passed),
    row("clone3", Some(435), Some(435), Passed),
    row("close_range", Some(436), Some(436), Passed),
    row("openat2", Some(437), Some(437), Path),
    row("pidfd_getfd", Some(438), Some(438), Passed),
    row("faccessat2", Some(439), Some(439), Path),
    row("process_madvise", Some(440), Some(440), Passed),
    row("epoll_pwait2", Some(441), Some(441), Passed),
    row("mount_setattr", Some(442), Some(442), Mount),
    row("quotactl_fd", Some(443), Some(443), Passed),
    row("landlock_create_ruleset", Some(444), Some(444), Passed),
    row("landlock_add_rule", Some(445), Some(445), Passed),
    row("landlock_restrict_self", Some(446), Some(446), Passed),
    row("memfd_secret", Some(447), Some(447), Passed),
    row("process_mrelease", Some(448), Some(448), Passed),
    row("futex_waitv", Some(449), Some(449), Passed),
    row("set_mempolicy_home_node", Some(450), Some(450), Passed),
    row("cachestat", Some(451), Some(451), Passed),
    row("fchmodat2", Some(452), Some(452), Path),
    row("map_shadow_stack", Some(453), Some(453), Passed),
    row("futex_wake", Some(454), Some(454), Passed),
    row("futex_wait", Some(455), Some(455), Passed),
    row("futex_requeue", Some(456), Some(456), Passed),
    row("statmount", Some(457), Some(457), Mount),
    row("listmount", Some(458), Some(458), Mount),
    row("lsm_get_self_attr", Some(459), Some(459), Passed),
    row("lsm_set_self_attr", Some(460), Some(460), Passed),
    row("lsm_list_modules", Some(461), Some(461), Passed),
    row("mseal", Some(462), Some(462), Passed),
    row("setxattrat", Some(463), Some(463), Path),
    row("getxattrat", Some(464), Some(464), Path),
    row("listxattrat", Some(465), Some(465), Path),
    row("removexattrat", Some(466), Some(466), Path),
    row("open_tree_attr", Some(467), Some(467), Mount),
    row("file_getattr", Some(468), Some(468), Path),
    row("file_setattr", Some(469), Some(469), Path),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_the_architecture_has_one_row() {
        let mut numbers: Vec<u32> = CALLS.iter().filter_map(Row::number).collect();
        numbers.sort_unstable();
        let count = numbers.len();
        numbers.dedup();
        assert_eq!(numbers.len(), count, "no number twice");
        if cfg!(target_arch = "x86_64") {
            // 335 to 423 were never given out.
            let expected: Vec<u32> = (0..335).chain(424..470).collect();
            assert_eq!(numbers, expected);
        }
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = CALLS.iter().map(|row| row.name).collect();
        names.sort_unstable();
        names.windows(2).for_each(|pair| assert_ne!(pair[0], pair[1]));
    }
}
