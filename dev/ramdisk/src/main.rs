//! `umdevramdisk -o size=64M none DIR`: a disk in memory as files of an ordinary FUSE mount.

fn main() -> std::process::ExitCode {
    veduta_fuse::driver_main(&veduta_ramdisk::Ramdisk)
}
