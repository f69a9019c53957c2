//! The command line of `veduta`, defined once: help, manual pages and completions all come from here.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

const ABOUT: &str = "Mount and look into disk images without root";

const LONG_ABOUT: &str = "\
Mount and look into disk images without root.

Veduta recognises what an image holds (an ext2, ext3 or ext4 filesystem, an ISO 9660 disc, a FAT volume, a disk with \
partitions), mounts it through FUSE as an ordinary user, and where no mount is possible at all (in a container \
without /dev/fuse, say) still lists and copies what is inside.

An image is never changed by looking at it: `info`, `ls`, `cat` and `cp` only read, types that cannot be written yet mount read-only, \
and a journal that waits to be replayed is replayed in memory.";

const SOURCES: &str = "\
SOURCES
  disk.img        an image file, or a block device such as /dev/sdb
  disk.img#2      partition 2 of it
  disk.img:/etc   the path /etc in it (for ls, cat and cp)

EXAMPLES
  veduta tour                          a guided first run
  veduta mount disk.img /mnt           type found by looking; see `veduta types`
  veduta mount -o uid=1000 cd.iso /mnt
  veduta umount /mnt
  veduta info disk.img                 format, label, features, usage, health
  veduta ls -l disk.img#2:/etc         without any mount
  veduta cp -r disk.img#2:/etc out/

EXIT STATUS
  0 done   1 wrong usage   2 the system refused something   32 the mount failed

ENVIRONMENT
  VEDUTA_LOG   what is logged to standard error: error, warn (the default), info, debug, trace";

/// Mount and look into disk images without root.
#[derive(Parser)]
#[command(
    name = "veduta",
    version,
    about = ABOUT,
    long_about = LONG_ABOUT,
    after_help = SOURCES,
    max_term_width = 100,
    arg_required_else_help = true,
    subcommand_required = true,
    disable_help_subcommand = false
)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Mount an image on a directory
    ///
    /// Looks at SOURCE to find its type, mounts it on DIR through FUSE, and returns once the mount answers; the
    /// server then runs in the background until `veduta umount DIR` (or umount, or fusermount3 -u).
    ///
    /// Works as root, as an ordinary user where fusermount3 is installed, and in a user namespace (unshare -rm) with nothing
    /// but an accessible /dev/fuse. `veduta doctor` tells which of these this machine allows.
    #[command(after_help = "\
EXAMPLES
  veduta mount disk.img /mnt
  veduta mount disk.img#2 /mnt -o allow_other
  veduta mount -t iso9660 -o norock,uid=1000 cd.iso /mnt

In /etc/fstab, with the driver program instead:
  /srv/disk.img  /mnt  fuse.umfuseext2  ro,noauto,user  0 0")]
    Mount(Mount),
    /// End a mount
    ///
    /// Unmounts DIR as root, in one's own user namespace, or through fusermount3, whichever is allowed.
    Umount(Umount),
    /// Tell what an image is: format, features, label, UUID, usage, health
    ///
    /// Needs no mount and changes nothing. A disk with partitions is shown with what each of them holds.
    Info(Info),
    /// List a directory of an image, without a mount
    Ls(Ls),
    /// Print files of an image, without a mount
    Cat(Cat),
    /// Copy files out of an image, without a mount
    ///
    /// Keeps modes, times, symbolic links, hard links and holes; with -a also owners, extended attributes and device nodes, as
    /// far as the system allows, and says what it could not keep.
    Cp(Cp),
    /// Run a command in a view: with mounts that nobody else sees
    ///
    /// The command and everything that it starts see the mounts of the view, and make more with the ordinary mount(8), as an
    /// ordinary user, without FUSE, namespaces or any set-user-id helper. Outside, nothing is mounted. Set-user-id programs run without
    /// the rights of their owner, which is said when the first one is run.
    ///
    /// Without a COMMAND, a shell is started. The exit status is the command's, or 128 and the signal that ended it.
    #[command(after_help = "\
EXAMPLES
  veduta run                                       a shell; then: mount -t ext2 disk.img /mnt
  veduta run --mount ext2:disk.img:/mnt -- ls /mnt
  veduta run --mount bind:/tmp/hosts:/etc/hosts -- curl example
  veduta run --mount iso9660:cd.iso:/mnt:uid=1000 -- make -C /mnt/src
  veduta run --cow /tmp/try -- make install        then: veduta diff /tmp/try

FILES
  /etc/vedutarc, ~/.vedutarc   run in the view before the command, if they may be run

EXIT STATUS
  the command's; 125 if the view could not be started, 126 if the command may not be run, 127 if there is none")]
    Run(Run),
    /// Tell which mount of the view serves a path, and how
    Explain {
        /// The paths
        #[arg(required = true)]
        paths: Vec<OsString>,
    },
    /// List all system calls, and what a view does with each
    Syscalls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Report the calls of the view on its standard error from now on
    Trace {
        /// Families (path, file, mount, exec, identity, all) or names of calls, with commas between; nothing ends it
        #[arg(default_value = "")]
        what: String,
    },
    /// Work with disks and their images: list partitions, create, convert, serve
    Disk(Disk),
    /// Show what was changed in an upper layer
    ///
    /// DIR is the upper layer of a copy-on-write mount (`umviewfs -o cow DIR ...`), mounted or not. One line a path and kind of change:
    /// A added, D deleted, M content changed, T type changed, P permissions, O owner, X an extended attribute, U only the time.
    #[command(after_help = "\
EXAMPLES
  umviewfs -o cow /tmp/try /srv/tree && make -C /srv/tree install
  veduta diff /tmp/try
  veduta diff --stat /tmp/try
  veduta diff -p /tmp/try etc/passwd")]
    Diff(Diff),
    /// Bring what was changed in an upper layer to the layer below
    ///
    /// Each file is replaced at once; a commit that was interrupted is completed by the next. What was changed below since it was
    /// copied is a conflict: then nothing is done. Afterwards the upper layer has nothing of it. It must not be mounted.
    Commit(Commit),
    /// Throw away what was changed in an upper layer
    ///
    /// It must not be mounted.
    Discard(Discard),
    /// Pack what was changed in an upper layer as a layer of a container image
    Export(Export),
    /// Add a layer of a container image to an upper layer
    ///
    /// It must not be mounted. Entries that lead out of it are refused.
    Import(Import),
    /// Make, list, copy and remove layers that have a name
    ///
    /// They are in $XDG_DATA_HOME/veduta/layers, and wherever a layer is wanted, @NAME is the one of that name.
    #[command(after_help = "\
EXAMPLES
  veduta layer create work --over /srv/tree
  umviewfs -o stacked $(veduta layer path work) /mnt
  veduta layer clone work copy
  veduta layer create more --over @work         # on top of it, and of what it lies on
  veduta diff @work; veduta commit @work; veduta layer delete work")]
    Layer {
        #[command(subcommand)]
        action: LayerAction,
    },
    /// Tell what this machine allows, what that means, and what to do for more
    Doctor(Doctor),
    /// List the types that can be mounted, or the options of one
    Types(Types),
    /// Make, describe and check encrypted directories, and change their passwords
    ///
    /// The directory holds the ciphertext, in the format of gocryptfs (or of EncFS, which is dated). `veduta mount -t encfs DIR MNT`,
    /// or `umfuseencfs DIR MNT`, shows the plaintext; gocryptfs and encfs do too.
    ///
    /// Passwords are asked for on the terminal, without echo, or read from a file or a program. They are never arguments.
    #[command(subcommand)]
    Encfs(EncfsCommand),
    /// A guided first run on the bundled sample image
    ///
    /// Unpacks a small disk image to a temporary directory, looks at it, mounts it, looks around, unmounts it and removes it,
    /// and says at each step what it does and why. Works as root and as an ordinary user; where no mount is possible it shows
    /// the same by reading the image, and says what would allow more.
    Tour,
    /// Print a completion script for a shell
    #[command(
        after_help = "EXAMPLE\n  veduta completions bash > ~/.local/share/bash-completion/completions/veduta"
    )]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write all manual pages into a directory
    Man {
        /// The command whose page to print; the page of veduta itself if none
        command: Option<String>,
        /// Write veduta.1, veduta-mount.1, ... and the pages of the driver programs into this directory
        #[arg(long, value_name = "DIR", conflicts_with = "command")]
        out: Option<PathBuf>,
    },
    #[command(name = "__trial", hide = true)]
    Trial {
        /// Which trial `doctor` wants made in a process of its own
        what: String,
        dir: Option<PathBuf>,
    },
}

/// How an image is to be read.
#[derive(Args, Clone, Default)]
pub(crate) struct Reading {
    /// The type of the image; `auto` looks at it. `veduta types` lists them
    #[arg(short = 't', long = "type", value_name = "TYPE", default_value = "auto")]
    pub(crate) type_name: String,
    /// Options, separated by commas, in the words of mount(8). `veduta types TYPE` lists them
    #[arg(short, long, value_name = "LIST")]
    pub(crate) options: Vec<String>,
}

/// `veduta mount`
#[derive(Args)]
pub(crate) struct Mount {
    #[command(flatten)]
    pub(crate) reading: Reading,
    /// Stay in the foreground
    #[arg(short, long)]
    pub(crate) foreground: bool,
    /// Stay in the foreground and log every request
    #[arg(short, long)]
    pub(crate) debug: bool,
    /// An image, a block device, or a partition of either (disk.img#2)
    pub(crate) source: OsString,
    /// The directory on which it is to appear
    pub(crate) dir: PathBuf,
}

/// `veduta umount`
#[derive(Args)]
pub(crate) struct Umount {
    /// Detach at once, even if it is in use; the server ends when the last user does
    #[arg(short, long)]
    pub(crate) lazy: bool,
    /// The directory on which it is mounted
    #[arg(required = true)]
    pub(crate) dirs: Vec<PathBuf>,
}

/// `veduta info`
#[derive(Args)]
pub(crate) struct Info {
    #[command(flatten)]
    pub(crate) reading: Reading,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// An image, a block device, or a partition of either
    pub(crate) source: OsString,
}

/// `veduta ls`
#[derive(Args)]
pub(crate) struct Ls {
    #[command(flatten)]
    pub(crate) reading: Reading,
    /// Show mode, links, owner, size and time
    #[arg(short, long)]
    pub(crate) long: bool,
    /// Show names that begin with a dot
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Show the directory itself, not what it holds
    #[arg(short, long)]
    pub(crate) directory: bool,
    /// Go down into directories
    #[arg(short = 'R', long)]
    pub(crate) recursive: bool,
    /// Show inode numbers
    #[arg(short, long)]
    pub(crate) inode: bool,
    /// Show sizes as 1.5K, 2M
    #[arg(short = 'H', long = "human-readable")]
    pub(crate) human: bool,
    /// Print JSON, one object a line
    #[arg(long)]
    pub(crate) json: bool,
    /// IMAGE or IMAGE:PATH
    #[arg(required = true, value_name = "IMAGE[:PATH]")]
    pub(crate) paths: Vec<OsString>,
}

/// `veduta cat`
#[derive(Args)]
pub(crate) struct Cat {
    #[command(flatten)]
    pub(crate) reading: Reading,
    /// IMAGE:PATH
    #[arg(required = true, value_name = "IMAGE:PATH")]
    pub(crate) paths: Vec<OsString>,
}

/// `veduta cp`
#[derive(Args)]
pub(crate) struct Cp {
    #[command(flatten)]
    pub(crate) reading: Reading,
    /// Copy directories and what they hold
    #[arg(short, long)]
    pub(crate) recursive: bool,
    /// As -r, and keep owners, extended attributes and device nodes too
    #[arg(short, long)]
    pub(crate) archive: bool,
    /// Say each name
    #[arg(short, long)]
    pub(crate) verbose: bool,
    /// What to copy: IMAGE:PATH, one or more; then where to: a file or directory of this system
    #[arg(required = true, num_args = 2.., value_name = "IMAGE:PATH... DEST")]
    pub(crate) paths: Vec<OsString>,
}

/// `veduta disk`
#[derive(Args)]
pub(crate) struct Disk {
    /// What to do with a disk
    #[command(subcommand)]
    pub(crate) command: DiskCommand,
}

/// The commands of `veduta disk`.
#[derive(Subcommand)]
pub(crate) enum DiskCommand {
    /// List the partitions of a disk, with what each holds
    ///
    /// For each partition its number, start, size, type, name, UUID, and the filesystem in it with its label and how much of it is used, where
    /// that is a type that can be mounted. A disk without a table is one line.
    List {
        /// Options of the source, as for `veduta mount`
        #[arg(short, long, value_name = "LIST")]
        options: Vec<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// An image or a block device
        source: OsString,
    },
    /// Make an empty image
    #[command(after_help = "\
EXAMPLES
  veduta disk create -f qcow2 20G disk.qcow2
  veduta disk create -f qcow2 -b base.qcow2 work.qcow2    as large as what is below it")]
    Create {
        /// raw, qcow2, vdi, vhd, vhd-fixed, vhdx or vmdk
        #[arg(short, long, default_value = "raw")]
        format: String,
        /// The image below it, which stays as it is (qcow2)
        #[arg(short, long, value_name = "FILE")]
        backing: Option<OsString>,
        /// The size, such as 64M or 20G (may be left out with -b), and the file
        #[arg(required = true, num_args = 1..=2, value_name = "[SIZE] FILE")]
        words: Vec<OsString>,
    },
    /// Copy a disk into a new image, perhaps of another format
    ///
    /// Copies what may hold something other than zeros. SOURCE is anything that can be mounted: an image of any format, a partition of one, a block
    /// device. DEST must not exist, and is there only when it is complete.
    Convert {
        /// The format of DEST: raw, qcow2, vdi, vhd, vhd-fixed, vhdx or vmdk
        #[arg(short = 'f', long)]
        to: String,
        /// Options of the source, as for `veduta mount`
        #[arg(short, long, value_name = "LIST")]
        options: Vec<String>,
        /// An image, a block device, or a partition of either
        source: OsString,
        /// The image to be made
        dest: PathBuf,
    },
    /// Serve a disk to QEMU and others by the NBD protocol, until told to end
    ///
    /// Serves on a Unix socket, which appears when the disk is ready, to any number of clients. SIGINT or SIGTERM ends it: the disk is flushed and the socket
    /// removed.
    #[command(after_help = "\
EXAMPLE
  veduta disk serve --nbd /tmp/disk.sock disk.vhdx &
  qemu-img convert -O raw nbd+unix:///?socket=/tmp/disk.sock disk.img")]
    Serve {
        /// The socket
        #[arg(long, value_name = "SOCKET")]
        nbd: PathBuf,
        /// Let nobody change it
        #[arg(short, long)]
        read_only: bool,
        /// End when the first client has left
        #[arg(long)]
        once: bool,
        /// Options of the source, as for `veduta mount`
        #[arg(short, long, value_name = "LIST")]
        options: Vec<String>,
        /// An image, a block device, or a partition of either
        source: OsString,
    },
}

/// `veduta doctor`
#[derive(Args)]
pub(crate) struct Doctor {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `veduta encfs`
#[derive(Subcommand)]
pub(crate) enum EncfsCommand {
    /// Make an encrypted directory
    ///
    /// DIR is an empty directory. The master key of the new volume is random; it is stored in DIR/gocryptfs.conf, encrypted
    /// under the password, and shown once if standard error is a terminal.
    ///
    /// With --reverse, DIR is a directory of plain files, and gets a .gocryptfs.reverse.conf: `-o reverse` then mounts an
    /// encrypted view of it, for backups to untrusted places.
    #[command(after_help = "\
EXAMPLES
  veduta encfs init ~/cipher
  veduta encfs init --passfile pw --cipher xchacha ~/cipher
  veduta encfs init --reverse ~/documents")]
    Init(EncfsInit),
    /// Change the password of an encrypted directory
    ///
    /// Only the configuration is written anew, in one step: files are encrypted under the master key, which stays the same. Who
    /// knew the old password and kept the old configuration still has the key.
    #[command(after_help = "\
EXAMPLES
  veduta encfs passwd ~/cipher
  veduta encfs passwd --master-key ~/cipher      when the password is forgotten, and the master key is on paper")]
    Passwd(EncfsPasswd),
    /// Tell how a directory is encrypted; needs no password
    Info(EncfsInfo),
    /// Read everything in an encrypted directory, and say what is damaged
    ///
    /// Nothing is changed. Each file, link, name and attribute that cannot be decrypted is named, files with the number of each
    /// damaged block. The exit status is 32 if there is any.
    Fsck(EncfsFsck),
}

/// Where a password comes from, if not from the terminal.
#[derive(Args)]
pub(crate) struct Secrets {
    /// Take the password from the first line of a file
    #[arg(long, value_name = "FILE")]
    pub(crate) passfile: Option<OsString>,
    /// Take the password from the first line that a command prints; the shell runs it
    #[arg(long, value_name = "COMMAND", conflicts_with = "passfile")]
    pub(crate) extpass: Option<OsString>,
}

/// What encrypts content.
#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum EncfsCipher {
    /// AES-256-GCM, the fastest on processors with AES
    AesGcm,
    /// AES-SIV, which forgives a nonce that comes twice; for reverse volumes
    AesSiv,
    /// XChaCha20-Poly1305, for processors without AES
    Xchacha,
}

/// Formats of new volumes.
#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum EncfsFormat {
    /// That of gocryptfs 2
    Gocryptfs,
    /// That of EncFS 1.9 in standard mode, whose security is dated
    Encfs,
    /// That of EncFS 1.9 in paranoia mode: block checksums, longer keys; no hard links
    EncfsParanoia,
}

/// `veduta encfs init`
#[derive(Args)]
pub(crate) struct EncfsInit {
    #[command(flatten)]
    pub(crate) secrets: Secrets,
    /// The format. The options below are for gocryptfs
    #[arg(long, value_name = "FORMAT", default_value = "gocryptfs")]
    pub(crate) format: EncfsFormat,
    /// Milliseconds that a guess of the password takes on this machine, for the formats of EncFS
    #[arg(long, value_name = "MS", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub(crate) kdf_time: u32,
    /// What encrypts the content; aes-gcm if not given, aes-siv with --reverse
    #[arg(long, value_name = "CIPHER")]
    pub(crate) cipher: Option<EncfsCipher>,
    /// Do not encrypt names, targets of symbolic links
    #[arg(long)]
    pub(crate) plaintext_names: bool,
    /// Encrypt equal names equally in all directories, which then need no file of their own
    #[arg(long, conflicts_with = "plaintext_names")]
    pub(crate) deterministic_names: bool,
    /// Store names that are longer than this, encrypted, as a hash
    #[arg(long, value_name = "BYTES", default_value_t = 255, value_parser = clap::value_parser!(u8).range(62..=255), conflicts_with = "plaintext_names")]
    pub(crate) long_name_max: u8,
    /// How costly a guess of the password is: the logarithm of scrypt's N, 10 to 21. 16 takes 64 MiB and a fraction of a second
    #[arg(long, value_name = "LOG", default_value_t = veduta_encfs::gocryptfs::DEFAULT_LOG_N, value_parser = clap::value_parser!(u8).range(10..=21))]
    pub(crate) scrypt_cost: u8,
    /// Make a volume for an encrypted view of the plain files in DIR
    #[arg(long)]
    pub(crate) reverse: bool,
    /// Ask for a master key, for a volume whose configuration was lost; its other options must be given as they were
    #[arg(long)]
    pub(crate) master_key: bool,
    /// Take the master key from the first line of a file
    #[arg(long, value_name = "FILE", requires = "master_key")]
    pub(crate) master_key_file: Option<OsString>,
    /// The directory
    pub(crate) dir: OsString,
}

/// `veduta encfs passwd`
#[derive(Args)]
pub(crate) struct EncfsPasswd {
    #[command(flatten)]
    pub(crate) secrets: Secrets,
    /// Take the new password from the first line of a file
    #[arg(long, value_name = "FILE")]
    pub(crate) new_passfile: Option<OsString>,
    /// Take the new password from the first line that a command prints
    #[arg(long, value_name = "COMMAND", conflicts_with = "new_passfile")]
    pub(crate) new_extpass: Option<OsString>,
    /// What is asked for, or read, is the master key and not the old password
    #[arg(long)]
    pub(crate) master_key: bool,
    /// How costly a guess is to be (see init); as it was if not given
    #[arg(long, value_name = "LOG", value_parser = clap::value_parser!(u8).range(10..=21))]
    pub(crate) scrypt_cost: Option<u8>,
    /// The volume is a reverse one
    #[arg(long)]
    pub(crate) reverse: bool,
    /// The directory
    pub(crate) dir: OsString,
}

/// `veduta encfs info`
#[derive(Args)]
pub(crate) struct EncfsInfo {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// The volume is a reverse one
    #[arg(long)]
    pub(crate) reverse: bool,
    /// The directory
    pub(crate) dir: OsString,
}

/// `veduta encfs fsck`
#[derive(Args)]
pub(crate) struct EncfsFsck {
    #[command(flatten)]
    pub(crate) secrets: Secrets,
    /// What is asked for, or read, is the master key
    #[arg(long)]
    pub(crate) master_key: bool,
    /// The directory
    pub(crate) dir: OsString,
}

/// `veduta types`
#[derive(Args)]
pub(crate) struct Types {
    /// The type whose options to show
    pub(crate) type_name: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `veduta run`.
#[derive(Args)]
pub(crate) struct Run {
    /// Mount this before the command starts: TYPE:SOURCE:TARGET[:OPTIONS], a colon within written `\:`
    ///
    /// TYPE is one of `veduta types`, `auto`, or `bind`, which shows a file or a directory in another place. May be given
    /// several times; each sees those before it.
    #[arg(long = "mount", short = 'm', value_name = "MOUNT")]
    pub(crate) mounts: Vec<OsString>,
    /// Try it and keep it or throw it away: whatever the command changes goes to this directory, and nowhere else
    ///
    /// A copy-on-write mount over / (or what --over names); /proc, /sys, /dev and DIR itself stay as they are. Afterwards: `veduta
    /// diff DIR`, `veduta commit DIR`, `veduta discard DIR`, `veduta export DIR`.
    #[arg(long, value_name = "DIR")]
    pub(crate) cow: Option<PathBuf>,
    /// With --cow: what is written over; / if not given. With several, the changes of PATH go to DIR/PATH; `veduta diff DIR` and its like
    /// take them together
    #[arg(long, value_name = "PATH", requires = "cow")]
    pub(crate) over: Vec<PathBuf>,
    /// Run this script in the view before the command, in place of ~/.vedutarc and /etc/vedutarc
    #[arg(long, value_name = "FILE", conflicts_with = "no_rc")]
    pub(crate) rc: Option<PathBuf>,
    /// Run no script before the command
    #[arg(long, short = 'N')]
    pub(crate) no_rc: bool,
    /// The name of the view
    #[arg(long, short = 'V')]
    pub(crate) name: Option<String>,
    /// Report calls on standard error: families (path, file, mount, exec, all) or names of calls, with commas between
    #[arg(long, value_name = "FILTER")]
    pub(crate) trace: Option<String>,
    /// Tell all programs of the view that they are run by root
    ///
    /// They may become other users, change groups and capabilities, and call chroot(2). Mounted images go by who a
    /// program is told to be: root may do everything there, others what the permission bits say, and files belong to
    /// who made them. So a system in an image can be installed, changed and used. On the host, what programs may do
    /// stays the same.
    #[arg(long)]
    pub(crate) root: bool,
    /// The command, and its arguments
    #[arg(trailing_var_arg = true)]
    pub(crate) command: Vec<OsString>,
}
/// Which upper layer, over which others.
#[derive(Args)]
pub(crate) struct OneLayer {
    /// A layer below, the topmost first; by default those that DIR was last mounted over
    #[arg(long, value_name = "DIR")]
    pub(crate) lower: Vec<PathBuf>,
    /// The upper layer, or @NAME
    pub(crate) dir: PathBuf,
}

/// `veduta diff`
#[derive(Args)]
pub(crate) struct Diff {
    /// Show how many bytes each file had and has, and the sums
    #[arg(long, conflicts_with_all = ["json", "patch"])]
    pub(crate) stat: bool,
    /// Print JSON, one object a line
    #[arg(long, conflicts_with = "patch")]
    pub(crate) json: bool,
    /// Show how text files differ, as a unified diff
    #[arg(short, long)]
    pub(crate) patch: bool,
    #[command(flatten)]
    pub(crate) layer: OneLayer,
    /// Only these paths, and what is below them
    pub(crate) paths: Vec<PathBuf>,
}

/// `veduta commit`
#[derive(Args)]
pub(crate) struct Commit {
    /// Only say what would be done
    #[arg(short = 'n', long)]
    pub(crate) dry_run: bool,
    /// Also over what was changed below since
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) layer: OneLayer,
    /// Only these paths, and what is below them
    pub(crate) paths: Vec<PathBuf>,
}

/// `veduta discard`
#[derive(Args)]
pub(crate) struct Discard {
    /// The upper layer, or @NAME
    pub(crate) dir: PathBuf,
    /// Only these paths, and what is below them
    pub(crate) paths: Vec<PathBuf>,
}

/// `veduta export`
#[derive(Args)]
pub(crate) struct Export {
    /// The archive to make: compressed if it ends in .zst; - is standard output
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Leave holes of files out, in the form of GNU tar. Layers of container images should have none: docker and podman unpack such files, but
    /// cannot make the same archive of them again
    #[arg(long)]
    pub(crate) sparse: bool,
    #[command(flatten)]
    pub(crate) layer: OneLayer,
}

/// `veduta import`
#[derive(Args)]
pub(crate) struct Import {
    #[command(flatten)]
    pub(crate) layer: OneLayer,
    /// The archive, compressed with zstd or not; - is standard input
    pub(crate) archive: PathBuf,
}

/// `veduta layer`
#[derive(Subcommand)]
pub(crate) enum LayerAction {
    /// Make an empty layer
    Create {
        /// What it is to lie over: a directory, or @NAME for another layer and what that lies over; the topmost first
        #[arg(long, value_name = "DIR", required = true)]
        over: Vec<PathBuf>,
        /// Its name
        name: String,
    },
    /// List layers, and what they lie over
    List {
        /// Print JSON, one object a line
        #[arg(long)]
        json: bool,
    },
    /// Print where a layer is
    Path {
        /// Its name
        name: String,
    },
    /// Copy a layer; content is shared where the filesystem can
    Clone {
        /// The name of the layer
        name: String,
        /// The name of the copy
        copy: String,
    },
    /// Remove a layer with all that was changed in it
    Delete {
        /// Its name
        name: String,
    },
}
