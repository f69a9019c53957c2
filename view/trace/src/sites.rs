//! Call sites of a library, and the library's code with jumps to the [shim](crate::shim) in their places.
//!
//! Two forms are known, since compilers and the authors of libraries write no others:
//!
//! ```text
//! mov $NUMBER, %eax    becomes a jump to a pad        mov $NUMBER, %eax
//! syscall              stays                          mov %edi, %esi      (or whatever)
//!                                                     syscall             these become a jump to a pad,
//!                                                     cmp $IMM, %rax      in which they are
//! ```
//!
//! Pads lie behind the end of the code, in the rest of its last page, which nothing refers to.
//!
//! Where instructions begin is known from the function's beginning on: functions are taken from `.eh_frame`, or from the dynamic
//! symbols, and decoded one by one. A site is left alone, and its calls come to the engine, unless all of this is certain:
//! - every instruction of the function could be decoded, up to its end;
//! - no jump lands within the changed bytes. Of the first form only one instruction changes, so that none can; of the second the
//!   function has no computed jumps; and for both, nothing in the library that could be read as a jump, on whatever byte it
//!   begins, leads there. What cannot be changed in the first form for that reason is, if possible, in the second;
//! - what comes behind does not look at the flags, which the shim changes and `syscall` does not;
//! - no call comes right before: that is how the C library makes calls in which threads can be cancelled, and who is cancelled in the
//!   shim could not be unwound.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashSet};

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Register, RflagsBits};
use nix::errno::Errno;

use crate::{Result, shim};

/// Bytes.
const PAGE: u64 = 4096;
/// Bytes; a library whose code is larger is left alone.
const MOST_CODE: u64 = 32 << 20;

/// A change of a library's code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Where it is, as the file has it in memory from its base on.
    pub address: u64,
    /// What is there.
    pub old: Vec<u8>,
    /// What comes there.
    pub new: Vec<u8>,
}

/// A call site that is rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// Address of its `syscall` instruction.
    pub address: u64,
    /// The call, if the code says so right before.
    pub number: Option<u32>,
}

/// A library's code, changed.
#[derive(Clone, Debug)]
pub struct Patched<'f> {
    /// Where the code is in the file. Bytes.
    pub offset: u64,
    /// The same in memory, from the library's base on.
    pub address: u64,
    /// The code as it was, in whole pages.
    pub old: Cow<'f, [u8]>,
    /// Its call sites.
    pub sites: Vec<Site>,
    /// What was changed, one by one; the pads come first.
    pub changes: Vec<Change>,
}

impl Patched<'_> {
    /// Changes the code, of which this is a copy.
    pub fn apply(&self, code: &mut [u8]) {
        for change in &self.changes {
            let at = (change.address - self.address) as usize;
            if let Some(place) = code.get_mut(at..at + change.new.len()) {
                place.copy_from_slice(&change.new);
            }
        }
    }

    /// The same without the file.
    pub fn into_owned(self) -> Patched<'static> {
        Patched { old: Cow::Owned(self.old.into_owned()), ..self }
    }
}

struct Segment {
    offset: u64,
    address: u64,
    len: u64,
}

struct Elf<'f> {
    file: &'f [u8],
    code: Segment,
    eh_frame: Option<u64>,
    dynamic: Option<(u64, u64)>,
    loads: Vec<(u64, u64, u64)>,
}

fn number<const N: usize>(bytes: &[u8], at: u64) -> Result<u64> {
    let at = usize::try_from(at).map_err(|_| Errno::ENOEXEC)?;
    let end = at.checked_add(N).ok_or(Errno::ENOEXEC)?;
    let part = bytes.get(at..end).ok_or(Errno::ENOEXEC)?;
    Ok(part.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
}

fn sum(a: u64, b: u64) -> Result<u64> {
    a.checked_add(b).ok_or(Errno::ENOEXEC)
}

impl<'f> Elf<'f> {
    fn parse(file: &'f [u8]) -> Result<Self> {
        const EXECUTABLE: u64 = 1;
        // 64 bits, little-endian, x86_64.
        let is_ours = file.get(..6) == Some(b"\x7fELF\x02\x01") && number::<2>(file, 18)? == 62;
        if !is_ours || number::<2>(file, 54)? != 56 {
            return Err(Errno::ENOEXEC);
        }
        let (table, count) = (number::<8>(file, 32)?, number::<2>(file, 56)?);
        let (mut code, mut eh_frame, mut dynamic, mut loads) = (None, None, None, Vec::new());
        for index in 0..count {
            let at = sum(table, index * 56)?;
            let word = |offset: u64| number::<8>(file, sum(at, offset)?);
            let (kind, flags) = (number::<4>(file, at)?, number::<4>(file, sum(at, 4)?)?);
            let (offset, address, len, memory) = (word(8)?, word(16)?, word(32)?, word(40)?);
            sum(offset, len)?;
            sum(address, memory)?;
            match kind {
                1 => {
                    loads.push((offset, address, memory));
                    if flags & EXECUTABLE != 0 {
                        let is_plain = flags == 5 && len == memory && code.is_none();
                        if !is_plain || offset % PAGE != 0 || address % PAGE != 0 || len > MOST_CODE {
                            return Err(Errno::ENOEXEC);
                        }
                        code = Some(Segment { offset, address, len });
                    }
                }
                2 => dynamic = Some((address, len)),
                0x6474_e550 => eh_frame = Some(address),
                _ => {}
            }
        }
        let code = code.ok_or(Errno::ENOEXEC)?;
        let end = sum(code.address, code.len)?.next_multiple_of(PAGE);
        let begins_in = |(_, address, _): &&(u64, u64, u64)| (code.address + 1..end).contains(address);
        if loads.iter().any(|load| begins_in(&load)) {
            return Err(Errno::ENOEXEC);
        }
        Ok(Self { file, code, eh_frame, dynamic, loads })
    }

    /// Where an address is in the file.
    fn at(&self, address: u64) -> Result<u64> {
        for (offset, start, len) in &self.loads {
            if let Some(within) = address.checked_sub(*start).filter(|within| within < len) {
                return sum(*offset, within);
            }
        }
        Err(Errno::ENOEXEC)
    }

    fn read<const N: usize>(&self, address: u64) -> Result<u64> {
        number::<N>(self.file, self.at(address)?)
    }

    fn signed(&self, address: u64) -> Result<i64> {
        Ok(i64::from(self.read::<4>(address)? as u32 as i32))
    }

    /// Functions, by the table for unwinding. Addresses and lengths.
    fn unwound(&self) -> Result<Vec<(u64, u64)>> {
        let header = self.eh_frame.ok_or(Errno::ENOEXEC)?;
        // Version 1; pointers of four bytes; the table's relative to the header.
        if self.read::<1>(header)? != 1 || self.read::<2>(sum(header, 2)?)? != 0x3b03 {
            return Err(Errno::ENOEXEC);
        }
        let count = self.read::<4>(sum(header, 8)?)?;
        let mut found = Vec::new();
        // Most functions have it in common with the one before.
        let mut last = None;
        for index in 0..count {
            let entry = sum(header, 12 + index * 8)?;
            let start = header.wrapping_add_signed(self.signed(entry)?);
            let description = header.wrapping_add_signed(self.signed(sum(entry, 4)?)?);
            // Length, distance to what is common, beginning, length.
            let common = sum(description, 4)?;
            let common = common.wrapping_sub(self.read::<4>(common)?);
            let is_relative = match last {
                Some((at, is_relative)) if at == common => is_relative,
                _ => self.is_relative(common)?,
            };
            last = Some((common, is_relative));
            if !is_relative {
                continue;
            }
            let begin = sum(description, 8)?;
            if begin.wrapping_add_signed(self.signed(begin)?) != start {
                return Err(Errno::ENOEXEC);
            }
            found.push((start, self.read::<4>(sum(description, 12)?)?));
        }
        Ok(found)
    }

    /// Whether addresses are given as four bytes relative to themselves (`zR` with 0x1b).
    fn is_relative(&self, common: u64) -> Result<bool> {
        let mut at = sum(common, 9)?;
        let mut letters = Vec::new();
        while letters.len() < 8 {
            match self.read::<1>(at)? as u8 {
                0 => break,
                letter => letters.push(letter),
            }
            at = sum(at, 1)?;
        }
        if letters.first() != Some(&b'z') {
            return Ok(false);
        }
        // Alignments, register of the return address, length: one byte each in everything that is not exotic.
        at = sum(at, 1)?;
        for _ in 0..4 {
            if self.read::<1>(at)? & 0x80 != 0 {
                return Ok(false);
            }
            at = sum(at, 1)?;
        }
        for letter in &letters[1..] {
            match letter {
                b'R' => return Ok(self.read::<1>(at)? == 0x1b),
                b'L' => at = sum(at, 1)?,
                b'P' => {
                    let len = match self.read::<1>(at)? & 0xf {
                        0 | 4 | 12 => 9,
                        3 | 11 => 5,
                        2 | 10 => 3,
                        _ => return Ok(false),
                    };
                    at = sum(at, len)?;
                }
                b'S' => {}
                _ => return Ok(false),
            }
        }
        Ok(false)
    }

    /// Functions, by the dynamic symbols.
    fn exported(&self) -> Result<Vec<(u64, u64)>> {
        const FUNCTION: u64 = 2;
        let (dynamic, len) = self.dynamic.ok_or(Errno::ENOEXEC)?;
        let (mut symbols, mut strings) = (None, None);
        for index in 0..len / 16 {
            let at = sum(dynamic, index * 16)?;
            match self.read::<8>(at)? {
                0 => break,
                5 => strings = Some(self.read::<8>(sum(at, 8)?)?),
                6 => symbols = Some(self.read::<8>(sum(at, 8)?)?),
                _ => {}
            }
        }
        // Linkers put the strings behind the symbols.
        let (symbols, strings) = (symbols.ok_or(Errno::ENOEXEC)?, strings.ok_or(Errno::ENOEXEC)?);
        let mut found = Vec::new();
        for index in 0..strings.saturating_sub(symbols) / 24 {
            let at = sum(symbols, index * 24)?;
            let Ok(info) = self.read::<1>(sum(at, 4)?) else { break };
            let (address, len) = (self.read::<8>(sum(at, 8)?)?, self.read::<8>(sum(at, 16)?)?);
            if info & 0xf == FUNCTION && len > 0 {
                found.push((address, len));
            }
        }
        Ok(found)
    }
}

/// What is to be rewritten: where it begins, how long it is, the `syscall` in it, and the call.
#[derive(Clone, Copy)]
struct Find {
    start: u64,
    len: u64,
    syscall: u64,
    number: Option<u32>,
    /// Of the first form: its length in the second one, if it could be taken for that too.
    second: Option<u64>,
}

/// Finds the call sites of a library and rewrites those of calls that `wanted` names. `ENOEXEC` for a file that is no such library, or one
/// that is not understood.
pub fn patch<'f>(file: &'f [u8], wanted: &dyn Fn(u32) -> bool) -> Result<Patched<'f>> {
    let elf = Elf::parse(file)?;
    let code = &elf.code;
    let start = usize::try_from(code.offset).map_err(|_| Errno::ENOEXEC)?;
    let bytes = file.get(start..start + code.len as usize).ok_or(Errno::ENOEXEC)?;
    let mut functions = elf.unwound().or_else(|_| elf.exported())?;
    functions.sort_unstable();
    functions.dedup();
    let calls: Vec<usize> = memchr::memmem::find_iter(bytes, &[0x0f, 0x05]).collect();
    let mut finds = Vec::new();
    for (address, len) in functions {
        let Some(from) = address.checked_sub(code.address) else { continue };
        let Some(body) = usize::try_from(from)
            .ok()
            .and_then(|from| bytes.get(from..from.checked_add(usize::try_from(len).ok()?)?))
        else {
            continue;
        };
        let next = calls.partition_point(|at| (*at as u64) < from);
        if calls.get(next).is_some_and(|at| *at as u64 - from < len) {
            finds.extend(sites_of(body, address, wanted));
        }
    }
    finds.sort_unstable_by_key(|find| find.start);
    finds.dedup_by_key(|find| find.start);
    // Functions that overlap are none that a compiler made.
    let overlaps: HashSet<u64> = finds
        .windows(2)
        .filter(|pair| pair[0].start + pair[0].len > pair[1].start)
        .map(|pair| pair[0].start)
        .collect();
    if !overlaps.is_empty() {
        return Err(Errno::ENOEXEC);
    }
    let is_free = |find: &Find, landed: &HashSet<u64>| {
        !(find.start + 1..find.start + find.len).any(|at| landed.contains(&at))
    };
    let landed = landings(bytes, code.address, &finds);
    let seconds: Vec<Find> = finds
        .iter()
        .filter(|find| !is_free(find, &landed))
        .filter_map(|find| {
            Some(Find { start: find.syscall, len: find.second?, number: None, second: None, ..*find })
        })
        .collect();
    finds.retain(|find| is_free(find, &landed));
    let landed = landings(bytes, code.address, &seconds);
    let is_apart = |find: &&Find| {
        !finds.iter().any(|other| other.start < find.start + find.len && find.start < other.start + other.len)
    };
    let seconds: Vec<Find> =
        seconds.iter().filter(|find| is_free(find, &landed)).filter(is_apart).copied().collect();
    finds.extend(seconds);
    finds.sort_unstable_by_key(|find| find.start);
    Ok(rewrite(&elf, bytes, &finds))
}

/// The sites of one function.
fn sites_of(body: &[u8], address: u64, wanted: &dyn Fn(u32) -> bool) -> Vec<Find> {
    let mut decoder = Decoder::with_ip(64, body, address, DecoderOptions::NONE);
    let (mut instructions, mut targets, mut computed) = (Vec::new(), BTreeSet::new(), false);
    let end = address + body.len() as u64;
    for instruction in &mut decoder {
        if instruction.is_invalid() || instruction.next_ip() > end {
            return Vec::new();
        }
        match instruction.flow_control() {
            FlowControl::ConditionalBranch
            | FlowControl::UnconditionalBranch
            | FlowControl::XbeginXabortXend => {
                targets.insert(instruction.near_branch_target());
            }
            FlowControl::IndirectBranch => computed = true,
            _ => {}
        }
        instructions.push(instruction);
    }
    // The length of the second form at an instruction, if it may have that.
    let second = |index: usize| {
        let len = movable(&instructions[index + 1..]).filter(|_| !computed)? + 2;
        let at = instructions[index].ip();
        targets.range(at + 1..at + len).next().is_none().then_some(len)
    };
    let mut found = Vec::new();
    for (index, instruction) in instructions.iter().enumerate() {
        if instruction.code() != Code::Syscall || index == 0 {
            continue;
        }
        let before = &instructions[index - 1];
        if follows_call(&instructions[..index], &targets) || !flags_are_free(&instructions[index + 1..]) {
            continue;
        }
        let says_number = before.code() == Code::Mov_r32_imm32
            && before.op0_register() == Register::EAX
            && before.len() == 5;
        if says_number && !targets.contains(&instruction.ip()) {
            let number = before.immediate32();
            if wanted(number) {
                found.push(Find {
                    start: before.ip(),
                    len: 5,
                    syscall: instruction.ip(),
                    number: Some(number),
                    second: second(index),
                });
            }
            continue;
        }
        if !number_before(&instructions[..index]).is_some_and(wanted) {
            continue;
        }
        if let Some(len) = second(index) {
            let syscall = instruction.ip();
            found.push(Find { start: syscall, len, syscall, number: None, second: None });
        }
    }
    found
}

/// The number that a call most likely has: what was put in `eax` last. The shim looks itself.
fn number_before(before: &[Instruction]) -> Option<u32> {
    const FAR: usize = 12;
    let eax = |instruction: &Instruction| instruction.op0_register().full_register() == Register::RAX;
    let both = |instruction: &Instruction| eax(instruction) && instruction.op1_register() == Register::EAX;
    for (index, instruction) in before.iter().enumerate().rev().take(FAR) {
        match instruction.code() {
            Code::Mov_r32_imm32 if eax(instruction) => return Some(instruction.immediate32()),
            Code::Xor_r32_rm32 | Code::Xor_rm32_r32 if both(instruction) => return Some(0),
            // A test for 0 that was passed.
            Code::Jne_rel8_64 | Code::Jne_rel32_64 => {
                let test = index.checked_sub(1).and_then(|index| before.get(index))?;
                return (test.code() == Code::Test_rm32_r32 && both(test)).then_some(0);
            }
            Code::Cmp_rm32_r32 | Code::Cmp_r32_rm32 | Code::Test_rm32_r32 => {}
            _ if eax(instruction) || instruction.flow_control() != FlowControl::Next => return None,
            _ => {}
        }
    }
    None
}

/// The length of the first instructions that make room for a jump, with the two bytes before them, and that do the same elsewhere.
fn movable(after: &[Instruction]) -> Option<u64> {
    let mut len = 0;
    for instruction in after {
        let is_fixed = instruction.flow_control() != FlowControl::Next
            || instruction.is_ip_rel_memory_operand()
            || instruction.code() == Code::Syscall;
        if is_fixed {
            return None;
        }
        len += instruction.len() as u64;
        if len >= 3 {
            return Some(len);
        }
    }
    None
}

/// Whether a call comes before, with nothing but straight code between.
fn follows_call(before: &[Instruction], targets: &BTreeSet<u64>) -> bool {
    for instruction in before.iter().rev() {
        match instruction.flow_control() {
            FlowControl::Call | FlowControl::IndirectCall => return true,
            FlowControl::UnconditionalBranch | FlowControl::IndirectBranch | FlowControl::Return => {
                return false;
            }
            _ if targets.contains(&instruction.ip()) => return false,
            _ => {}
        }
    }
    false
}

/// Whether the flags are set before they are looked at.
fn flags_are_free(after: &[Instruction]) -> bool {
    const ALL: u32 =
        RflagsBits::CF | RflagsBits::PF | RflagsBits::AF | RflagsBits::ZF | RflagsBits::SF | RflagsBits::OF;
    let mut known = 0;
    for instruction in after {
        if instruction.rflags_read() & ALL & !known != 0 {
            return false;
        }
        known |= instruction.rflags_modified();
        if known & ALL == ALL {
            return true;
        }
        match instruction.flow_control() {
            FlowControl::Next => {}
            // By the calling convention.
            FlowControl::Return | FlowControl::Call | FlowControl::IndirectCall => return true,
            _ => return false,
        }
    }
    false
}

/// Addresses within what is to change that anything in the code could jump to, were it read from there.
fn landings(bytes: &[u8], address: u64, finds: &[Find]) -> HashSet<u64> {
    let mut landed = HashSet::new();
    if finds.is_empty() {
        return landed;
    }
    // One bit for each byte that is within a change, but not its first.
    let mut changed = vec![0_u64; bytes.len() / 64 + 1];
    for find in finds {
        for at in (find.start + 1..find.start + find.len).map(|target| (target - address) as usize) {
            if let Some(word) = changed.get_mut(at / 64) {
                *word |= 1 << (at % 64);
            }
        }
    }
    let mut land = |next: usize, distance: i64| {
        let Some(at) = next.checked_add_signed(distance as isize) else { return };
        if changed.get(at / 64).is_some_and(|word| word >> (at % 64) & 1 != 0) {
            landed.insert(address + at as u64);
        }
    };
    let mut long = |at: usize| {
        if let Some([a, b, c, d]) = bytes.get(at..at + 4) {
            land(at + 4, i64::from(i32::from_le_bytes([*a, *b, *c, *d])));
        }
    };
    for at in memchr::memchr2_iter(0xe8, 0xe9, bytes) {
        long(at + 1);
    }
    for at in memchr::memchr_iter(0x0f, bytes) {
        if bytes.get(at + 1).is_some_and(|next| (0x80..0x90).contains(next)) {
            long(at + 2);
        }
    }
    // Short ones come from near by.
    for find in finds {
        let near = (find.start - address) as usize;
        for at in near.saturating_sub(130)..(near + find.len as usize + 128).min(bytes.len()) {
            if let [0xeb | 0x70..=0x7f | 0xe0..=0xe3, distance] = bytes[at..].get(..2).unwrap_or_default() {
                land(at + 2, i64::from(*distance as i8));
            }
        }
    }
    landed
}

/// Pads, one behind the other.
struct Pads {
    start: u64,
    bytes: Vec<u8>,
    room: usize,
}

impl Pads {
    fn here(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    fn has_room(&self, len: usize) -> bool {
        self.bytes.len() + len <= self.room
    }

    fn jump(&mut self, to: u64) {
        let bytes = jump(self.here(), to);
        self.bytes.extend(bytes);
    }

    /// `lea TO(%rip), %rcx`
    fn load_address(&mut self, to: u64) {
        let distance = to.wrapping_sub(self.here() + 7) as u32;
        self.bytes.extend([0x48, 0x8d, 0x0d]);
        self.bytes.extend(distance.to_le_bytes());
    }
}

/// A jump of five bytes. Both ends are in one piece of code, so it reaches.
fn jump(from: u64, to: u64) -> [u8; 5] {
    let [a, b, c, d] = (to.wrapping_sub(from + 5) as u32).to_le_bytes();
    [0xe9, a, b, c, d]
}

fn rewrite<'f>(elf: &Elf<'f>, bytes: &'f [u8], finds: &[Find]) -> Patched<'f> {
    let code = &elf.code;
    let whole = code.len.next_multiple_of(PAGE) as usize;
    // What a mapping shows behind the end: the file, or zeros behind its end.
    let rest = elf.file.get(code.offset as usize..).unwrap_or_default();
    let old = match rest.get(..whole) {
        Some(pages) => Cow::Borrowed(pages),
        None => {
            let mut old = [bytes, rest.get(bytes.len()..).unwrap_or_default()].concat();
            old.resize(whole, 0);
            Cow::Owned(old)
        }
    };
    let start = (code.address + code.len).next_multiple_of(16);
    let room = (code.address + whole as u64).saturating_sub(start) as usize;
    let mut pads = Pads { start, bytes: Vec::new(), room };
    let (mut changes, mut sites) = (Vec::new(), Vec::new());
    if pads.has_room(16) && !finds.is_empty() {
        // To the shim: movabs $BASE, %r11; jmp *%r11.
        let shim = pads.here();
        pads.bytes.extend([0x49, 0xbb]);
        pads.bytes.extend(shim::BASE.to_le_bytes());
        pads.bytes.extend([0x41, 0xff, 0xe3]);
        let mut numbers: Vec<(u32, u64)> = Vec::new();
        for find in finds {
            if !pads.has_room(64) {
                break;
            }
            let from = match find.number {
                Some(number) => {
                    let known = numbers.iter().find(|(known, _)| *known == number).map(|(_, at)| *at);
                    let say = known.unwrap_or_else(|| {
                        let at = pads.here();
                        pads.bytes.push(0xb8);
                        pads.bytes.extend(number.to_le_bytes());
                        pads.jump(shim);
                        numbers.push((number, at));
                        at
                    });
                    let from = pads.here();
                    pads.load_address(find.syscall);
                    pads.jump(say);
                    from
                }
                None => {
                    let from = pads.here();
                    pads.load_address(from + 12);
                    pads.jump(shim);
                    let at = (find.start - code.address) as usize;
                    pads.bytes.extend_from_slice(&old[at..at + find.len as usize]);
                    pads.jump(find.start + find.len);
                    from
                }
            };
            let at = (find.start - code.address) as usize;
            let mut new = jump(find.start, from).to_vec();
            // What is left of the second form is never run.
            new.resize(find.len as usize, 0xcc);
            changes.push(Change { address: find.start, old: old[at..at + find.len as usize].to_vec(), new });
            sites.push(Site { address: find.syscall, number: find.number });
        }
    }
    let at = (start - code.address) as usize;
    if !changes.is_empty() {
        let old = old[at..at + pads.bytes.len()].to_vec();
        changes.insert(0, Change { address: start, old, new: pads.bytes });
    }
    Patched { offset: code.offset, address: code.address, old, sites, changes }
}
