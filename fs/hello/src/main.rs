//! `umfusehello none DIR`: the smallest driver as an ordinary FUSE program.

fn main() -> std::process::ExitCode {
    veduta_fuse::driver_main(&veduta_hello::Hello)
}
