//! What a client could send to the NBD server.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = veduta_tests::target("nbd", data);
});
