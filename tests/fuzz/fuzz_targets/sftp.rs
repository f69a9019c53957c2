//! Whatever a host could do with an SFTP server, on replies that lie.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = veduta_tests::target("sftp", data);
});
