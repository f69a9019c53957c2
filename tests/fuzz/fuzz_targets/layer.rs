//! An archive that is imported into a layer, on foreign bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = veduta_tests::target("layer", data);
});
