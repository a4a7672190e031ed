//! Entry points for the fuzzers of `fuzz/`: they feed arbitrary bytes to what decodes frames from the
//! network and segment files from the disk. Compiled with the feature `fuzzing` alone.
//!
//! Each panics where a promise is broken; any error is fine.

use std::path::PathBuf;
use std::sync::Arc;

use cairn_proto::checksum::{block_crcs, crc32c};
use cairn_proto::{ChunkId, v1};
use cairn_runtime::disk::Disk;
use prost::Message;

use crate::assembly::Assembly;
use crate::store::{DiskStore, Purpose, StoreError, StoreOptions, verify_on_device};

/// Sizes of the chunks in the file that is damaged: below, at and above a block, and several blocks.
const SIZES: [usize; 6] = [1, 4096, 65_536, 65_537, 150_000, 9];
/// Smallest segment, so that opening it is quick.
const OPTIONS: StoreOptions =
    StoreOptions { segment_size: 1 << 20, reserve: 0, sync: true, trash_time: std::time::Duration::ZERO };

/// Feeds frames, each behind its length, to the assembly of one chunk.
pub fn frames(data: &[u8]) {
    let Some((length, mut rest)) = data.split_first_chunk::<4>() else { return };
    let Ok(mut assembly) = Assembly::new(u32::from_le_bytes(*length).into()) else { return };
    while !rest.is_empty() {
        let Ok(mut frame) = v1::StoreFrame::decode_length_delimited(&mut rest) else { return };
        // Nobody guesses a checksum: with one flag the right ones are filled in.
        if frame.abort {
            frame.crc32c = block_crcs(&frame.data);
        }
        let before = assembly.received();
        let taken = assembly.accept(&frame);
        assert!(assembly.received() <= assembly.length(), "more bytes than the chunk has");
        match taken {
            Ok(last) => {
                assert_eq!(u64::from(assembly.received()), u64::from(before) + frame.data.len() as u64);
                assert_eq!(last, assembly.received() == assembly.length());
                if last {
                    return;
                }
            }
            Err(_) => assert_eq!(assembly.received(), before, "a refused frame moved the end"),
        }
    }
}

/// The bytes of one chunk, which tell it from others.
fn content(chunk: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| i.wrapping_mul(chunk | 1).wrapping_add(chunk >> 3).to_le_bytes()[0]).collect()
}

fn chunk(number: u64) -> ChunkId {
    match ChunkId::new(number) {
        Ok(id) => id,
        Err(error) => panic!("{error}"),
    }
}

/// Fills a store on an empty disk with chunks 1 to 6, of which 4 is deleted; closes it in order when
/// `clean`.
///
/// # Errors
/// The disk's.
pub fn fill(disk: Arc<dyn Disk>, clean: bool) -> Result<(), StoreError> {
    let store = DiskStore::open(disk, OPTIONS, Arc::default())?;
    for (number, &len) in (1u64..).zip(&SIZES) {
        let data = content(number, len);
        let mut writer = store.begin(chunk(number), 1, u32::try_from(len).unwrap_or(0), Purpose::New)?;
        writer.write(&data, &block_crcs(&data))?;
        writer.finish()?;
    }
    if let Some((_, error)) = store.delete(&[chunk(4)]).pop() {
        return Err(error);
    }
    if clean {
        store.close();
    }
    Ok(())
}

/// Opens a store that [`fill`] made and something has damaged since. Whatever it still shows must be
/// what was stored, and it must take a new chunk.
///
/// True when it could be opened.
pub fn open_damaged(disk: Arc<dyn Disk>) -> bool {
    let Ok(store) = DiskStore::open(disk, OPTIONS, Arc::default()) else { return false };
    for (number, &len) in (1u64..).zip(&SIZES) {
        let Ok(reader) = store.reader(chunk(number)) else { continue };
        assert!(number != 4 || reader.length() == SIZES[3] as u64, "a deleted chunk came back changed");
        if let Ok(crc) = verify_on_device(reader) {
            assert_eq!(crc, crc32c(&content(number, len)), "chunk {number} has other bytes");
        }
    }
    let added = store.begin(chunk(99), 1, 10, Purpose::New).and_then(|mut writer| {
        let data = content(99, 10);
        writer.write(&data, &block_crcs(&data))?;
        writer.finish()
    });
    match added {
        Ok(()) => {
            let read = store.reader(chunk(99)).and_then(verify_on_device);
            assert_eq!(read.ok(), Some(crc32c(&content(99, 10))), "a new chunk can not be read");
        }
        Err(StoreError::Exists(_)) => panic!("a chunk that was never stored is there"),
        Err(_) => {}
    }
    true
}

/// Where the only segment file of a filled store lies.
pub fn segment_file() -> PathBuf {
    PathBuf::from("segments/00000001.seg")
}
