//! `umfusessh [USER@]HOST:[DIR] MOUNTPOINT`: a directory of another machine as an ordinary FUSE program.

fn main() -> std::process::ExitCode {
    veduta_fuse::driver_main(&veduta_sshfs::Sshfs)
}
