//! `mount(2)` and `umount2(2)` of a view.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::errno::Errno;
use nix::libc;
use veduta_api::{
    DeviceNode, Differences, Disk, Facts, Filesystem, Ino, Module, MountError, Object, Options, Perm,
    Request, Result, SourceKind, Timestamp, World,
};
use veduta_disk::BlockDrive;

use crate::call::{Answer, Call, DONE, Outcome};
use crate::calls::Level;
use crate::known::Shown;
use crate::mounts::{Mount, Service, Table, device_of, is_below, shown};
use crate::node::{Node, guarded};
use crate::standin::Key;
use crate::view::{MountRequest, View};
use crate::walk::{Found, Limits, Place, Start};
use crate::world::{DiskTree, ViewWorld};

/// Types that show a part of the view in another place.
const BINDS: &[&str] = &["bind", "vufs", "viewfs", "umviewfs"];
/// Words of mount(8) and fstab(5) that mean nothing here, or what the view does anyhow.
const IGNORED: &[&str] = &[
    "rw",
    "defaults",
    "nosuid",
    "nodev",
    "suid",
    "dev",
    "exec",
    "atime",
    "noatime",
    "relatime",
    "norelatime",
    "diratime",
    "nodiratime",
    "strictatime",
    "lazytime",
    "async",
    "sync",
    "dirsync",
    "user",
    "users",
    "nouser",
    "owner",
    "group",
    "auto",
    "noauto",
    "nofail",
    "_netdev",
    "silent",
    "loud",
    "loop",
    "mand",
    "nomand",
    "iversion",
    "bind",
    "rbind",
    "move",
];

/// Serves one of the mount family.
pub(crate) fn serve(call: &Call<'_>, name: &str) -> Outcome {
    if in_other_namespace(call) {
        // A container within the view: its own mounts are the kernel's.
        return crate::apart::mount(call, name);
    }
    match name {
        "mount" => {
            mount(call)?;
            if call.view.level() == Level::Idle {
                Ok(Answer::Grow(Level::Mounted, crate::call::Meanwhile::Value(0)))
            } else {
                DONE
            }
        }
        "umount2" => umount(call),
        "pivot_root" => crate::apart::mount(call, name),
        // mount(8) then uses mount(2), which says as much.
        _ => Err(Errno::ENOSYS),
    }
}

fn in_other_namespace(call: &Call<'_>) -> bool {
    let namespace = |task: &str| std::fs::read_link(format!("/proc/{task}/ns/mnt")).ok();
    let own = namespace("self");
    own.is_some() && namespace(&call.task.0.to_string()).is_some_and(|other| Some(other) != own)
}

fn mount(call: &Call<'_>) -> Result<()> {
    let [source, target, type_name, flags, data, _] = call.args;
    let string = |address: u64| -> Result<Vec<u8>> {
        if address == 0 { Ok(Vec::new()) } else { call.task.read_path(address) }
    };
    // An old magic number of flags that some programs still add.
    let flags = if flags & 0xffff_0000 == 0xc0ed_0000 { flags & 0xffff } else { flags };
    let target = string(target)?;
    if flags & (libc::MS_PRIVATE | libc::MS_SLAVE | libc::MS_UNBINDABLE) != 0 {
        // Nothing ever propagates out of a view.
        return existing(call, &target).map(drop);
    }
    if flags & libc::MS_SHARED != 0 {
        return Err(Errno::EINVAL);
    }
    let mut options = String::from_utf8(string(data)?).map_err(|_| Errno::EINVAL)?;
    for (bit, word) in [(libc::MS_RDONLY, "ro"), (libc::MS_NOEXEC, "noexec")] {
        if flags & bit != 0 {
            options = if options.is_empty() { word.into() } else { format!("{word},{options}") };
        }
    }
    if flags & libc::MS_REMOUNT != 0 {
        return remount(call, &target, flags);
    }
    let source = string(source)?;
    if flags & libc::MS_MOVE != 0 {
        return move_mount(call, &source, &target);
    }
    let type_name = String::from_utf8(string(type_name)?).map_err(|_| Errno::ENODEV)?;
    let type_name = if flags & libc::MS_BIND != 0 { "bind".to_owned() } else { type_name };
    let request = MountRequest {
        type_name: type_name.clone(),
        source: OsString::from_vec(source),
        target: OsString::from_vec(target),
        options,
        recursive: flags & libc::MS_BIND == 0 || flags & libc::MS_REC != 0,
    };
    make(call, &request).map_err(|error| {
        let source = request.source.to_string_lossy();
        // mount(2) has room for a number only; the sentence goes to the terminal of the view.
        eprintln!("veduta: {type_name}: {source}: {error}");
        error.errno
    })
}

fn start(call: &Call<'_>) -> Result<Start> {
    crate::walk::working_directory(&call.view.stand_ins, call.task)
}

fn find(call: &Call<'_>, path: &[u8]) -> Result<Found> {
    let start = if path.starts_with(b"/") { Start::Host(Vec::new()) } else { start(call)? };
    call.walker(Limits::default()).walk(&start, path, true)
}

/// The mount whose root a path leads to. `EINVAL` if it leads elsewhere.
fn existing(call: &Call<'_>, path: &[u8]) -> Result<Option<Arc<Mount>>> {
    let found = find(call, path)?;
    let path = found.existing()?.path();
    Ok(call.table.at(&path).cloned())
}

/// Makes a mount.
pub(crate) fn make(call: &Call<'_>, request: &MountRequest) -> Result<(), MountError> {
    let view = call.view;
    let _changing = view.changing.lock();
    let table = view.table();
    let call = &Call { table: Arc::clone(&table), ..Call::new(view, call.task, call.number, call.args) };
    let mut options = Options::parse(&request.options)?;
    let is_restricted = options.keys().any(|key| matches!(key, "nosuid" | "nodev"));
    let words = take_words(&mut options)?;
    let target = target_path(call, request)?;
    // With any word of a union it is one, and a driver's affair.
    let is_bind = BINDS.contains(&request.type_name.as_str()) && options.is_empty();
    let made = if is_bind {
        bind(call, request)?
    } else {
        from_module(call, request, &target, options, words.read_only)?
    };
    let before = Arc::new(Table::new(table.mounts().to_vec()));
    // Other users than the one who mounts, for whom permissions count.
    let has_users = view.is_root || (view.all_root && made.keeps_owners);
    let is_owned = made.is_image && !words.human && !has_users;
    let id = view.new_mount_id();
    // What stands on another mount may be changed through that one.
    let is_own = matches!(made.service, Service::Tree)
        && made.alias.is_none()
        && !made.of_host
        && made.uses.is_empty();
    let tree = match view.fast.known() {
        Some(known) if is_own => {
            let checks = !made.facts.own_permissions && !is_owned;
            known.wrap(made.tree, Shown { mount: id, device: device_of(id), root: made.root, checks })
        }
        _ => made.tree,
    };
    // Whether set-user-id programs count on the host is the kernel's affair there: a bind where they shall not is served by the engine. So is one for which a
    // plane is asked by name, and one of all, which has no boundary: that is how the engine is tried with everything that the host has.
    let is_itself = is_bind
        && !target.is_empty()
        && made.of_host
        && made.uses.is_empty()
        && made.alias.as_ref() == Some(&target)
        && matches!(made.service, Service::Tree)
        && !is_restricted
        && view.stand_ins.planes.is_free();
    let through = if is_itself {
        view.fast.through_itself(&target).filter(|_| !words.no_exec)
    } else if is_bind || made.root != Ino::ROOT || !view.takes_backing() {
        None
    } else {
        view.fast.through(&target, &*tree)
    };
    let mount = Arc::new(Mount {
        id,
        through,
        target,
        type_name: made.type_name,
        source: request.source.clone(),
        options: words.shown,
        facts: made.facts,
        tree,
        root: made.root,
        service: made.service,
        except: words.except,
        read_only: (words.read_only || made.read_only).into(),
        no_exec: words.no_exec.into(),
        permanent: words.permanent,
        never_written: made.never_written,
        is_pseudo: made.of_host && made.alias.as_deref().is_some_and(crate::node::is_pseudo),
        alias: made.alias,
        recursive: request.recursive,
        is_itself,
        of_host: made.of_host,
        is_owned,
        keeps_owners: made.keeps_owners,
        is_hidden: false,
        uses: made.uses,
        is_source: made.is_source.into(),
        plane: made.plane,
        before,
    });
    view.stand_ins.planes.probe(&mount)?;
    crate::apart::no_cores(&mount);
    view.set_table(table.with(mount));
    Ok(())
}

struct Words {
    read_only: bool,
    no_exec: bool,
    permanent: bool,
    human: bool,
    except: Vec<Vec<u8>>,
    shown: String,
}

/// Takes the view's own words out of a list.
fn take_words(options: &mut Options) -> Result<Words, MountError> {
    for word in IGNORED {
        options.take_flag(word)?;
    }
    let vague: Vec<String> = options
        .keys()
        .filter(|key| key.starts_with("x-") || key.starts_with("X-"))
        .map(str::to_owned)
        .collect();
    for key in vague {
        options.take_values(&key).map(drop).or_else(|_| options.take_flag(&key).map(drop))?;
    }
    let except = options.take_values("except")?;
    let canonical = |path: &String| {
        let parts = path.split('/').filter(|part| !part.is_empty());
        parts.flat_map(|part| [b"/".as_slice(), part.as_bytes()].concat()).collect()
    };
    let shown: Vec<&str> = options.keys().filter(|key| *key != "ro" && *key != "noexec").collect();
    let shown = shown.join(",");
    Ok(Words {
        read_only: options.take_flag("ro")?,
        no_exec: options.take_flag("noexec")?,
        permanent: options.take_flag("permanent")? | options.take_flag("perm")?,
        human: options.take_flag("human")?,
        except: except.iter().map(canonical).collect(),
        shown,
    })
}

/// Where the mount is to be. The name need not exist, but its directory must.
fn target_path(call: &Call<'_>, request: &MountRequest) -> Result<Vec<u8>, MountError> {
    let path = request.target.as_bytes();
    let cannot = |errno: Errno| {
        MountError::system(errno, format!("{}: {}", request.target.to_string_lossy(), errno.desc()))
    };
    if path.is_empty() {
        return Err(cannot(Errno::ENOENT));
    }
    let found = find(call, path).map_err(cannot)?;
    if let Some(place) = &found.place {
        return Ok(place.path());
    }
    let parent = found.parent.as_ref().ok_or_else(|| cannot(Errno::ENOENT))?;
    Ok([&parent.path(), b"/".as_slice(), &found.name].concat())
}

struct Made {
    type_name: String,
    tree: Arc<dyn Filesystem>,
    facts: Facts,
    root: Ino,
    service: Service,
    read_only: bool,
    never_written: bool,
    alias: Option<Vec<u8>>,
    of_host: bool,
    is_image: bool,
    keeps_owners: bool,
    uses: Vec<Arc<Node>>,
    plane: crate::fuseplane::Cell,
    is_source: bool,
}

fn bind(call: &Call<'_>, request: &MountRequest) -> Result<Made, MountError> {
    let cannot = |errno: Errno| MountError::system(errno, errno.desc());
    let found = find(call, request.source.as_bytes()).map_err(cannot)?;
    let place = found.existing().map_err(cannot)?;
    let (tree, root, uses) = match place {
        Place::Host(path) => {
            let (tree, root) = crate::world::host_tree(path)?;
            (tree, root, Vec::new())
        }
        Place::Tree(node, _) => (Arc::clone(&node.mount.tree), node.ino, vec![Arc::clone(node)]),
    };
    let service = match place {
        Place::Tree(node, _) => match &node.mount.service {
            Service::Disk(drive) => Service::Disk(Arc::clone(drive)),
            Service::Loops(loops) => Service::Loops(Arc::clone(loops)),
            Service::Tree => Service::Tree,
        },
        Place::Host(_) => Service::Tree,
    };
    let read_only = matches!(place, Place::Tree(node, _) if node.mount.is_read_only());
    let type_name = if request.type_name == "bind" { "none" } else { &request.type_name };
    Ok(Made {
        type_name: type_name.to_owned(),
        facts: tree.facts(),
        tree,
        root,
        service,
        read_only,
        never_written: matches!(place, Place::Tree(node, _) if node.mount.never_written),
        alias: Some(place.path()),
        of_host: match place {
            Place::Host(_) => true,
            Place::Tree(node, _) => node.mount.of_host,
        },
        is_image: matches!(place, Place::Tree(node, _) if node.mount.is_owned),
        keeps_owners: matches!(place, Place::Tree(node, _) if node.mount.keeps_owners),
        uses,
        // The same tree is the same files.
        plane: match place {
            Place::Tree(node, _) => Arc::clone(&node.mount.plane),
            Place::Host(_) => Arc::default(),
        },
        is_source: matches!(place, Place::Tree(node, _) if node.mount.is_source.load(Ordering::Acquire)),
    })
}

fn from_module(
    call: &Call<'_>,
    request: &MountRequest,
    target: &[u8],
    mut options: Options,
    read_only: bool,
) -> Result<Made, MountError> {
    let catalogue = &call.view.catalogue;
    // The words of a source are not those of a type that has none.
    let has_source = |module: &dyn Module| module.source() != SourceKind::None;
    let host = match catalogue.find(&request.type_name).is_none_or(has_source) {
        true => catalogue.world(&mut options)?,
        false => catalogue.world(&mut Options::default())?,
    };
    let start = start(call).map_err(|errno| MountError::system(errno, errno.desc()))?;
    let target = Some(OsStr::from_bytes(shown(target)).to_owned());
    let world = ViewWorld { call, start, host, target, uses: std::cell::RefCell::default() };
    let module = match request.type_name.as_str() {
        "" | "auto" => probe(call, &world, &request.source)?,
        name => catalogue.find(name).ok_or_else(|| {
            let names: Vec<&str> = catalogue.all().iter().map(|module| module.name()).collect();
            let message =
                format!("unknown type {name:?}; there are: {} (and `auto`, `bind`)", names.join(", "));
            MountError { errno: Errno::ENODEV, ..MountError::usage(message) }
        })?,
    };
    let words = options.clone();
    options.check(module.options())?;
    let read_only = read_only || !module.writable();
    let mut ask = Request { source: &request.source, options, read_only, world: &world };
    let object = guarded(|| Ok(module.mount(&mut ask)))
        .map_err(|errno| MountError::system(errno, "the driver failed"))??;
    let uses = world.uses.into_inner();
    let type_name = request.type_name.clone();
    let type_name =
        if matches!(type_name.as_str(), "" | "auto") { module.name().to_owned() } else { type_name };
    let (tree, service): (Arc<dyn Filesystem>, Service) = match object {
        Object::Tree(tree) => (tree, Service::Tree),
        Object::Disk(drive) => {
            // As on Linux: partitions follow the table when somebody says so.
            let drive = BlockDrive::new(drive, false);
            let looks = DeviceNode::from_options(&words).map_err(|error| MountError::usage(error.0))?;
            (disk_tree(call, looks, &drive), Service::Disk(drive))
        }
        Object::Link(_) | Object::Stack(_) => {
            return Err(MountError::unsupported("networks cannot be mounted in a view yet"));
        }
    };
    let facts = tree.facts();
    let is_disk_read_only = matches!(&service, Service::Disk(drive) if drive.drive().whole().is_read_only());
    Ok(Made {
        type_name,
        facts,
        tree,
        root: Ino::ROOT,
        read_only: match service {
            Service::Disk(_) => is_disk_read_only,
            Service::Tree | Service::Loops(_) => read_only,
        },
        never_written: matches!(service, Service::Tree) && read_only,
        keeps_owners: matches!(module.source(), SourceKind::Disk | SourceKind::None)
            && matches!(service, Service::Tree)
            && !facts.own_permissions,
        is_image: matches!(module.source(), SourceKind::Disk | SourceKind::Tree)
            && matches!(service, Service::Tree),
        service,
        alias: None,
        of_host: false,
        uses,
        plane: Arc::default(),
        is_source: false,
    })
}

/// A drive as device nodes that look as the options say.
fn disk_tree(call: &Call<'_>, looks: DeviceNode, drive: &Arc<BlockDrive>) -> Arc<dyn Filesystem> {
    // 259: block devices whose numbers are given out as they come.
    const BLOCK_EXTENDED: u32 = 259;
    let number = call.view.table().mounts().len() as u32;
    Arc::new(DiskTree {
        drive: Arc::clone(drive),
        device: veduta_api::Device {
            major: looks.major.unwrap_or(BLOCK_EXTENDED),
            minor: looks.minor.unwrap_or(0x8000 + number * 256),
        },
        perm: looks.perm.unwrap_or(Perm::from_mode(0o600)),
        owner: (looks.uid.unwrap_or(call.caller.real().uid()), looks.gid.unwrap_or(call.caller.real().gid())),
        time: Timestamp::now(),
    })
}

fn probe(call: &Call<'_>, world: &ViewWorld<'_>, source: &OsStr) -> Result<&'static dyn Module, MountError> {
    let disk: Disk = world.disk(source, false)?;
    let found = call.view.catalogue.probe(&disk)?;
    found.ok_or_else(|| MountError::wrong_type("it is of no type that is known here; name one with -t"))
}

fn remount(call: &Call<'_>, target: &[u8], flags: u64) -> Result<()> {
    let mount = existing(call, target)?.ok_or(Errno::EINVAL)?;
    let read_only = flags & libc::MS_RDONLY != 0;
    if !read_only && mount.never_written {
        return Err(Errno::EROFS);
    }
    if read_only && !mount.is_read_only() {
        if has_writers(call.view, &mount) {
            return Err(Errno::EBUSY);
        }
        crate::data::sync_mount(call, mount.id)?;
    }
    mount.read_only.store(read_only, Ordering::Relaxed);
    mount.no_exec.store(flags & libc::MS_NOEXEC != 0, Ordering::Relaxed);
    if let Some(through) = mount.through.as_ref().filter(|_| mount.is_itself && flags & libc::MS_NOEXEC != 0)
    {
        // Programs are not to be run, nor mapped, and only the engine says so.
        Differences::all(&**through);
    }
    call.view.tell_fast();
    Ok(())
}

fn move_mount(call: &Call<'_>, source: &[u8], target: &[u8]) -> Result<()> {
    let _changing = call.view.changing.lock();
    let mount = existing(call, source)?.ok_or(Errno::EINVAL)?;
    let found = find(call, target)?;
    let path = found.existing()?.path();
    if is_below(&path, &mount.target) {
        return Err(Errno::ELOOP);
    }
    let table = call.view.table();
    // With all that was mounted in it; what is older is hidden by it, and stays.
    let younger = table.mounts().iter().skip_while(|other| other.id != mount.id);
    let goes_along = |other: &&Arc<Mount>| {
        let is_inside = other.target != mount.target && is_below(&other.target, &mount.target);
        other.id == mount.id || (is_inside && !other.is_hidden)
    };
    let moving: Vec<Arc<Mount>> = younger.filter(goes_along).cloned().collect();
    if moving.iter().any(|mount| is_busy(call.view, mount)) {
        return Err(Errno::EBUSY);
    }
    let stays = |other: &&Arc<Mount>| !moving.iter().any(|moving| moving.id == other.id);
    let mut mounts: Vec<Arc<Mount>> = table.mounts().iter().filter(stays).cloned().collect();
    for moving in &moving {
        call.view.stand_ins.drop_mount(moving.id)?;
        call.view.stand_ins.planes.end(moving);
        let target = [&path, &moving.target[mount.target.len()..]].concat();
        let moved = elsewhere(call.view, moving, target);
        call.view.watches.renumbered(moving.id, moved.id);
        mounts.push(Arc::new(moved));
    }
    call.view.set_table(Table::new(mounts));
    Ok(())
}

/// A mount as it is at another place.
fn elsewhere(view: &View, mount: &Mount, target: Vec<u8>) -> Mount {
    Mount {
        id: view.new_mount_id(),
        target,
        type_name: mount.type_name.clone(),
        source: mount.source.clone(),
        options: mount.options.clone(),
        facts: mount.facts,
        tree: Arc::clone(&mount.tree),
        root: mount.root,
        service: match &mount.service {
            Service::Disk(drive) => Service::Disk(Arc::clone(drive)),
            Service::Loops(loops) => Service::Loops(Arc::clone(loops)),
            Service::Tree => Service::Tree,
        },
        except: mount.except.clone(),
        read_only: mount.is_read_only().into(),
        no_exec: mount.no_exec.load(Ordering::Relaxed).into(),
        permanent: mount.permanent,
        alias: mount.alias.clone(),
        recursive: mount.recursive,
        is_itself: false,
        of_host: mount.of_host,
        is_owned: mount.is_owned,
        keeps_owners: mount.keeps_owners,
        is_pseudo: mount.is_pseudo,
        never_written: mount.never_written,
        is_hidden: false,
        uses: mount.uses.clone(),
        is_source: mount.is_source.load(Ordering::Acquire).into(),
        plane: Arc::default(),
        through: None,
        before: Arc::clone(&mount.before),
    }
}

fn umount(call: &Call<'_>) -> Outcome {
    const FORCE: i32 = 1;
    const DETACH: i32 = 2;
    const EXPIRE: i32 = 4;
    const NO_FOLLOW: i32 = 8;
    let flags = call.int(1);
    if flags & !(FORCE | DETACH | EXPIRE | NO_FOLLOW) != 0 {
        return Err(Errno::EINVAL);
    }
    let path = call.task.read_path(call.args[0])?;
    let start = if path.starts_with(b"/") { Start::Host(Vec::new()) } else { start(call)? };
    let found = call.walker(Limits::default()).walk(&start, &path, flags & NO_FOLLOW == 0)?;
    let place = found.existing()?.path();
    let view = call.view;
    let _changing = view.changing.lock();
    let table = view.table();
    let Some(mount) = table.at(&place).cloned() else {
        return if found.direct { Ok(Answer::GoOn) } else { Err(Errno::EINVAL) };
    };
    if mount.permanent {
        return Err(Errno::EBUSY);
    }
    let lazy = flags & (FORCE | DETACH) != 0;
    if !lazy {
        let has_below = table.mounts().iter().any(|other| {
            other.id != mount.id && other.target != mount.target && is_below(&other.target, &mount.target)
        });
        if has_below || is_busy(view, &mount) {
            return Err(Errno::EBUSY);
        }
    }
    view.set_table(table.without(mount.id));
    drop(table);
    if lazy && is_busy(view, &mount) {
        view.detached.lock().push(mount);
        return DONE;
    }
    end(view, &mount)?;
    DONE
}

/// Whether processes use something of a mount, or another mount stands on it.
pub(crate) fn is_busy(view: &View, mount: &Mount) -> bool {
    let table = view.table();
    let is_source =
        |other: &Arc<Mount>| other.id != mount.id && other.uses.iter().any(|node| node.mount.id == mount.id);
    if table.mounts().iter().any(is_source) {
        return true;
    }
    let keys = known_keys(view, mount);
    // What was opened through a bind of the host on itself is the host's, and stays so.
    let is_through = mount.through.is_some() && !mount.is_itself;
    if keys.is_empty() && view.stand_ins.planes.is_empty() && !is_through {
        return false;
    }
    let is_ours = |key| is_of(view, mount, &keys, key);
    let is_seen_through = |path: &std::path::Path| {
        let leads_in = |to: std::path::PathBuf| is_below(to.as_os_str().as_bytes(), &mount.target);
        is_through && std::fs::read_link(path).is_ok_and(leads_in)
    };
    let uses = |path: std::path::PathBuf| {
        crate::fuseplane::key_of(&path).is_ok_and(is_ours) || is_seen_through(&path)
    };
    crate::grow::processes().into_iter().any(|pid| {
        let proc = std::path::PathBuf::from(format!("/proc/{pid}"));
        let open = std::fs::read_dir(proc.join("fd")).into_iter().flatten().flatten();
        ["cwd", "root", "exe"].iter().any(|link| uses(proc.join(link)))
            || open.into_iter().any(|fd| uses(fd.path()))
            || maps_any(&proc, &is_ours)
    })
}

/// The real inodes that stand for nodes of a mount, other than those of its plane.
fn known_keys(view: &View, mount: &Mount) -> Vec<Key> {
    view.stand_ins.collect(Some(mount.id), 0);
    let stand_ins = view.stand_ins.of_mount(mount.id);
    let mut keys: Vec<_> = stand_ins.iter().map(|stand_in| stand_in.key).collect();
    keys.extend(view.lent.of_mount(mount.id));
    keys
}

fn is_of(view: &View, mount: &Mount, keys: &[Key], key: Key) -> bool {
    keys.contains(&key)
        || view.stand_ins.planes.find(key).is_some_and(|known| known.node.mount.id == mount.id)
}

/// Whether processes have files of a mount open for writing.
fn has_writers(view: &View, mount: &Mount) -> bool {
    let keys = known_keys(view, mount);
    if keys.is_empty() && view.stand_ins.planes.is_empty() && !mount.is_itself {
        return false;
    }
    let table = view.table();
    let is_here = |path: &std::path::Path| {
        let leads_in = |to: std::path::PathBuf| {
            table.serving(to.as_os_str().as_bytes()).is_some_and(|serving| serving.id == mount.id)
        };
        mount.is_itself && std::fs::read_link(path).is_ok_and(leads_in)
    };
    crate::grow::processes().into_iter().any(|pid| {
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        open.into_iter().any(|fd| {
            let name = fd.file_name();
            let info = std::path::Path::new("/proc").join(pid.to_string()).join("fdinfo").join(&name);
            let writes = || {
                let text = std::fs::read_to_string(info).unwrap_or_default();
                let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
                let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok()).unwrap_or(0);
                matches!(flags & libc::O_ACCMODE, libc::O_WRONLY | libc::O_RDWR)
            };
            let is_ours = |key| is_of(view, mount, &keys, key);
            (crate::fuseplane::key_of(&fd.path()).is_ok_and(is_ours) || is_here(&fd.path())) && writes()
        })
    })
}

fn maps_any(proc: &std::path::Path, is_ours: &dyn Fn((u64, u64)) -> bool) -> bool {
    let maps = std::fs::read(proc.join("maps")).unwrap_or_default();
    String::from_utf8_lossy(&maps).lines().any(|line| {
        let mut fields = line.split_ascii_whitespace().skip(3);
        let Some((major, minor)) = fields.next().and_then(|device| device.split_once(':')) else {
            return false;
        };
        let number = |text| u32::from_str_radix(text, 16).unwrap_or(0);
        let ino: u64 = fields.next().and_then(|ino| ino.parse().ok()).unwrap_or(0);
        is_ours((libc::makedev(number(major), number(minor)), ino))
    })
}

/// The end of a mount that is in the table no more.
pub(crate) fn end(view: &View, mount: &Arc<Mount>) -> Result<()> {
    let written = view.stand_ins.drop_mount(mount.id);
    view.stand_ins.held.forget(mount.id);
    let loops = mount.uses.clone();
    view.lent.end(mount.id);
    view.rereads.end(mount.id);
    // A tree that is mounted elsewhere too goes on.
    let goes_on = mount.alias.is_some()
        || view.table().mounts().iter().any(|other| Arc::ptr_eq(&other.tree, &mount.tree));
    if goes_on || mount.is_read_only() {
        if !goes_on {
            view.stand_ins.planes.end(mount);
            view.watches.ended(mount.id);
        }
        release_loops(&loops);
        return written;
    }
    view.stand_ins.planes.end(mount);
    let ended = written.and(guarded(|| mount.tree.unmount()));
    view.watches.ended(mount.id);
    release_loops(&loops);
    ended
}

fn release_loops(uses: &[Arc<Node>]) {
    for node in uses {
        if let Service::Loops(loops) = &node.mount.service {
            loops.released(node.ino);
        }
    }
}

/// What messages call a mount.
pub(crate) fn describe(mount: &Mount) -> String {
    format!("{} on {}", mount.source.to_string_lossy(), String::from_utf8_lossy(shown(&mount.target)))
}
