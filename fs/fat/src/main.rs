//! `umfusefat IMAGE DIR`: FAT and exFAT as an ordinary FUSE program.

fn main() -> std::process::ExitCode {
    veduta_fuse::driver_main(&veduta_fat::Fat)
}
