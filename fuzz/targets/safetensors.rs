//! `cargo fuzz run safetensors`: see `llamaduo_tests::fuzz::safetensors`.
//!
//! Invariant: nothing but the call, so that the short run of the tests does the same.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| llamaduo_tests::fuzz::safetensors(bytes));
