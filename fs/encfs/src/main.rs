//! `umfuseencfs CIPHERDIR DIR`: encrypted directories as an ordinary FUSE program.

fn main() -> std::process::ExitCode {
    veduta_fuse::driver_main(&veduta_encfs::Encfs)
}
