//! A seccomp program from rules.
//!
//! Layout: the architecture is checked first (calls of another one, such as 32-bit calls, do not exist in a view), then the
//! number is searched in a binary tree whose leaves hold up to four rules. What no rule names is allowed; what is higher
//! than every number that we know does not exist (`ENOSYS`), so that a new call of a new kernel cannot escape.

use nix::errno::Errno;
use nix::libc;

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The kernel serves it.
    Allow,
    /// It fails.
    Fail(Errno),
    /// It goes to the listener.
    Notify,
    /// It goes to a tracer that asked for seccomp stops.
    Trace,
}

impl Verdict {
    fn value(self) -> u32 {
        match self {
            Verdict::Allow => libc::SECCOMP_RET_ALLOW,
            Verdict::Fail(errno) => libc::SECCOMP_RET_ERRNO | (errno as u32 & 0xffff),
            Verdict::Notify => libc::SECCOMP_RET_USER_NOTIF,
            Verdict::Trace => libc::SECCOMP_RET_TRACE,
        }
    }
}

/// A test of the low 32 bits of an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// Argument `.0` is `.1`.
    Is(u8, u32),
    /// Argument `.0` is not `.1`.
    IsNot(u8, u32),
    /// Argument `.0` has at least one of the bits `.1`.
    HasAny(u8, u32),
    /// Argument `.0` has none of the bits `.1`.
    HasNone(u8, u32),
    /// Argument `.0` is `.1` or more, unsigned.
    AtLeast(u8, u32),
    /// `.1 <= argument .0 < .2`.
    Within(u8, u32, u32),
}

/// What becomes of one call.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The call.
    pub number: u32,
    /// If not empty, the verdict holds only when one of these is true; the call is allowed otherwise.
    pub tests: Vec<Test>,
    /// The verdict.
    pub verdict: Verdict,
    /// Calls from within the [shim](crate::shim) are allowed, whatever the tests say.
    pub unless_shim: bool,
}

impl Rule {
    /// A rule without tests.
    pub fn new(number: u32, verdict: Verdict) -> Self {
        Self { number, tests: Vec::new(), verdict, unless_shim: false }
    }
}

/// An assembled program.
#[derive(Clone)]
pub struct Program(Vec<libc::sock_filter>);

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;

/// Offsets into `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const INSTRUCTION: u32 = 8;
const ARGUMENTS: u32 = 16;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const IF_ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

fn plain(code: u16, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt: 0, jf: 0, k }
}

fn branch(code: u16, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

impl Program {
    /// Assembles a program. `limit`: one more than the highest number that is known. A number that has no rule is allowed
    /// below the limit and fails with `ENOSYS` from there on.
    pub fn new(mut rules: Vec<Rule>, limit: u32) -> Self {
        rules.sort_by_key(|rule| rule.number);
        let mut code = vec![
            plain(LOAD, ARCHITECTURE),
            branch(IF_EQUAL, ARCH, 1, 0),
            plain(RETURN, Verdict::Fail(Errno::ENOSYS).value()),
            plain(LOAD, NUMBER),
            // The number that a tracer gives to a call that it skips, and whose result it sets itself: a view inside this one does.
            branch(IF_EQUAL, u32::MAX, 0, 1),
            plain(RETURN, Verdict::Allow.value()),
        ];
        code.extend(search(&rules, limit));
        Self(code)
    }

    /// The same program for a tracer: what would go to a listener stops the task instead.
    pub fn for_tracer(mut self) -> Self {
        for insn in &mut self.0 {
            if insn.code == RETURN && insn.k == Verdict::Notify.value() {
                insn.k = Verdict::Trace.value();
            }
        }
        self
    }

    /// What the kernel would do with a call: the program's return value. For machines whose kernel does not run it.
    pub fn judge(&self, arch: u32, number: u32, args: &[u64; 6]) -> u32 {
        let (mut accumulator, mut at) = (0_u32, 0_usize);
        while let Some(insn) = self.0.get(at) {
            at += 1;
            let choose = |condition: bool| usize::from(if condition { insn.jt } else { insn.jf });
            match insn.code {
                LOAD => {
                    accumulator = match insn.k {
                        NUMBER => number,
                        ARCHITECTURE => arch,
                        // Nobody is in the shim where the kernel does not run the program.
                        offset if offset < ARGUMENTS => 0,
                        offset => args[(offset - ARGUMENTS) as usize / 8 % 6] as u32,
                    }
                }
                JUMP => at += insn.k as usize,
                IF_EQUAL => at += choose(accumulator == insn.k),
                IF_AT_LEAST => at += choose(accumulator >= insn.k),
                IF_ANY_BIT => at += choose(accumulator & insn.k != 0),
                _ => return insn.k,
            }
        }
        libc::SECCOMP_RET_ERRNO | Errno::ENOSYS as u32
    }

    /// The instructions, as the kernel reads them.
    pub fn instructions(&self) -> &[libc::sock_filter] {
        &self.0
    }

    /// The same as bytes: eight for each instruction.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.0.len() * 8);
        for insn in &self.0 {
            bytes.extend_from_slice(&insn.code.to_ne_bytes());
            bytes.extend_from_slice(&[insn.jt, insn.jf]);
            bytes.extend_from_slice(&insn.k.to_ne_bytes());
        }
        bytes
    }
}

/// Code that decides about the number in the accumulator, for rules in ascending order.
fn search(rules: &[Rule], limit: u32) -> Vec<libc::sock_filter> {
    if rules.len() <= 4 {
        let mut code: Vec<_> = rules.iter().flat_map(leaf).collect();
        code.push(branch(IF_AT_LEAST, limit, 0, 1));
        code.push(plain(RETURN, Verdict::Fail(Errno::ENOSYS).value()));
        code.push(plain(RETURN, Verdict::Allow.value()));
        return code;
    }
    let (low, high) = rules.split_at(rules.len() / 2);
    let low_code = search(low, limit);
    let mut code = vec![branch(IF_AT_LEAST, high[0].number, 0, 1), plain(JUMP, low_code.len() as u32)];
    code.extend(low_code);
    code.extend(search(high, limit));
    code
}

/// Code for one rule; falls through if the number is another.
fn leaf(rule: &Rule) -> Vec<libc::sock_filter> {
    let mut body = if rule.unless_shim { from_shim(rule.number) } else { Vec::new() };
    if rule.tests.is_empty() {
        body.push(plain(RETURN, rule.verdict.value()));
    } else {
        for test in &rule.tests {
            body.extend(test_code(*test, rule.verdict));
        }
        body.push(plain(RETURN, Verdict::Allow.value()));
    }
    // A rule has few tests, so its code is short enough for a conditional jump.
    let mut code = vec![branch(IF_EQUAL, rule.number, 0, body.len() as u8)];
    code.extend(body);
    code
}

/// Code that allows what the shim does, and that it is mapped.
fn from_shim(number: u32) -> Vec<libc::sock_filter> {
    use crate::shim::{BASE, CODE};
    let allow = plain(RETURN, Verdict::Allow.value());
    let (high, low) = ((BASE >> 32) as u32, BASE as u32);
    // The instruction pointer is behind the call.
    let mut code = vec![
        plain(LOAD, INSTRUCTION + 4),
        branch(IF_EQUAL, high, 0, 4),
        plain(LOAD, INSTRUCTION),
        branch(IF_AT_LEAST, low, 0, 2),
        branch(IF_AT_LEAST, low + CODE as u32, 1, 0),
        allow,
    ];
    if libc::c_long::from(number) == libc::SYS_mmap {
        code.extend([plain(LOAD, ARGUMENTS + 4), branch(IF_EQUAL, high, 0, 1), allow]);
    }
    code
}

/// Code that returns the verdict if the test is true.
fn test_code(test: Test, verdict: Verdict) -> Vec<libc::sock_filter> {
    let verdict = plain(RETURN, verdict.value());
    let load = |argument: u8| plain(LOAD, ARGUMENTS + 8 * u32::from(argument));
    match test {
        Test::Is(argument, value) => vec![load(argument), branch(IF_EQUAL, value, 0, 1), verdict],
        Test::IsNot(argument, value) => vec![load(argument), branch(IF_EQUAL, value, 1, 0), verdict],
        Test::HasAny(argument, bits) => vec![load(argument), branch(IF_ANY_BIT, bits, 0, 1), verdict],
        Test::HasNone(argument, bits) => vec![load(argument), branch(IF_ANY_BIT, bits, 1, 0), verdict],
        Test::AtLeast(argument, value) => vec![load(argument), branch(IF_AT_LEAST, value, 0, 1), verdict],
        Test::Within(argument, low, high) => {
            vec![load(argument), branch(IF_AT_LEAST, low, 0, 2), branch(IF_AT_LEAST, high, 1, 0), verdict]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program on a call, as the kernel would.
    fn run(program: &Program, arch: u32, number: u32, args: [u32; 6]) -> u32 {
        let (mut accumulator, mut at) = (0_u32, 0_usize);
        loop {
            let insn = program.0[at];
            at += 1;
            let choose = |condition: bool| usize::from(if condition { insn.jt } else { insn.jf });
            match insn.code {
                LOAD => {
                    accumulator = match insn.k {
                        NUMBER => number,
                        ARCHITECTURE => arch,
                        offset => args[(offset - ARGUMENTS) as usize / 8],
                    }
                }
                JUMP => at += insn.k as usize,
                IF_EQUAL => at += choose(accumulator == insn.k),
                IF_AT_LEAST => at += choose(accumulator >= insn.k),
                IF_ANY_BIT => at += choose(accumulator & insn.k != 0),
                RETURN => return insn.k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn every_number_gets_the_verdict_of_its_rule() {
        let rules: Vec<Rule> = (0..400)
            .filter(|number| number % 3 == 0)
            .map(|number| {
                Rule::new(number, if number % 2 == 0 { Verdict::Notify } else { Verdict::Fail(Errno::EPERM) })
            })
            .collect();
        let program = Program::new(rules, 400);
        for number in 0..500 {
            let expected = match number {
                400.. => Verdict::Fail(Errno::ENOSYS),
                n if n % 3 != 0 => Verdict::Allow,
                n if n % 2 == 0 => Verdict::Notify,
                _ => Verdict::Fail(Errno::EPERM),
            };
            assert_eq!(run(&program, ARCH, number, [0; 6]), expected.value(), "{number}");
        }
    }

    #[test]
    fn tests_look_at_arguments() {
        let rule = |test| Rule { tests: vec![test], ..Rule::new(9, Verdict::Notify) };
        let hit = |test, value: u32| {
            run(&Program::new(vec![rule(test)], 10), ARCH, 9, [0, value, 0, 0, 0, 0])
                == Verdict::Notify.value()
        };
        assert!(hit(Test::Is(1, 5), 5) && !hit(Test::Is(1, 5), 6));
        assert!(hit(Test::IsNot(1, 5), 6) && !hit(Test::IsNot(1, 5), 5));
        assert!(hit(Test::HasAny(1, 6), 2) && !hit(Test::HasAny(1, 6), 1));
        assert!(hit(Test::HasNone(1, 6), 1) && !hit(Test::HasNone(1, 6), 2));
        assert!(hit(Test::AtLeast(1, 6), 6) && !hit(Test::AtLeast(1, 6), 5));
        assert!(
            hit(Test::Within(1, 6, 8), 7) && !hit(Test::Within(1, 6, 8), 8) && !hit(Test::Within(1, 6, 8), 5)
        );
    }

    #[test]
    fn calls_of_another_architecture_do_not_exist() {
        let program = Program::new(Vec::new(), 500);
        assert_eq!(run(&program, 0x4000_0003, 5, [0; 6]), Verdict::Fail(Errno::ENOSYS).value());
        // x32 calls have this bit, and are beyond every known number.
        assert_eq!(run(&program, ARCH, 0x4000_0001, [0; 6]), Verdict::Fail(Errno::ENOSYS).value());
    }
}
