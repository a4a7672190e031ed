//! Bytes as files of the shipped metadata log.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cairn_coordinator::fuzzing::log(data));
