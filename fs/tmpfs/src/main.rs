//! `umfusetmpfs none DIR`: a tree in memory as an ordinary FUSE program.

fn main() -> std::process::ExitCode {
    veduta_fuse::driver_main(&veduta_tmpfs::Tmpfs)
}
