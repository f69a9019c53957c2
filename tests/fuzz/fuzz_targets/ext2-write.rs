//! Whatever a host could change on an image of type ext2, on foreign bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = veduta_tests::target("ext2-write", data);
});
