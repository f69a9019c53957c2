//! `umfuseext2 IMAGE DIR`: ext2, ext3 and ext4 as an ordinary FUSE program.

fn main() -> std::process::ExitCode {
    veduta_fuse::driver_main(&veduta_ext2::Ext2)
}
