//! A fuzzer that needs nothing but a stable compiler: mutates seeds and runs a target on them.
//!
//! `mutate TARGET [--seconds N] [--seed N] [FILE.zst...]`: without files, those of `tests/fuzz/seeds/TARGET`. Prints its seed; a run
//! with the same seed does the same. For fuzzing led by coverage, see `just fuzz`.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Bytes; a seed that unpacks to more is a mistake.
const SEED_MAX: usize = 16 << 20;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("mutate: {message}");
            ExitCode::FAILURE
        }
    }
}

/// The folder of a target's seeds.
fn seeds_of(target: &str) -> &str {
    target.strip_suffix("-write").unwrap_or(target)
}

struct Args {
    target: String,
    seconds: u64,
    seed: u64,
    files: Vec<PathBuf>,
}

fn parse() -> Result<Args, String> {
    let mut words = std::env::args().skip(1);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let mut args =
        Args { target: String::new(), seconds: 10, seed: now.as_nanos() as u64, files: Vec::new() };
    while let Some(word) = words.next() {
        let mut number = || {
            words.next().and_then(|value| value.parse().ok()).ok_or_else(|| format!("{word} wants a number"))
        };
        match word.as_str() {
            "--seconds" => args.seconds = number()?,
            "--seed" => args.seed = number()?,
            _ if word.starts_with('-') => return Err(format!("unknown option {word}")),
            _ if args.target.is_empty() => args.target = word,
            _ => args.files.push(word.into()),
        }
    }
    if !veduta_tests::TARGETS.contains(&args.target.as_str()) {
        return Err(format!("name a target: {}", veduta_tests::TARGETS.join(", ")));
    }
    if args.files.is_empty() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(seeds_of(&args.target));
        let entries = std::fs::read_dir(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        args.files = entries.flatten().map(|entry| entry.path()).collect();
        args.files.sort();
    }
    Ok(args)
}

fn run() -> Result<(), String> {
    let args = parse()?;
    let mut seeds = Vec::new();
    for file in &args.files {
        let failed = |error: std::io::Error| format!("{}: {error}", file.display());
        let packed = std::fs::read(file).map_err(failed)?;
        let bytes = zstd::bulk::decompress(&packed, SEED_MAX).map_err(failed)?;
        let seen = veduta_tests::target(&args.target, &bytes);
        let intact = seen.is_some_and(|seen| seen.nodes > 0 && seen.errors == 0);
        if !intact {
            return Err(format!("{}: not a sound seed: {seen:?}", file.display()));
        }
        seeds.push((file.display().to_string(), bytes));
    }
    if seeds.is_empty() {
        return Err("there are no seeds".into());
    }
    println!("mutate {}: seed {}, {} seeds", args.target, args.seed, seeds.len());
    let mut random = Random(args.seed);
    let deadline = Instant::now() + Duration::from_secs(args.seconds);
    let (mut runs, mut mounted, mut slowest) = (0_u64, 0_u64, Duration::ZERO);
    while Instant::now() < deadline {
        let (name, seed) = &seeds[random.below(seeds.len())];
        let mut bytes = seed.clone();
        let story = mutate(&mut bytes, &mut random);
        let start = Instant::now();
        let outcome = std::panic::catch_unwind(|| veduta_tests::target(&args.target, &bytes));
        let took = start.elapsed();
        slowest = slowest.max(took);
        runs += 1;
        match outcome {
            Ok(seen) => mounted += u64::from(seen.is_some()),
            Err(_) => return Err(keep(&args, runs, name, &story, &bytes, "panicked")),
        }
        if took > Duration::from_secs(20) {
            return Err(keep(&args, runs, name, &story, &bytes, "took over 20 seconds"));
        }
    }
    println!("mutate {}: {runs} runs, {mounted} mounted, slowest {} ms", args.target, slowest.as_millis());
    Ok(())
}

/// Keeps the bytes that did it, and tells the story.
fn keep(args: &Args, run: u64, name: &str, story: &[String], bytes: &[u8], what: &str) -> String {
    let path = std::env::temp_dir().join(format!("veduta-{}-{}-{run}.img", args.target, args.seed));
    let kept = match std::fs::write(&path, bytes) {
        Ok(()) => path.display().to_string(),
        Err(error) => format!("not kept: {error}"),
    };
    format!("run {run} of seed {} {what}: {name} with {}; bytes: {kept}", args.seed, story.join(", "))
}

/// Does one to eight things to the bytes, most of them where there is something already.
fn mutate(bytes: &mut Vec<u8>, random: &mut Random) -> Vec<String> {
    let mut story = Vec::new();
    for _ in 0..1 + random.below(8) {
        if bytes.len() < 16 {
            break;
        }
        let at = interesting(bytes, random);
        match random.below(9) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 | 3 => {
                const VALUES: [u64; 9] =
                    [0, 1, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, u64::MAX];
                let width = 1 << random.below(4);
                let value = VALUES[random.below(VALUES.len())].to_le_bytes();
                let end = (at + width).min(bytes.len());
                bytes[at..end].copy_from_slice(&value[..end - at]);
            }
            4 => {
                let end = (at + 4).min(bytes.len());
                let step = random.below(33) as u8;
                for byte in &mut bytes[at..end] {
                    *byte = byte.wrapping_add(step);
                }
            }
            5 => {
                let from = interesting(bytes, random);
                let len = (1 << random.below(11)).min(bytes.len() - at.max(from));
                bytes.copy_within(from..from + len, at);
            }
            6 => {
                let end = (at + (1 << random.below(10))).min(bytes.len());
                bytes[at..end].fill(0);
            }
            7 => {
                let end = (at + (1 << random.below(6))).min(bytes.len());
                bytes[at..end].fill_with(|| random.next() as u8);
            }
            _ if random.below(20) == 0 => bytes.truncate(at.max(16)),
            _ => bytes[at] = bytes[at].wrapping_add(1),
        }
        story.push(format!("@{at:#x}"));
    }
    story
}

/// An offset, mostly one whose byte is not zero: an image is mostly empty.
fn interesting(bytes: &[u8], random: &mut Random) -> usize {
    let mut at = random.below(bytes.len());
    for _ in 0..64 {
        if bytes[at] != 0 || random.below(16) == 0 {
            break;
        }
        at = random.below(bytes.len());
    }
    at
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, seeded, good enough to choose bytes.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}
