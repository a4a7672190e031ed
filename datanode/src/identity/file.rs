//! Small files of JSON with a checksum, each put in place of the one before as a whole.
//!
//! The checksum is the CRC-32C of the object without it, as compact JSON with sorted keys. Files of older
//! versions have none: those are taken when they hold nothing but what such versions wrote, so that damage
//! to the name of the checksum's field does not pass for age.

use std::path::Path;

use cairn_proto::checksum::crc32c;
use cairn_runtime::disk::{self, Disk};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::store::StoreError;

/// Longest file that is read.
const FILE_MAX: u64 = 64 << 10;
/// The field of the checksum, eight hexadecimal digits.
const CHECKSUM: &str = "crc32c";

/// Reads a file; `None` when there is none. `old_keys` are those that versions without a checksum wrote.
///
/// `Unusable`, with a sentence: it is damaged.
pub(super) fn read<T: DeserializeOwned>(
    disk: &dyn Disk,
    name: &str,
    old_keys: &[&str],
) -> Result<Option<T>, StoreError> {
    let file = disk::open_if_present(disk, Path::new(name));
    let Some(file) = file.map_err(|source| io(disk, "opening its identity", source))? else {
        return Ok(None);
    };
    let len = file.len().map_err(|source| io(disk, "reading its identity", source))?;
    let mut bytes = vec![0; len.min(FILE_MAX) as usize];
    file.read_at(&mut bytes, 0).map_err(|source| io(disk, "reading its identity", source))?;
    decode(&bytes, old_keys).map(Some).map_err(|why| {
        StoreError::Unusable(format!(
            "{}/{name} is damaged ({why}); restore it from a copy, or move what is in the directory away and start \
             with an empty one: its chunks come from other copies",
            disk.describe()
        ))
    })
}

fn decode<T: DeserializeOwned>(bytes: &[u8], old_keys: &[&str]) -> Result<T, String> {
    let mut fields: Map<String, Value> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    match fields.remove(CHECKSUM) {
        Some(stored) => {
            let found = checksum(&fields)?;
            if stored.as_str() != Some(found.as_str()) {
                return Err(format!("its checksum is {stored}, and \"{found}\" was expected"));
            }
        }
        None => {
            if let Some(key) = fields.keys().find(|key| !old_keys.contains(&key.as_str())) {
                return Err(format!("it has a field {key:?} and no field {CHECKSUM:?}"));
            }
        }
    }
    serde_json::from_value(Value::Object(fields)).map_err(|error| error.to_string())
}

fn checksum(fields: &Map<String, Value>) -> Result<String, String> {
    let bytes = serde_json::to_vec(fields).map_err(|error| error.to_string())?;
    Ok(format!("{:08x}", crc32c(&bytes)))
}

fn encode(value: &impl Serialize) -> Result<Vec<u8>, String> {
    let Value::Object(mut fields) = serde_json::to_value(value).map_err(|error| error.to_string())? else {
        return Err("it has no fields".into());
    };
    let checksum = checksum(&fields)?;
    fields.insert(CHECKSUM.into(), checksum.into());
    serde_json::to_vec_pretty(&fields).map_err(|error| error.to_string())
}

/// Puts a file in place of another. Durable on return.
pub(super) fn replace(disk: &dyn Disk, name: &str, value: &impl Serialize) -> Result<(), StoreError> {
    let bytes =
        encode(value).map_err(|error| StoreError::Unusable(format!("{name} can not be encoded: {error}")))?;
    disk::replace(disk, name, &bytes).map_err(|source| io(disk, "writing its identity", source))
}

pub(super) fn io(disk: &dyn Disk, doing: &'static str, source: std::io::Error) -> StoreError {
    StoreError::Io { disk: disk.describe(), doing, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Sample {
        term: u64,
        node: Option<String>,
    }

    #[test]
    fn no_flipped_bit_is_taken_for_another_value() {
        let sample = Sample { term: 77, node: Some("00ff".into()) };
        let bytes = encode(&sample).unwrap();
        assert_eq!(decode::<Sample>(&bytes, &[]), Ok(Sample { term: 77, node: Some("00ff".into()) }));
        let mut refused = 0;
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            match decode::<Sample>(&flipped, &["term", "node"]) {
                // A blank in place of another.
                Ok(found) => assert_eq!(found, sample, "bit {bit}"),
                Err(_) => refused += 1,
            }
        }
        assert!(refused > bytes.len() * 6, "{refused} of {} flips were refused", bytes.len() * 8);
    }

    #[test]
    fn files_of_older_versions_have_no_checksum() {
        let read = |text: &str| decode::<Sample>(text.as_bytes(), &["term", "node"]);
        assert_eq!(read(r#"{"term":3,"node":null}"#), Ok(Sample { term: 3, node: None }));
        let error = read(r#"{"term":3,"node":null,"crc32b":"00000000"}"#).unwrap_err();
        assert!(error.contains("crc32b"), "{error}");
        let error = read(r#"{"term":3,"node":null,"crc32c":7}"#).unwrap_err();
        assert!(error.contains("expected"), "{error}");
    }
}
