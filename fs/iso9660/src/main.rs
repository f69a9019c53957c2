//! `umfuseiso9660 IMAGE DIR`: ISO 9660 discs as an ordinary FUSE program.

fn main() -> std::process::ExitCode {
    veduta_fuse::driver_main(&veduta_iso9660::Iso9660)
}
