#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cairn_datanode::fuzzing::frames(data));
