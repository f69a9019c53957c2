//! Whatever a host could do with an image of type iso9660, on foreign bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = veduta_tests::target("iso9660", data);
});
