//! The extent map against an array.

use super::*;
use cairn_proto::ReplicaSetId;
use proptest::prelude::*;

const SIZE: u64 = 200;

fn info() -> ChunkInfo {
    ChunkInfo { set: ReplicaSetId::new(1).unwrap(), length: SIZE, missing: Vec::new() }
}

#[derive(Debug, Clone)]
enum Op {
    Insert(u64, u64, u64),
    Resize(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..SIZE - 50, 1u64..50, 1u64..1000).prop_map(|(at, len, chunk)| Op::Insert(at, len, chunk)),
        1 => (0..SIZE).prop_map(Op::Resize),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Cell {
    Unknown,
    Hole,
    Data(u64, u64),
}

proptest! {
    #[test]
    fn parts_describe_every_byte_once(start_known in any::<bool>(), ops in prop::collection::vec(op(), 0..40)) {
        let mut map = ExtentMap::default();
        if start_known {
            map.empty();
        }
        let mut model = vec![if start_known { Cell::Hole } else { Cell::Unknown }; SIZE as usize];
        for op in ops {
            match op {
                Op::Insert(at, len, chunk) => {
                    let id = ChunkId::new(chunk).unwrap();
                    let range = ByteRange::new(at, len).unwrap();
                    map.insert(Extent { range, chunk: id, chunk_offset: at + 7 }, &info());
                    for i in at..at + len {
                        model[i as usize] = Cell::Data(chunk, i + 7);
                    }
                }
                Op::Resize(size) => {
                    map.resize(SIZE, size);
                    model[size as usize..].fill(Cell::Hole);
                }
            }
            let mut seen = Vec::new();
            for part in map.parts(ByteRange::between(0, SIZE).unwrap()) {
                let (range, cell): (ByteRange, Box<dyn Fn(u64) -> Cell>) = match part {
                    Part::Hole(range) => (range, Box::new(|_| Cell::Hole)),
                    Part::Unknown(range) => (range, Box::new(|_| Cell::Unknown)),
                    Part::Data(extent) => {
                        prop_assert!(map.chunk(extent.chunk).is_some());
                        let (chunk, shift) = (extent.chunk.get(), extent.chunk_offset - extent.range.start());
                        (extent.range, Box::new(move |at| Cell::Data(chunk, at + shift)))
                    }
                };
                prop_assert_eq!(range.start(), seen.len() as u64);
                seen.extend((range.start()..range.end()).map(cell));
            }
            prop_assert_eq!(&seen, &model);
        }
    }
}

#[test]
fn a_file_of_many_extents_takes_its_part_of_the_memory_and_no_more() {
    let tally = crate::tally::Tally::new(4 << 20);
    let mut map = ExtentMap::new(tally.begin());
    let insert = |map: &mut ExtentMap, index: u64| {
        let range = ByteRange::new(index * 8192, 1).unwrap();
        let chunk = ChunkId::new(index / 100 + 1).unwrap();
        map.insert(Extent { range, chunk, chunk_offset: index % 100 }, &info());
        range
    };
    let mut most = 0;
    for index in 0..200_000 {
        let range = insert(&mut map, index);
        assert!(matches!(map.parts(range)[..], [Part::Data(_)]), "the newest is known");
        assert!(tally.bytes() <= 2 << 20, "{} bytes after {index} extents", tally.bytes());
        most = most.max(map.extents.len());
    }
    assert!(most > 10_000, "it makes use of its part: {most} extents");
    map.clear();
    assert_eq!(tally.bytes(), 0);
    insert(&mut map, 1);
    assert!(tally.bytes() > 0, "it is counted as before");
    drop(map);
    assert_eq!(tally.bytes(), 0);
}
