//! Whatever a host could do with an image of the format vhd, on foreign bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = veduta_tests::target("vhd", data);
});
