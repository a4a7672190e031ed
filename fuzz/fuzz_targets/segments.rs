//! Damages a segment file as the input says, and opens it again.
#![no_main]

mod memory_disk;

use std::sync::{Arc, OnceLock};

use cairn_datanode::fuzzing;
use memory_disk::MemoryDisk;

/// Filled stores, one closed in order and one that was not, made once and damaged in copies.
static FILLED: OnceLock<[MemoryDisk; 2]> = OnceLock::new();

fn filled() -> &'static [MemoryDisk; 2] {
    FILLED.get_or_init(|| {
        [true, false].map(|clean| {
            let disk = MemoryDisk::default();
            if let Err(error) = fuzzing::fill(Arc::new(disk.clone()), clean) {
                panic!("a sound disk was refused: {error}");
            }
            assert!(fuzzing::open_damaged(Arc::new(disk.copy())), "a sound store can not be opened");
            disk
        })
    })
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((&first, mut rest)) = data.split_first() else { return };
    let disk = filled()[usize::from(first & 1)].copy();
    let path = fuzzing::segment_file();
    if first & 2 != 0 {
        // The whole file is what the input says.
        disk.replace(&path, rest.to_vec());
        rest = &[];
    }
    // Each edit: where (in steps of 8 bytes), how, and with what.
    while let Some((edit, tail)) = rest.split_first_chunk::<5>() {
        let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) * 8 + usize::from(edit[2] >> 5);
        match edit[2] & 3 {
            0 => disk
                .change(&path, |bytes| bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= edit[3])),
            1 => disk.change(&path, |bytes| {
                bytes.iter_mut().skip(at).take(usize::from(edit[4]) + 1).for_each(|byte| *byte = edit[3]);
            }),
            2 => disk.change(&path, |bytes| bytes.truncate(at)),
            _ => disk.change(&path, |bytes| {
                // A page from elsewhere, as a misdirected write leaves it.
                let page = |number: usize| number * 4096..(number + 1) * 4096;
                let (from, to) = (page(usize::from(edit[3])), page(usize::from(edit[4])));
                if from.end <= bytes.len() && to.end <= bytes.len() {
                    bytes.copy_within(from, to.start);
                }
            }),
        }
        rest = tail;
    }
    fuzzing::open_damaged(Arc::new(disk));
});
