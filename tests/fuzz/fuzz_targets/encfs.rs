//! Whatever a host could do with an encrypted directory, on foreign bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = veduta_tests::target("encfs", data);
});
