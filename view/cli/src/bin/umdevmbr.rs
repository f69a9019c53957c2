//! `umdevmbr DISK DIR`: a disk and its partitions as files of an ordinary FUSE mount.

fn main() -> std::process::ExitCode {
    veduta_fuse::driver_main(&veduta_mbr::Mbr)
}
