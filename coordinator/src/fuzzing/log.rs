//! Files of the shipped log as a damaged or hostile place may give them: what is taken for a record encodes
//! to the very bytes that it was read from, and so do the rows in it.

use bytes::{BufMut, BytesMut};

use super::Input;
use crate::archive::file::{
    FileHeader, HEADER_SIZE, Parsed, RECORD_SIZE, Record, RecordKind, parse, parse_name,
};
use crate::archive::record::{decode_batch, encode_batch};

/// Reads bytes as a name, as a header, as records, and as the body of a commit.
///
/// The checksums of a record can not be hit by chance: an input may ask for a record with a sound frame
/// around a body that is anything.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    match input.byte() % 4 {
        0 => header(input.0),
        1 => records(input.0),
        2 => framed(&mut input),
        _ => body(input.0),
    }
}

fn header(bytes: &[u8]) {
    if let Ok(name) = std::str::from_utf8(bytes) {
        let _ = parse_name(name);
    }
    if let Ok(header) = FileHeader::decode(bytes) {
        let covered = HEADER_SIZE - 4;
        assert_eq!(header.encode()[..covered], bytes[..covered], "a header that does not come back");
    }
}

fn records(mut bytes: &[u8]) {
    loop {
        match parse(bytes) {
            Parsed::Record { record, digest, size } => {
                let (front, rest) = bytes.split_at(size);
                same(&record, digest, front);
                body(&record.body);
                bytes = rest;
            }
            Parsed::Short(need) => {
                assert!(need > bytes.len(), "{need} bytes are asked for, {} are there", bytes.len());
                return;
            }
            Parsed::Bad(_) => return,
        }
    }
}

fn same(record: &Record, digest: u64, bytes: &[u8]) {
    let mut again = BytesMut::new();
    assert_eq!(record.encode(&mut again), digest, "another digest");
    assert_eq!(again, bytes, "a record that does not come back");
}

/// A record whose frame is sound, cut and flipped as the input says.
fn framed(input: &mut Input<'_>) {
    let kind = [RecordKind::Commit, RecordKind::Rows, RecordKind::End][usize::from(input.byte() % 3)];
    let (sequence, flip, cut) = (input.number(), input.below(1 << 16) as usize, input.byte());
    let content = bytes::Bytes::copy_from_slice(input.0);
    let record = Record { kind, sequence, time_ns: 1, previous: 2, body: content };
    let mut bytes = BytesMut::new();
    let digest = record.encode(&mut bytes);
    let size = bytes.len();
    assert_eq!(size, RECORD_SIZE + record.body.len());
    assert_eq!(parse(&bytes), Parsed::Record { record, digest, size }, "a record that is not read");
    records(&bytes);
    match cut % 3 {
        0 => {
            bytes[flip / 8 % size] ^= 1 << (flip % 8);
            assert!(!matches!(parse(&bytes), Parsed::Record { .. }), "a flipped bit is taken");
        }
        1 => assert!(matches!(parse(&bytes[..flip % size]), Parsed::Short(_)), "a cut record is taken"),
        _ => {
            bytes.put_slice(input.0);
            records(&bytes);
        }
    }
}

fn body(bytes: &[u8]) {
    let Some(batch) = decode_batch(bytes) else { return };
    let mut again = BytesMut::new();
    encode_batch(&batch, &mut again);
    let read = decode_batch(&again);
    let same = read.is_some_and(|read| (read.puts, read.deletes) == (batch.puts, batch.deletes));
    assert!(same, "a commit that does not come back");
}
