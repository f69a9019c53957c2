//! Whatever a host could do with an image of the format vdi, on foreign bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = veduta_tests::target("vdi", data);
});
