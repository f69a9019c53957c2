//! Block devices as programs use them: the ioctls, and partitions that come and go.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says by a panic what is wrong")]

use std::sync::{Arc, Mutex};

use veduta_api::{Allocate, BlockDevice, Disk, Errno, File, Geometry, Ioctl, OpenFlags, Result, Seek};
use veduta_disk::{BlockDrive, BlockFile, WHOLE, ioctl_shape};
use veduta_mbr::PartitionedDisk;

const SECTOR: usize = 512;
const SIZE: usize = 64 << 20;

struct Memory(Mutex<Vec<u8>>);

impl BlockDevice for Memory {
    fn geometry(&self) -> Geometry {
        Geometry { physical_sector: 4096, optimal_io: 65536, ..Geometry::of_size(SIZE as u64) }
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

/// An MBR with these partitions: first sector and sectors.
fn table(partitions: &[(u32, u32)]) -> Vec<u8> {
    let mut sector = vec![0; SECTOR];
    for (at, (start, sectors)) in (446..).step_by(16).zip(partitions) {
        sector[at + 4] = 0x83;
        sector[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
        sector[at + 12..at + 16].copy_from_slice(&sectors.to_le_bytes());
    }
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

fn drive(partitions: &[(u32, u32)], follow: bool) -> Arc<BlockDrive> {
    let mut bytes = table(partitions);
    bytes.resize(SIZE, 0);
    let disk = Disk::new(Arc::new(Memory(Mutex::new(bytes))), "hda");
    BlockDrive::new(Arc::new(PartitionedDisk::open(disk, None).unwrap()), follow)
}

/// As a host calls it: with as many bytes as the request's shape says.
fn call(file: &BlockFile, command: u32, argument: u64, input: &[u8]) -> Result<Vec<u8>> {
    let shape = ioctl_shape(command).unwrap_or_default();
    let mut output = vec![0; shape.output];
    assert_eq!(input.len(), shape.input + shape.follow.map_or(0, |(_, len)| len), "{command:#x}");
    file.ioctl(&mut Ioctl { command, argument, input, output: &mut output })?;
    Ok(output)
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn two(a: u64, b: u64) -> Vec<u8> {
    [a.to_ne_bytes(), b.to_ne_bytes()].concat()
}

#[test]
fn a_device_answers_the_questions_of_fdisk_and_mke2fs() {
    let drive = drive(&[(2049, 2048), (8192, 16384)], false);
    let whole = drive.open(WHOLE, OpenFlags::READ_WRITE).unwrap();
    let part = drive.open(1, OpenFlags::READ).unwrap();
    for (command, of_whole, of_part) in [
        (0x1260, SIZE as u64 / 512, 2048),      // BLKGETSIZE
        (0x8008_1272, SIZE as u64, 2048 * 512), // BLKGETSIZE64
        (0x1268, 512, 512),                     // BLKSSZGET
        (0x127b, 4096, 4096),                   // BLKPBSZGET
        (0x1278, 4096, 4096),                   // BLKIOMIN
        (0x1279, 65536, 65536),                 // BLKIOOPT
        (0x127a, 0, 3584),                      // BLKALIGNOFF: sector 2049 is 512 bytes past a boundary
        (0x125e, 0, 0),                         // BLKROGET
        (0x1263, 256, 256),                     // BLKRAGET
        (0x8008_1270, 4096, 4096),              // BLKBSZGET
        (0x127c, 0, 0),                         // BLKDISCARDZEROES
        (0x127e, 0, 0),                         // BLKROTATIONAL
    ] {
        assert_eq!(number(&call(&whole, command, 0, &[]).unwrap()), of_whole, "{command:#x}");
        assert_eq!(number(&call(&part, command, 0, &[]).unwrap()), of_part, "{command:#x}");
    }
    let shape = call(&part, 0x0301, 0, &[]).unwrap();
    assert_eq!((shape[0], shape[1], number(&shape[8..])), (16, 16, 2049));
    assert!(number(&call(&whole, 0x8008_1280, 0, &[]).unwrap()) > 0);
    for unknown in [0x5331, 0x5401, 0x1234_5678] {
        assert_eq!(call(&whole, unknown, 0, &[]), Err(Errno::ENOTTY), "{unknown:#x}");
    }
}

#[test]
fn what_is_set_is_kept_and_obeyed() {
    let drive = drive(&[(2048, 2048)], false);
    let part = drive.open(1, OpenFlags::READ_WRITE).unwrap();
    call(&part, 0x1262, 1024, &[]).unwrap();
    assert_eq!(number(&call(&part, 0x1263, 0, &[]).unwrap()), 1024);
    call(&part, 0x4008_1271, 0, &1024_u64.to_ne_bytes()).unwrap();
    assert_eq!(number(&call(&part, 0x8008_1270, 0, &[]).unwrap()), 1024);
    assert_eq!(call(&part, 0x4008_1271, 0, &1000_u64.to_ne_bytes()), Err(Errno::EINVAL));
    call(&part, 0x125d, 0, &1_u32.to_ne_bytes()).unwrap();
    assert_eq!(part.write_at(&[1], 0), Err(Errno::EPERM));
    assert_eq!(drive.open(1, OpenFlags::READ_WRITE).err(), Some(Errno::EACCES));
    assert!(drive.open(WHOLE, OpenFlags::READ_WRITE).is_ok());
    call(&part, 0x125d, 0, &0_u32.to_ne_bytes()).unwrap();
    assert_eq!(part.write_at(&[1], 0), Ok(1));
}

#[test]
fn ranges_are_zeroed_in_whole_sectors_by_those_who_may_write() {
    let drive = drive(&[(2048, 2048)], false);
    let part = drive.open(1, OpenFlags::READ_WRITE).unwrap();
    part.write_at(&[7; 4096], 0).unwrap();
    call(&part, 0x127f, 0, &two(512, 1024)).unwrap();
    let mut buf = [0; 2048];
    part.read_at(&mut buf, 0).unwrap();
    assert!(buf[..512].iter().all(|b| *b == 7) && buf[512..1536].iter().all(|b| *b == 0) && buf[1536] == 7);
    for wrong in [two(1, 512), two(0, 100), two(0, 0), two(2048 * 512, 512), two(u64::MAX - 511, 512)] {
        assert_eq!(call(&part, 0x127f, 0, &wrong), Err(Errno::EINVAL));
    }
    assert_eq!(call(&part, 0x1277, 0, &two(0, 512)), Err(Errno::EOPNOTSUPP), "this device cannot discard");
    let reader = drive.open(1, OpenFlags::READ).unwrap();
    assert_eq!(call(&reader, 0x127f, 0, &two(0, 512)), Err(Errno::EBADF));
}

#[test]
fn the_ends_are_those_of_a_block_device() {
    let drive = drive(&[(2048, 8)], false);
    let part = drive.open(1, OpenFlags::READ_WRITE).unwrap();
    assert_eq!(part.write_at(&[1; 1000], 4000), Ok(96));
    assert_eq!(part.write_at(&[1; 10], 4096), Err(Errno::ENOSPC));
    assert_eq!(part.read_at(&mut [0; 1000], 4000), Ok(96));
    assert_eq!(part.read_at(&mut [0; 10], 5000), Ok(0));
    assert_eq!(part.seek(Seek::Hole, 0), Ok(4096));
    assert_eq!(part.seek(Seek::Data, 4096), Err(Errno::ENXIO));
    part.allocate(Allocate::PunchHole, 0, 4096).unwrap();
    let mut buf = [1; 4096];
    part.read_at(&mut buf, 0).unwrap();
    assert_eq!(buf, [0; 4096]);
    assert_eq!(part.allocate(Allocate::Extend, 0, 512), Err(Errno::EOPNOTSUPP));
    assert_eq!(drive.open(2, OpenFlags::READ).err(), Some(Errno::ENXIO));
}

#[test]
fn the_table_is_not_read_again_while_a_partition_is_in_use() {
    let drive = drive(&[(2048, 2048)], false);
    let whole = drive.open(WHOLE, OpenFlags::READ_WRITE).unwrap();
    let part = drive.open(1, OpenFlags::READ).unwrap();
    whole.write_at(&table(&[(4096, 1024), (8192, 1024)]), 0).unwrap();
    assert_eq!(call(&whole, 0x125f, 0, &[]), Err(Errno::EBUSY));
    drop(part);
    let mount = drive.hold(1).unwrap();
    assert_eq!(call(&whole, 0x125f, 0, &[]), Err(Errno::EBUSY));
    drop(mount);
    assert_eq!(drive.numbers(), [1], "nothing follows by itself where nobody asked for that");
    call(&whole, 0x125f, 0, &[]).unwrap();
    assert_eq!(drive.numbers(), [1, 2]);
    assert_eq!(drive.disk(1).unwrap().size(), 1024 * 512);
}

#[test]
fn partitions_follow_a_close_where_that_was_asked_for() {
    let drive = drive(&[(2048, 2048)], true);
    let whole = drive.open(WHOLE, OpenFlags::READ_WRITE).unwrap();
    whole.write_at(&table(&[(4096, 1024), (8192, 1024)]), 0).unwrap();
    let part = drive.open(1, OpenFlags::READ).unwrap();
    whole.flush().unwrap();
    assert_eq!(drive.numbers(), [1], "one is open");
    drop(part);
    assert_eq!(drive.numbers(), [1, 2]);
}

#[test]
fn parted_adds_deletes_and_resizes_one_by_one() {
    let drive = drive(&[(2048, 2048), (8192, 1024)], false);
    let whole = drive.open(WHOLE, OpenFlags::READ_WRITE).unwrap();
    let blkpg = |operation: u32, number: u32, start: u64, len: u64| {
        let mut input = vec![0; 24 + 152];
        input[..4].copy_from_slice(&operation.to_ne_bytes());
        input[24..32].copy_from_slice(&start.to_ne_bytes());
        input[32..40].copy_from_slice(&len.to_ne_bytes());
        input[40..44].copy_from_slice(&number.to_ne_bytes());
        call(&whole, 0x1269, 0, &input).map(drop)
    };
    assert_eq!(blkpg(1, 3, 1 << 24, 1 << 20), Ok(()));
    assert_eq!(drive.numbers(), [1, 2, 3]);
    assert_eq!(blkpg(1, 3, 1 << 25, 1 << 20), Err(Errno::EBUSY), "the number is taken");
    assert_eq!(blkpg(1, 4, (1 << 24) + 512, 512), Err(Errno::EBUSY), "the place is taken");
    assert_eq!(blkpg(1, 4, SIZE as u64, 512), Err(Errno::EINVAL));
    let part = drive.open(2, OpenFlags::READ).unwrap();
    assert_eq!(blkpg(2, 2, 0, 0), Err(Errno::EBUSY));
    assert_eq!(blkpg(3, 2, 8192 * 512, 2048 * 512), Ok(()));
    drop(part);
    assert_eq!(drive.disk(2).unwrap().size(), 2048 * 512);
    assert_eq!(blkpg(2, 2, 0, 0), Ok(()));
    assert_eq!(blkpg(2, 2, 0, 0), Err(Errno::ENXIO));
    assert_eq!(drive.numbers(), [1, 3]);
}
