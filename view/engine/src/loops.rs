//! Loop devices of the view: `/dev/loop-control` and `/dev/loop0`... as `loop(4)` has them, since mount(8) and losetup(8) insist on
//! them for image files. A loop device is a disk whose image was chosen by `ioctl(2)`.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use nix::errno::Errno;
use parking_lot::Mutex;
use veduta_api::{
    Allocate, Attr, Device, DirSink, Disk, Entry, Facts, File, Filesystem, Ino, Ioctl, Kind, OpenFlags,
    Options, Perm, Result, Seek, Timestamp, World,
};
use veduta_disk::{BlockDrive, BlockFile, WHOLE};

use crate::call::{Answer, Call, DONE, Outcome};
use crate::mounts::{Mount, Service, shown};
use crate::standin::StandIn;
use crate::view::View;
use crate::walk::{Place, Start};
use crate::world::ViewWorld;

const SET_FD: u32 = 0x4c00;
const CLEAR_FD: u32 = 0x4c01;
const SET_OLD_STATUS: u32 = 0x4c02;
const GET_OLD_STATUS: u32 = 0x4c03;
const SET_STATUS: u32 = 0x4c04;
const GET_STATUS: u32 = 0x4c05;
const SET_CAPACITY: u32 = 0x4c07;
const SET_DIRECT_IO: u32 = 0x4c08;
const SET_BLOCK_SIZE: u32 = 0x4c09;
const CONFIGURE: u32 = 0x4c0a;
const ADD: u32 = 0x4c80;
const REMOVE: u32 = 0x4c81;
const GET_FREE: u32 = 0x4c82;

/// Bytes of `struct loop_info64`, and where its fields are.
const INFO: usize = 232;
const OFFSET: usize = 24;
const SIZE_LIMIT: usize = 32;
const NUMBER: usize = 40;
const FLAGS: usize = 52;
const FILE_NAME: usize = 56;
/// `struct loop_info`, whose numbers of devices are as wide as those of the architecture were.
const OLD_INFO: usize = if cfg!(target_arch = "x86_64") { 168 } else { 160 };
const OLD_OFFSET: usize = if cfg!(target_arch = "x86_64") { 32 } else { 20 };
const OLD_FLAGS: usize = OLD_OFFSET + 12;
const OLD_NAME: usize = OLD_OFFSET + 16;

const READ_ONLY: u32 = 1;
const AUTO_CLEAR: u32 = 4;

/// The major number of loop devices, and that of `/dev/loop-control`'s.
const MAJOR: u32 = 7;
const FIRST_MINOR: u32 = 0x8_0000;
const CONTROL: Ino = Ino(2);
const FIRST: u64 = 16;
/// Devices of a view at most.
const MOST: u32 = 256;

/// All loop devices of a view, as a tree that is never listed.
pub(crate) struct Loops {
    devices: Arc<Devices>,
    time: Timestamp,
}

/// The devices that there are, by number.
#[derive(Default)]
struct Devices(Mutex<BTreeMap<u32, Slot>>);

/// A device.
#[derive(Default)]
enum Slot {
    /// Without an image.
    #[default]
    Free,
    /// Without one since its mount ended. To ask it once more to let go of it is no error: umount(8) does.
    Released,
    /// With one.
    Used(Loop),
}

struct Loop {
    disk: Disk,
    /// What the device was told, as it tells it.
    info: Vec<u8>,
}

impl Slot {
    fn image(&self) -> Result<&Loop> {
        match self {
            Slot::Used(image) => Ok(image),
            _ => Err(Errno::ENXIO),
        }
    }
}

impl Devices {
    /// See [`Loops::disk`].
    fn disk(&self, ino: Ino) -> Result<Disk> {
        let number = Loops::number(ino).ok_or(Errno::ENOTBLK)?;
        Ok(self.0.lock().get(&number).ok_or(Errno::ENXIO)?.image()?.disk.clone())
    }
}

impl Loops {
    fn number(ino: Ino) -> Option<u32> {
        ino.0.checked_sub(FIRST).and_then(|number| u32::try_from(number).ok())
    }

    /// The disk that a device shows. `ENXIO` if it has none.
    pub(crate) fn disk(&self, ino: Ino) -> Result<Disk> {
        self.devices.disk(ino)
    }

    /// A mount of this device has ended: it lets go of its image, if it was told to.
    pub(crate) fn released(&self, ino: Ino) {
        let Some(number) = Self::number(ino) else { return };
        if let Some(slot) = self.devices.0.lock().get_mut(&number) {
            if slot.image().is_ok_and(|image| word32(&image.info, FLAGS) & AUTO_CLEAR != 0) {
                *slot = Slot::Released;
            }
        }
    }
}

impl Filesystem for Loops {
    fn lookup(&self, _: Ino, _: &OsStr) -> Result<Entry> {
        Err(Errno::ENOTDIR)
    }

    fn getattr(&self, ino: Ino) -> Result<Attr> {
        let (kind, major, minor) = match Self::number(ino) {
            None => (Kind::CharDevice, 10, 237),
            // Minor numbers that no device of the host has: what sysfs says of those is not about ours.
            Some(number) => (Kind::BlockDevice, MAJOR, FIRST_MINOR + number),
        };
        let mut attr = Attr::new(ino.0, kind, Perm::from_mode(0o660));
        attr.uid = nix::unistd::geteuid().as_raw();
        attr.gid = nix::unistd::getegid().as_raw();
        attr.rdev = Device { major, minor };
        (attr.atime, attr.mtime, attr.ctime) = (self.time, self.time, self.time);
        Ok(attr)
    }

    fn readdir(&self, _: Ino, _: u64, _: &mut DirSink<'_>) -> Result<()> {
        Err(Errno::ENOTDIR)
    }

    fn open(&self, ino: Ino, _: OpenFlags) -> Result<Arc<dyn File>> {
        Ok(Arc::new(OpenLoop { devices: Arc::clone(&self.devices), ino }))
    }
}

/// An image as an open block device.
fn device_file(disk: Disk) -> Result<Arc<BlockFile>> {
    let flags = OpenFlags { write: !disk.is_read_only(), ..OpenFlags::READ };
    BlockDrive::new(Arc::new(disk), false).open(WHOLE, flags)
}

/// An open device, or the control device. Its image may come and go while it is open.
struct OpenLoop {
    devices: Arc<Devices>,
    ino: Ino,
}

impl OpenLoop {
    /// `None` if there is no image now.
    fn image(&self) -> Result<Option<Arc<BlockFile>>> {
        self.devices.disk(self.ino).ok().map(device_file).transpose()
    }

    fn present(&self) -> Result<Arc<BlockFile>> {
        self.image()?.ok_or(Errno::ENXIO)
    }
}

impl File for OpenLoop {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.image()?.map_or(Ok(0), |image| image.read_at(buf, offset))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<usize> {
        self.image()?.ok_or(Errno::ENOSPC)?.write_at(buf, offset)
    }

    fn sync(&self, data_only: bool) -> Result<()> {
        self.image()?.map_or(Ok(()), |image| image.sync(data_only))
    }

    fn allocate(&self, how: Allocate, offset: u64, len: u64) -> Result<()> {
        self.present()?.allocate(how, offset, len)
    }

    fn seek(&self, what: Seek, offset: u64) -> Result<u64> {
        self.present()?.seek(what, offset)
    }

    fn ioctl(&self, ioctl: &mut Ioctl<'_>) -> Result<i32> {
        self.present()?.ioctl(ioctl)
    }

    fn is_direct(&self) -> bool {
        true
    }
}

/// Puts the control device into a view.
pub(crate) fn install(view: &View) {
    let _changing = view.changing.lock();
    let table = view.table();
    if table.at(b"/dev/loop-control").is_some() {
        return;
    }
    let loops = Arc::new(Loops { devices: Arc::default(), time: Timestamp::now() });
    let control = mount(view, &loops, CONTROL, b"/dev/loop-control".to_vec());
    view.set_table(table.with(control).with(notes(view)));
}

/// Where mount(8) notes what the kernel does not: a directory of the view's own.
fn notes(view: &View) -> Arc<Mount> {
    let mut setup = veduta_tree::memory::Setup { limit: Some(1 << 20), ..Default::default() };
    setup.root.uid = nix::unistd::geteuid().as_raw();
    setup.root.gid = nix::unistd::getegid().as_raw();
    let tree: Arc<dyn Filesystem> = Arc::new(veduta_tree::memory::Memory::new(&setup));
    hidden(view, tree, Ino::ROOT, b"/run/mount".to_vec(), Service::Tree)
}

fn mount(view: &View, loops: &Arc<Loops>, root: Ino, target: Vec<u8>) -> Arc<Mount> {
    let tree: Arc<dyn Filesystem> = Arc::<Loops>::clone(loops);
    hidden(view, tree, root, target, Service::Loops(Arc::clone(loops)))
}

fn hidden(
    view: &View,
    tree: Arc<dyn Filesystem>,
    root: Ino,
    target: Vec<u8>,
    service: Service,
) -> Arc<Mount> {
    Arc::new(Mount {
        id: view.new_mount_id(),
        target,
        type_name: "view".into(),
        source: "none".into(),
        options: String::new(),
        tree,
        root,
        facts: Facts::default(),
        service,
        except: Vec::new(),
        read_only: false.into(),
        no_exec: false.into(),
        permanent: true,
        alias: None,
        recursive: true,
        is_owned: false,
        keeps_owners: false,
        is_itself: false,
        of_host: false,
        is_pseudo: false,
        never_written: false,
        is_hidden: true,
        uses: Vec::new(),
        is_source: false.into(),
        plane: Arc::default(),
        through: None,
        before: view.table(),
    })
}

/// `ioctl(2)` on one of the devices.
pub(crate) fn ioctl(call: &Call<'_>, loops: &Arc<Loops>, stand_in: &StandIn) -> Outcome {
    let (command, argument) = (call.args[1] as u32, call.args[2]);
    let Some(number) = Loops::number(stand_in.node.ino) else {
        return control(call, loops, command, argument as i64);
    };
    match command {
        SET_FD => configure(call, loops, number, argument as i32, vec![0; INFO]),
        CONFIGURE => {
            let mut config = vec![0; 8 + INFO];
            call.task.read(argument, &mut config)?;
            let fd = word32(&config, 0) as i32;
            let block = word32(&config, 4);
            if block != 0 && (!block.is_power_of_two() || !(512..=4096).contains(&block)) {
                return Err(Errno::EINVAL);
            }
            configure(call, loops, number, fd, config[8..].to_vec())
        }
        CLEAR_FD => {
            let is_mounted = call.view.table().mounts().iter().any(|mount| stands_on(mount, stand_in));
            let mut devices = loops.devices.0.lock();
            let slot = devices.get_mut(&number).ok_or(Errno::ENXIO)?;
            match slot {
                Slot::Free => return Err(Errno::ENXIO),
                Slot::Released => *slot = Slot::Free,
                // As `loop(4)` has it: it lets go when it is used no more.
                Slot::Used(image) if is_mounted => {
                    let flags = word32(&image.info, FLAGS) | AUTO_CLEAR;
                    image.info[FLAGS..FLAGS + 4].copy_from_slice(&flags.to_ne_bytes());
                }
                Slot::Used(_) => *slot = Slot::Free,
            }
            DONE
        }
        GET_STATUS => {
            let devices = loops.devices.0.lock();
            let device = devices.get(&number).ok_or(Errno::ENXIO)?.image()?;
            call.task.write(argument, &device.info)?;
            DONE
        }
        GET_OLD_STATUS => {
            let devices = loops.devices.0.lock();
            let device = devices.get(&number).ok_or(Errno::ENXIO)?.image()?;
            call.task.write(argument, &to_old(&device.info)?)?;
            DONE
        }
        SET_STATUS | SET_OLD_STATUS => {
            let mut info = vec![0; if command == SET_STATUS { INFO } else { OLD_INFO }];
            call.task.read(argument, &mut info)?;
            if command == SET_OLD_STATUS {
                info = from_old(&info);
            }
            let mut devices = loops.devices.0.lock();
            let Some(Slot::Used(device)) = devices.get_mut(&number) else { return Err(Errno::ENXIO) };
            if word64(&info, OFFSET) != word64(&device.info, OFFSET)
                || word64(&info, SIZE_LIMIT) != word64(&device.info, SIZE_LIMIT)
            {
                let whole = device.disk.size() + word64(&device.info, OFFSET);
                if word64(&device.info, SIZE_LIMIT) != 0 || word64(&device.info, OFFSET) != 0 {
                    // The rest of the image is no longer known here.
                    return Err(Errno::EBUSY);
                }
                device.disk = part(&device.disk, &info, whole)?;
            }
            device.info = told(info, number, &device.info, &device.disk);
            DONE
        }
        SET_CAPACITY | SET_DIRECT_IO | SET_BLOCK_SIZE => {
            loops.disk(stand_in.node.ino)?;
            if command == SET_DIRECT_IO && argument != 0 { Err(Errno::EINVAL) } else { DONE }
        }
        _ => {
            let file = device_file(loops.disk(stand_in.node.ino)?)?;
            crate::data::file_ioctl(call, &*file)
        }
    }
}

/// Whether a mount is one of what is on a device.
fn stands_on(mount: &Mount, device: &StandIn) -> bool {
    mount.uses.iter().any(|node| node.mount.id == device.node.mount.id && node.ino == device.node.ino)
}

fn control(call: &Call<'_>, loops: &Arc<Loops>, command: u32, argument: i64) -> Outcome {
    let number = {
        let mut devices = loops.devices.0.lock();
        match command {
            GET_FREE => {
                let is_free = |number: &u32| devices.get(number).is_none_or(|slot| slot.image().is_err());
                let number = (0..MOST).find(is_free).ok_or(Errno::ENOSPC)?;
                devices.entry(number).or_default();
                number
            }
            ADD => {
                let number =
                    u32::try_from(argument).ok().filter(|number| *number < MOST).ok_or(Errno::EINVAL)?;
                if devices.contains_key(&number) {
                    return Err(Errno::EEXIST);
                }
                devices.insert(number, Slot::Free);
                number
            }
            REMOVE => {
                let number = u32::try_from(argument).map_err(|_| Errno::EINVAL)?;
                return match devices.get(&number) {
                    None => Err(Errno::ENODEV),
                    Some(Slot::Used(_)) => Err(Errno::EBUSY),
                    Some(_) => Ok(Answer::Value(number.into())),
                };
            }
            _ => return Err(Errno::ENOTTY),
        }
    };
    let view = call.view;
    let _changing = view.changing.lock();
    let table = view.table();
    let target = format!("/dev/loop{number}").into_bytes();
    if table.at(&target).is_none() {
        let ino = Ino(FIRST + u64::from(number));
        view.set_table(table.with(mount(view, loops, ino, target)));
    }
    Ok(Answer::Value(number.into()))
}

/// Gives a device its image: the file behind one of the task's descriptors.
fn configure(call: &Call<'_>, loops: &Arc<Loops>, number: u32, fd: i32, info: Vec<u8>) -> Outcome {
    let start = call.start(fd as u64)?;
    let path = match &start {
        Start::Host(path) => path.clone(),
        Start::Tree(node) => node.path(),
        Start::Opaque => return Err(Errno::EINVAL),
    };
    let writes = crate::serve::descriptor(call.task, fd).and_then(|fd| crate::call::writable(&fd)).is_ok();
    let read_only = !writes || word32(&info, FLAGS) & READ_ONLY != 0;
    let mut options = Options::default();
    let refused = |error: veduta_api::MountError| {
        eprintln!("veduta: /dev/loop{number}: {}: {error}", String::from_utf8_lossy(&path));
        error.errno
    };
    let host = call.view.catalogue.world(&mut options).map_err(refused)?;
    let uses = std::cell::RefCell::default();
    let world = ViewWorld { call, start: Start::Host(Vec::new()), host, target: None, uses };
    let disk = match start {
        Start::Tree(node) => {
            let attr = node.attr()?;
            world.disk_at(&Place::Tree(node, attr), !read_only)
        }
        _ => world.disk(OsStr::from_bytes(shown(&path)), !read_only),
    };
    let disk = disk.map_err(refused)?;
    let size = disk.size();
    let disk = part(&disk, &info, size)?;
    let mut devices = loops.devices.0.lock();
    let slot = devices.entry(number).or_default();
    if slot.image().is_ok() {
        return Err(Errno::EBUSY);
    }
    let mut before = vec![0; INFO];
    let name = &path[..path.len().min(63)];
    before[FILE_NAME..FILE_NAME + name.len()].copy_from_slice(name);
    let info = told(info, number, &before, &disk);
    *slot = Slot::Used(Loop { disk, info });
    DONE
}

/// The part of an image that offset and limit choose.
fn part(disk: &Disk, info: &[u8], size: u64) -> Result<Disk> {
    let (offset, limit) = (word64(info, OFFSET), word64(info, SIZE_LIMIT));
    if offset == 0 && limit == 0 {
        return Ok(disk.clone());
    }
    let rest = size.checked_sub(offset).ok_or(Errno::EINVAL)?;
    let len = if limit == 0 { rest } else { limit.min(rest) };
    disk.window(offset, len, disk.name())
}

/// `struct loop_info`, which came before `loop_info64`, as far as it differs: the offset has 32 bits, and there is no limit.
fn from_old(old: &[u8]) -> Vec<u8> {
    let mut info = vec![0; INFO];
    info[OFFSET..OFFSET + 8].copy_from_slice(&u64::from(word32(old, OLD_OFFSET)).to_ne_bytes());
    info[FLAGS..FLAGS + 4].copy_from_slice(&old[OLD_FLAGS..OLD_FLAGS + 4]);
    info[FILE_NAME..FILE_NAME + 64].copy_from_slice(&old[OLD_NAME..OLD_NAME + 64]);
    info
}

/// `EOVERFLOW` for an offset that it cannot say.
fn to_old(info: &[u8]) -> Result<Vec<u8>> {
    let mut old = vec![0; OLD_INFO];
    let offset = u32::try_from(word64(info, OFFSET)).map_err(|_| Errno::EOVERFLOW)?;
    old[..4].copy_from_slice(&info[NUMBER..NUMBER + 4]);
    old[OLD_OFFSET..OLD_OFFSET + 4].copy_from_slice(&offset.to_ne_bytes());
    old[OLD_FLAGS..OLD_FLAGS + 4].copy_from_slice(&info[FLAGS..FLAGS + 4]);
    old[OLD_NAME..OLD_NAME + 64].copy_from_slice(&info[FILE_NAME..FILE_NAME + 64]);
    Ok(old)
}

/// What a device tells of itself: what it was told, with what it knows better.
fn told(mut info: Vec<u8>, number: u32, before: &[u8], disk: &Disk) -> Vec<u8> {
    info[NUMBER..NUMBER + 4].copy_from_slice(&number.to_ne_bytes());
    if info[FILE_NAME] == 0 {
        info[FILE_NAME..FILE_NAME + 64].copy_from_slice(&before[FILE_NAME..FILE_NAME + 64]);
    }
    let mut flags = word32(&info, FLAGS) & !READ_ONLY;
    if disk.is_read_only() {
        flags |= READ_ONLY;
    }
    info[FLAGS..FLAGS + 4].copy_from_slice(&flags.to_ne_bytes());
    info
}

fn word32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

fn word64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|word| word.try_into().ok()).map_or(0, u64::from_ne_bytes)
}
