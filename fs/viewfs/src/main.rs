//! `umviewfs SOURCE DIR`: trees laid over each other, as an ordinary FUSE program.

fn main() -> std::process::ExitCode {
    veduta_fuse::driver_main(&veduta_viewfs::Viewfs)
}
