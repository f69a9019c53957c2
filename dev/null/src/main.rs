//! `umdevnull none DIR`: a disk that keeps nothing, as a file of an ordinary FUSE mount.

fn main() -> std::process::ExitCode {
    veduta_fuse::driver_main(&veduta_null::Null)
}
