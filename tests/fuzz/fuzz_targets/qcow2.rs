//! Whatever a host could do with an image of the format qcow2, on foreign bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = veduta_tests::target("qcow2", data);
});
