//! Marks and stores in a layer of a merged tree, on foreign bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = veduta_tests::target("viewfs", data);
});
