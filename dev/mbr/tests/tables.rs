//! Tables made by fdisk's family, broken ones, and boot sectors that are none.
//!
//! Needs `sfdisk`, `sgdisk`, `eatmydata` and `mkfs.vfat`, which work on files and want no root. In CI a missing one is a failure, elsewhere
//! a skip.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says by a panic what is wrong")]

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use veduta_api::{
    BlockDevice, Disk, Drive, Errno, Geometry, Module, Options, Partition, PartitionTable, Result, Value,
};
use veduta_mbr::{Mbr, PartitionedDisk, read_hybrid_table, read_table};

const MIB: usize = 1 << 20;

struct Memory(Mutex<Vec<u8>>);

impl BlockDevice for Memory {
    fn geometry(&self) -> Geometry {
        Geometry::of_size(self.0.lock().unwrap().len() as u64)
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        buf.copy_from_slice(&self.0.lock().unwrap()[offset as usize..][..buf.len()]);
        Ok(())
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.0.lock().unwrap()[offset as usize..][..buf.len()].copy_from_slice(buf);
        Ok(())
    }
}

fn disk(bytes: Vec<u8>) -> Disk {
    Disk::new(Arc::new(Memory(Mutex::new(bytes))), "disk.img")
}

fn table(bytes: &[u8]) -> PartitionTable {
    read_table(&disk(bytes.to_vec()), None).unwrap().expect("a table")
}

fn warnings(table: &PartitionTable) -> String {
    match table.report.find("warnings") {
        Some(Value::List(list)) => list.join("; "),
        _ => String::new(),
    }
}

/// Runs a program on a file of `size` zeros. `None`: it is not installed.
fn made_by(program: &[&str], input: &str, size: usize) -> Option<tempfile::NamedTempFile> {
    // sfdisk puts a "p" between a path that ends in a digit and the number of a partition.
    let file = tempfile::Builder::new().suffix(".img").tempfile().unwrap();
    file.as_file().set_len(size as u64).unwrap();
    // These programs end with sync(2), which waits for every disk of the machine; eatmydata leaves that out.
    let mut command = Command::new("eatmydata");
    command.args(program).arg(file.path()).stdin(Stdio::piped());
    let spawned = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let Ok(mut child) = spawned else {
        return missing("eatmydata");
    };
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let status = child.wait().unwrap();
    if status.code() == Some(127) {
        return missing(program[0]);
    }
    assert!(status.success(), "{program:?}");
    Some(file)
}

/// In CI a failure, elsewhere a skip.
fn missing<T>(program: &str) -> Option<T> {
    assert!(std::env::var_os("CI").is_none(), "{program} is not installed");
    eprintln!("skip - {program} is not installed");
    None
}

/// Number, first sector, sectors, type, name, uuid, bootable: as `sfdisk --dump` prints them.
type Row = (u32, u64, u64, String, String, String, bool);

fn dumped(file: &tempfile::NamedTempFile) -> Vec<Row> {
    let output = Command::new("sfdisk").arg("--dump").arg(file.path()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let prefix = file.path().to_str().unwrap();
    let parse = |line: &str| {
        let (number, fields) = line.strip_prefix(prefix)?.split_once(" : ")?;
        let field = |key: &str| {
            let found = fields.split(',').find_map(|field| field.trim().strip_prefix(key));
            found.map(|value| value.trim().trim_matches('"').to_owned())
        };
        Some((
            number.parse().ok()?,
            field("start=")?.parse().ok()?,
            field("size=")?.parse().ok()?,
            field("type=")?.to_ascii_uppercase(),
            field("name=").unwrap_or_default(),
            field("uuid=").unwrap_or_default().to_ascii_lowercase(),
            fields.split(',').any(|field| field.trim() == "bootable")
                || field("attrs=").is_some_and(|attrs| attrs.contains("LegacyBIOSBootable")),
        ))
    };
    text.lines().filter_map(parse).collect()
}

fn row(partition: &Partition) -> Row {
    let is_gpt = partition.kind.len() == 36;
    (
        partition.number,
        partition.offset / 512,
        partition.size / 512,
        if is_gpt {
            partition.kind.clone()
        } else {
            format!("{:X}", u8::from_str_radix(&partition.kind[2..], 16).unwrap())
        },
        partition.name.bytes().map(escaped).collect(),
        if is_gpt { partition.uuid.clone() } else { String::new() },
        partition.bootable,
    )
}

/// As sfdisk prints a byte of a name.
fn escaped(byte: u8) -> String {
    if byte.is_ascii() { char::from(byte).to_string() } else { format!("\\x{byte:02x}") }
}

const DOS: &str = "label: dos\nlabel-id: 0xcafe1234\n\
    start=2048, size=2048, type=83, bootable\nstart=4096, size=1024, type=82\n\
    start=8192, size=24576, type=f\nstart=34816, type=c\n\
    start=10240, size=2048, type=83\nstart=14336, size=4096, type=7\nstart=20480, size=2048, type=83\n";
const GPT: &str = "label: gpt\n\
    size=1MiB, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name=\"esp\"\n\
    size=2MiB, type=L, name=\"Wurzel ä 木\", attrs=LegacyBIOSBootable\nsize=1MiB, type=S\n";

#[test]
fn partitions_are_those_that_sfdisk_lists() {
    for (script, wanted) in [(DOS, 7), (GPT, 3)] {
        let Some(file) = made_by(&["sfdisk", "-q"], script, 20 * MIB) else { return };
        let table = table(&std::fs::read(file.path()).unwrap());
        let rows: Vec<Row> = table.partitions.iter().map(row).collect();
        assert_eq!(rows, dumped(&file));
        assert_eq!(rows.len(), wanted);
        assert_eq!(warnings(&table), "");
    }
}

#[test]
fn a_table_that_counts_in_4096_bytes_is_found_or_told() {
    let Some(file) = made_by(&["sfdisk", "-q"], GPT, 20 * MIB) else { return };
    let bytes = in_large_sectors(&std::fs::read(file.path()).unwrap());
    let (found, told) = (table(&bytes), read_table(&disk(bytes.clone()), Some(4096)).unwrap().unwrap());
    assert_eq!(found, told);
    assert_eq!(warnings(&found), "");
    let places: Vec<_> = found.partitions.iter().map(|one| (one.offset, one.size)).collect();
    let mib = MIB as u64;
    assert_eq!(places, [(mib, mib), (2 * mib, 2 * mib), (4 * mib, mib)]);
    assert_eq!(found.partitions[1].name, "Wurzel ä 木");
    assert!(read_table(&disk(bytes), Some(512)).unwrap_err().message.contains("512 bytes"));

    let mut bytes = vec![0; MIB];
    record(&mut bytes, 0, 0, (0x83, 16, 32));
    let told = read_table(&disk(bytes), Some(4096)).unwrap().unwrap();
    assert_eq!((told.partitions[0].offset, told.partitions[0].size), (65_536, 131_072));
}

#[test]
fn a_partition_is_named_typed_and_found_by_its_uuid() {
    let Some(file) = made_by(&["sfdisk", "-q"], DOS, 20 * MIB) else { return };
    let table = table(&std::fs::read(file.path()).unwrap());
    assert_eq!(table.scheme, "mbr");
    assert_eq!(table.report.find("disk_id"), Some(&"0xcafe1234".into()));
    let fifth = table.partitions.iter().find(|one| one.number == 5).unwrap();
    assert_eq!((&*fifth.uuid, &*fifth.kind, &*fifth.kind_name), ("cafe1234-05", "0x83", "Linux"));
}

#[test]
fn each_partition_is_a_disk_of_its_own() {
    let Some(file) = made_by(&["sfdisk", "-q"], GPT, 20 * MIB) else { return };
    let drive = PartitionedDisk::open(disk(std::fs::read(file.path()).unwrap()), None).unwrap();
    let second = drive.partition(2).unwrap();
    assert_eq!((second.name(), second.size()), ("disk.img#2", 2 * MIB as u64));
    second.write_at(b"here", 0).unwrap();
    assert_eq!(drive.whole().read_vec(2 * MIB as u64, 4).unwrap(), b"here");
    assert_eq!(drive.partition(9).unwrap_err(), Errno::ENXIO);
    drive.whole().write_zeroes(0, 20 * MIB as u64).unwrap();
    assert!(drive.partition(2).is_ok(), "the table stays until it is read again");
    drive.reread().unwrap();
    assert!(drive.table().is_none());
}

#[test]
fn a_broken_primary_table_is_replaced_by_its_backup_with_a_warning() {
    let Some(file) = made_by(&["sfdisk", "-q"], GPT, 20 * MIB) else { return };
    let good = std::fs::read(file.path()).unwrap();
    for (place, what) in [(512, "signature"), (600, "entry count"), (1024 + 40, "array")] {
        let mut bytes = good.clone();
        bytes[place] ^= 0xff;
        let table = table(&bytes);
        assert!(warnings(&table).contains("backup at its end was used"), "{what}: {}", warnings(&table));
        assert_eq!(table.partitions.len(), 3, "{what}");
    }
    let mut bytes = good.clone();
    bytes[600] ^= 0xff;
    bytes.truncate(10 * MIB);
    let error = read_table(&disk(bytes), None).unwrap_err();
    assert_eq!(error.errno, Errno::EUCLEAN);
    let mut bytes = good.clone();
    let end = bytes.len();
    bytes[end - 512] ^= 0xff;
    assert!(warnings(&table(&bytes)).contains("backup table at the end of the disk is missing or damaged"));
    let mut bytes = good;
    bytes[1024 + 40] ^= 0xff;
    bytes.resize(30 * MIB, 0);
    assert_eq!(table(&bytes).partitions.len(), 3, "the header of a grown disk knows where its backup is");
}

#[test]
fn a_hybrid_disk_is_read_by_its_gpt() {
    let program = ["sgdisk", "-n", "1:4096:+2M", "-n", "2:0:+1M", "-t", "2:8200", "--hybrid", "1"];
    let Some(file) = made_by(&program, "", 20 * MIB) else { return };
    let mut bytes = std::fs::read(file.path()).unwrap();
    let kinds: Vec<_> = table(&bytes).partitions.into_iter().map(|one| one.kind_name).collect();
    assert_eq!(kinds, ["Linux filesystem", "Linux swap"]);
    assert_eq!(table(&bytes).scheme, "gpt");
    assert!(warnings(&table(&bytes)).contains("hybrid"));
    bytes[512..].fill(0);
    assert_eq!(table(&bytes).partitions.len(), 1);
    assert!(warnings(&table(&bytes)).contains("its MBR was used"));
}

/// Writes record `index` of the boot sector at `sector`.
fn record(bytes: &mut [u8], sector: usize, index: usize, (kind, start, sectors): (u8, u32, u32)) {
    let at = sector * 512 + 446 + 16 * index;
    bytes[at + 4] = kind;
    bytes[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
    bytes[at + 12..at + 16].copy_from_slice(&sectors.to_le_bytes());
    bytes[sector * 512 + 510..sector * 512 + 512].copy_from_slice(&[0x55, 0xaa]);
}

/// A disk of 1 MiB: an extended partition from sector 100 on, and in it one link after the other, each `(at, next)`.
fn chain(links: &[(u32, u32)]) -> Vec<u8> {
    let mut bytes = vec![0; MIB];
    record(&mut bytes, 0, 0, (0x05, 100, 1900));
    for (at, next) in links {
        record(&mut bytes, 100 + *at as usize, 0, (0x83, 1, 5));
        if *next > 0 {
            record(&mut bytes, 100 + *at as usize, 1, (0x05, *next, 6));
        }
    }
    bytes
}

#[test]
fn a_chain_is_followed_to_its_end() {
    let table = table(&chain(&[(0, 10), (10, 30), (30, 0)]));
    let starts: Vec<_> = table.partitions.iter().map(|one| (one.number, one.offset / 512)).collect();
    assert_eq!(starts, [(1, 100), (5, 101), (6, 111), (7, 131)]);
    assert_eq!(warnings(&table), "");
}

#[test]
fn a_chain_that_loops_or_breaks_off_ends_with_a_warning() {
    for (links, found, warning) in [
        (chain(&[(0, 10), (10, 10)]), 3, "turns back"),
        (chain(&[(0, 10), (10, 5)]), 3, "turns back"),
        (chain(&[(0, 10), (10, 0x8000_0000)]), 3, "breaks off"),
        (chain(&[(0, 10)]), 2, "breaks off"),
    ] {
        let table = table(&links);
        assert_eq!(table.partitions.len(), found, "{warning}");
        assert!(warnings(&table).contains(warning), "{}", warnings(&table));
    }
    let long: Vec<_> = (0..1500).map(|at| (at, at + 1)).collect();
    assert!(warnings(&table(&chain(&long))).contains("only the first 256"));
}

#[test]
fn an_extended_partition_that_was_never_filled_is_empty() {
    assert_eq!(warnings(&table(&chain(&[]))), "");
    assert_eq!(table(&chain(&[])).partitions.len(), 1);
}

#[test]
fn a_partition_that_leaves_the_disk_is_listed_and_cut() {
    let mut bytes = vec![0; MIB];
    record(&mut bytes, 0, 0, (0x83, 100, 5000));
    record(&mut bytes, 0, 1, (0x83, 6000, 100));
    let drive = PartitionedDisk::open(disk(bytes), None).unwrap();
    let warnings = warnings(&drive.table().unwrap());
    assert!(warnings.contains("1 is cut off") && warnings.contains("2 starts behind"), "{warnings}");
    assert_eq!(drive.partition(1).unwrap().size(), (2048 - 100) * 512);
    assert_eq!(drive.partition(2).unwrap_err(), Errno::ENXIO);
}

#[test]
fn a_fat_volume_is_no_table_even_with_the_record_that_mkfs_writes() {
    for mbr in ["no", "yes"] {
        let program = ["mkfs.vfat", &format!("--mbr={mbr}")];
        let Some(file) = made_by(&program, "", 4 * MIB) else { return };
        let disk = disk(std::fs::read(file.path()).unwrap());
        assert_eq!(read_table(&disk, None), Ok(None), "--mbr={mbr}");
        assert_eq!(Mbr.probe(&disk), Ok(false));
    }
}

#[test]
fn a_stick_that_was_partitioned_over_a_fat_has_a_table() {
    let Some(file) = made_by(&["mkfs.vfat", "--mbr=no"], "", 4 * MIB) else { return };
    let mut bytes = std::fs::read(file.path()).unwrap();
    record(&mut bytes, 0, 0, (0x83, 2048, 2048));
    bytes[446] = 0;
    assert_eq!(table(&bytes).partitions.len(), 1);
}

#[test]
fn text_where_the_records_would_be_is_no_table() {
    let mut bytes = vec![0; MIB];
    bytes[430..505].copy_from_slice(&b"Press a key to boot from another disk. "[..].repeat(2)[..75]);
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    assert_eq!(read_table(&disk(bytes), None), Ok(None));
}

#[test]
fn an_iso_image_with_a_table_in_front_is_a_filesystem_unless_asked_for_its_table() {
    let mut bytes = vec![0; MIB];
    record(&mut bytes, 0, 0, (0x17, 0, 2048));
    record(&mut bytes, 0, 1, (0xef, 164, 100));
    bytes[32_769..32_774].copy_from_slice(b"CD001");
    let disk = disk(bytes);
    assert_eq!(read_table(&disk, None), Ok(None));
    assert_eq!(Mbr.probe(&disk), Ok(false));
    assert_eq!(read_hybrid_table(&disk, None).unwrap().unwrap().partitions.len(), 2);
}

#[test]
fn a_disk_too_short_for_a_boot_sector_has_no_table() {
    for len in [0, 1, 511] {
        assert_eq!(read_table(&disk(vec![0x55; len]), None), Ok(None));
    }
}

#[test]
fn a_description_lists_what_the_table_says() {
    let report = Mbr.describe(&disk(chain(&[(0, 0)])), Options::default()).unwrap();
    let Some(Value::Table(partitions)) = report.find("partitions") else { panic!("{report:?}") };
    assert_eq!(partitions[1].find("number"), Some(&Value::Number(5)));
    assert_eq!(partitions[1].find("type_name"), Some(&"Linux".into()));
    let sector = Options::parse("sector=513").unwrap();
    assert!(Mbr.describe(&disk(chain(&[])), sector).unwrap_err().message.contains("sector=513"));
}

/// Bytes changed at random in the places that matter, with checksums made right again half of the time: whatever
/// comes out, it ends, and each partition that it lists is inside the disk or refused.
#[test]
fn no_change_of_a_table_makes_the_reader_fail_otherwise_than_by_saying_so() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    println!("SEED={seed}");
    let mut random = Random(seed);
    let mut bases = vec![(chain(&[(0, 10), (10, 30), (30, 0)]), vec![0, 100, 110, 130])];
    for script in [DOS, GPT] {
        let Some(file) = made_by(&["sfdisk", "-q"], script, 18 * MIB) else { return };
        let bytes = std::fs::read(file.path()).unwrap();
        let last = bytes.len() / 512 - 1;
        bases.push((bytes, vec![0, 1, 2, 8192, 13312, last, last - 32]));
    }
    for (base, places) in bases {
        let memory = Arc::new(Memory(Mutex::new(base.clone())));
        let disk = Disk::new(Arc::clone(&memory) as Arc<dyn BlockDevice>, "hostile");
        for _ in 0..800 {
            for _ in 0..1 + random.below(6) {
                let place = places[random.below(places.len())] * 512;
                let at =
                    place + if random.below(2) == 0 { random.below(128) } else { 440 + random.below(72) };
                let value = [0, 0xff, 0x80, 1, 0x05, random.below(256) as u8][random.below(6)];
                memory.0.lock().unwrap()[at] = value;
            }
            if random.below(2) == 0 {
                repair(&mut memory.0.lock().unwrap(), 512, 512);
            }
            if let Ok(drive) =
                PartitionedDisk::open(disk.clone(), [None, Some(512), Some(4096)][random.below(3)])
            {
                for partition in drive.table().iter().flat_map(|table| &table.partitions) {
                    if let Ok(slice) = drive.partition(partition.number) {
                        assert!(slice.size() <= disk.size());
                    }
                }
            }
            let mut bytes = memory.0.lock().unwrap();
            for place in &places {
                bytes[place * 512..][..512].copy_from_slice(&base[place * 512..][..512]);
            }
        }
    }
}

/// The same partitions in a table that counts in 4096 bytes: sfdisk makes such only on a device that has them.
fn in_large_sectors(small: &[u8]) -> Vec<u8> {
    let mut bytes = small.to_vec();
    bytes[512..MIB].fill(0);
    let last = bytes.len() - 4096;
    bytes[last - 16_384..].fill(0);
    let mut array = small[1024..1024 + 16_384].to_vec();
    for at in (0..3).flat_map(|entry| [entry * 128 + 32, entry * 128 + 40]) {
        let small = u64::from_le_bytes(array[at..at + 8].try_into().unwrap());
        array[at..at + 8].copy_from_slice(&(small / 8).to_le_bytes());
    }
    let end = last as u64 / 4096;
    for (place, alternate, array_at) in [(1, end, 2), (end, 1, end - 4)] {
        let at = place as usize * 4096;
        bytes[at..at + 92].copy_from_slice(&small[512..604]);
        for (field, value) in [(24, place), (32, alternate), (40, 6), (48, end - 5), (72, array_at)] {
            bytes[at + field..at + field + 8].copy_from_slice(&value.to_le_bytes());
        }
        bytes[array_at as usize * 4096..][..16_384].copy_from_slice(&array);
        repair(&mut bytes, at, 4096);
    }
    bytes
}

/// Makes the checksums of the GPT header at `at`, and of the array that it names, right.
fn repair(bytes: &mut [u8], at: usize, sector: usize) {
    let u32_at = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let len = (u32_at(bytes, at + 12) as usize).min(512);
    let array = u64::from(u32_at(bytes, at + 72)) as usize * sector;
    let array_len = (u32_at(bytes, at + 80) as usize).saturating_mul(u32_at(bytes, at + 84) as usize);
    if let Some(array) = bytes.get(array..array.saturating_add(array_len)) {
        let crc = crc32(array);
        bytes[at + 88..at + 92].copy_from_slice(&crc.to_le_bytes());
    }
    bytes[at + 16..at + 20].fill(0);
    let crc = crc32(&bytes[at..at + len]);
    bytes[at + 16..at + 20].copy_from_slice(&crc.to_le_bytes());
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

/// xorshift64
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

/// Whichever of the two tables is broken is made anew from the other; sgdisk has no complaint then.
#[test]
fn a_broken_table_of_a_gpt_is_repaired_on_request() {
    let program = ["sgdisk", "-n", "1:2048:+2M", "-n", "2:0:+1M"];
    let Some(file) = made_by(&program, "", 16 * MIB) else { return };
    let good = std::fs::read(file.path()).unwrap();
    let last = good.len() - 512;
    let breaks: [(&str, std::ops::Range<usize>); 4] = [
        ("primary header", 512..1024),
        ("primary array", 1024..1100),
        ("backup header", last..last + 512),
        ("backup array", last - 512 * 32..last - 512 * 31),
    ];
    for (what, range) in breaks {
        let mut bytes = good.clone();
        bytes[range].fill(0);
        let disk = disk(bytes);
        assert!(veduta_mbr::repair_gpt(&disk, None).unwrap().is_some(), "{what}");
        assert_eq!(veduta_mbr::repair_gpt(&disk, None).unwrap(), None, "{what}: once is enough");
        let repaired = disk.read_vec(0, good.len()).unwrap();
        assert!(repaired == good, "{what}: the same bytes as before");
        assert_eq!(warnings(&table(&repaired)), "", "{what}");
    }
    // A disk that grew: the backup stays where the primary says it is.
    let mut grown = good.clone();
    grown[last..].fill(0);
    grown.resize(20 * MIB, 0);
    let disk = disk(grown);
    assert!(veduta_mbr::repair_gpt(&disk, None).unwrap().is_some());
    assert_eq!(warnings(&table(&disk.read_vec(0, 20 * MIB).unwrap())), "");
    let mut none = good;
    none[512..1024].fill(0);
    none[last..].fill(0);
    let message = veduta_mbr::repair_gpt(&self::disk(none), None).unwrap_err().message;
    assert!(message.contains("neither"), "{message}");
}

/// As parted shows it.
#[test]
fn an_apple_partition_map_is_read() {
    let Some(file) = made_by(&["true"], "", 16 * MIB) else { return };
    let path = file.path().to_str().unwrap();
    let words = ["parted", "-s", path, "mklabel", "mac", "mkpart", "one", "hfs+", "2048s", "10000s"];
    if !Command::new("eatmydata").args(words).stderr(Stdio::null()).status().unwrap().success() {
        return missing("parted").unwrap_or(());
    }
    let printed = Command::new("parted").args(["-s", "-m", path, "unit", "s", "print"]).output().unwrap();
    let printed = String::from_utf8(printed.stdout).unwrap();
    let rows: Vec<Vec<&str>> = printed.lines().skip(2).map(|line| line.split(':').collect()).collect();
    assert!(rows.len() >= 2, "{printed}");
    let table = table(&std::fs::read(path).unwrap());
    assert_eq!(table.scheme, "apm");
    for row in rows {
        let number: u32 = row[0].parse().unwrap();
        let found = table.partitions.iter().find(|partition| partition.number == number).unwrap();
        let sectors = |text: &str| text.trim_end_matches('s').parse::<u64>().unwrap();
        assert_eq!((found.offset / 512, found.size / 512), (sectors(row[1]), sectors(row[3])), "{row:?}");
    }
}

/// A label as FreeBSD writes it: starts count from the partition that holds it.
#[test]
fn a_bsd_label_in_a_partition_adds_its_own() {
    let mut bytes = vec![0; 16 * MIB];
    record(&mut bytes, 0, 0, (0xa5, 2048, 20_000));
    let label = 2049 * 512;
    for at in [0, 132] {
        bytes[label + at..label + at + 4].copy_from_slice(&0x8256_4557_u32.to_le_bytes());
    }
    bytes[label + 138] = 4;
    for (index, (sectors, start, kind)) in
        [(4000_u32, 16_u32, 7_u8), (1000, 5000, 1), (20_000, 0, 0), (900_000, 7000, 7)]
            .into_iter()
            .enumerate()
    {
        let at = label + 148 + index * 16;
        bytes[at..at + 4].copy_from_slice(&sectors.to_le_bytes());
        bytes[at + 4..at + 8].copy_from_slice(&start.to_le_bytes());
        bytes[at + 12] = kind;
    }
    let table = table(&bytes);
    let rows: Vec<(u32, u64, &str)> =
        table.partitions.iter().map(|one| (one.number, one.offset / 512, &*one.kind_name)).collect();
    assert_eq!(rows, [(1, 2048, "FreeBSD"), (5, 2064, "BSD UFS"), (6, 5000, "BSD swap")]);
    assert!(warnings(&table).contains("leaves it"), "{}", warnings(&table));
}

/// Written to, such a disk would destroy what another partition holds.
#[test]
fn a_table_that_contradicts_itself_is_mounted_to_read_only() {
    struct One(Disk);
    impl veduta_api::World for One {
        fn disk(&self, _: &std::ffi::OsStr, _: bool) -> std::result::Result<Disk, veduta_api::MountError> {
            Ok(self.0.clone())
        }
        fn tree(
            &self,
            _: &std::ffi::OsStr,
        ) -> std::result::Result<(Arc<dyn veduta_api::Filesystem>, veduta_api::Ino), veduta_api::MountError>
        {
            Err(veduta_api::MountError::usage("no tree"))
        }
        fn link(
            &self,
            _: &std::ffi::OsStr,
        ) -> std::result::Result<Arc<dyn veduta_api::Link>, veduta_api::MountError> {
            Err(veduta_api::MountError::usage("no link"))
        }
    }
    let mut overlapping = vec![0; 4 * MIB];
    record(&mut overlapping, 0, 0, (0x83, 64, 1000));
    record(&mut overlapping, 0, 1, (0x83, 1000, 1000));
    for (bytes, words) in
        [(overlapping, "partitions 1 and 2 overlap"), (chain(&[(0, 10), (10, 10)]), "turns back")]
    {
        let world = One(disk(bytes));
        let mount = |read_only| {
            let source = std::ffi::OsStr::new("disk.img");
            Mbr.mount(&mut veduta_api::Request {
                source,
                options: Options::default(),
                read_only,
                world: &world,
            })
        };
        assert!(mount(true).is_ok());
        let error = mount(false).unwrap_err();
        assert!(error.message.contains(words), "{error}");
    }
}
