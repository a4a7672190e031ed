//! What `cairn up` keeps in its data directory besides the data: how many datanodes there are,
//! their ports, and what runs at the moment.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::failure::{Context, Failure};
use crate::notes::{self, Ready};

/// Layout of [`State`]; a file with a higher one is refused.
const STATE_VERSION: u32 = 1;
/// Copies that are kept when there are enough datanodes.
const REPLICAS_DEFAULT: u32 = 3;
/// Datanodes unless told otherwise.
const DATANODES_DEFAULT: u32 = 3;
/// Copies that must be stored before a write is acknowledged, where there are as many datanodes.
const MIN_REPLICAS: u32 = 2;

/// The file `up.json` in the data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// Layout of this file.
    pub version: u32,
    /// Where the cluster is mounted.
    pub directory: PathBuf,
    /// How many datanodes the data was made with.
    pub datanodes: u32,
    /// Copies of each chunk.
    pub replicas: u32,
    /// The supervisor, when it runs.
    pub pid: u32,
    /// The services as they last were, by name.
    pub services: BTreeMap<String, Ready>,
}

impl State {
    fn path(data: &Path) -> PathBuf {
        data.join("up.json")
    }

    /// What an earlier `cairn up` has left; `None` for new data.
    pub(crate) fn read(data: &Path) -> Result<Option<Self>, Failure> {
        let path = Self::path(data);
        if !path.exists() {
            return Ok(None);
        }
        let what = format!("use the data in {}", data.display());
        match notes::read::<Self>(&path) {
            Some(state) if state.version > STATE_VERSION => {
                let why = format!("up.json has version {}, {STATE_VERSION} is known here", state.version);
                Err(Failure::new(what, why).next("use the newer cairn that wrote it, or another --data"))
            }
            Some(state) => Ok(Some(state)),
            None => Err(Failure::new(what, "up.json there can not be read")
                .next("remove that file (ports and the number of datanodes are forgotten, data is not), or use another --data")),
        }
    }

    /// Merges what is asked for with what is there.
    pub(crate) fn plan(
        found: Option<Self>,
        directory: &Path,
        datanodes: Option<u32>,
        replicas: Option<u32>,
    ) -> Result<Self, Failure> {
        let had = found.as_ref().map_or(0, |state| state.datanodes);
        let nodes = datanodes.unwrap_or(if had == 0 { DATANODES_DEFAULT } else { had });
        if nodes < had {
            let why =
                format!("this data was made with {had} datanodes, and {nodes} would leave some of it behind");
            return Err(Failure::usage("--datanodes", why)
                .next(format!("use --datanodes {had} or more, or another --data")));
        }
        let usual = REPLICAS_DEFAULT.min(nodes);
        let replicas =
            replicas.unwrap_or_else(|| found.as_ref().map_or(usual, |state| state.replicas.max(usual)));
        if replicas > nodes {
            let why = format!("{replicas} copies need as many datanodes, and there are {nodes}");
            return Err(Failure::usage("--replicas", why).next("use more --datanodes"));
        }
        Ok(Self {
            version: STATE_VERSION,
            directory: directory.to_owned(),
            datanodes: nodes,
            replicas,
            pid: std::process::id(),
            services: found.map(|state| state.services).unwrap_or_default(),
        })
    }

    /// Copies that must be stored before a write is acknowledged.
    pub(crate) fn min_replicas(&self) -> u32 {
        MIN_REPLICAS.min(self.replicas)
    }

    /// Writes the file.
    pub(crate) fn write(&self, data: &Path) -> Result<(), Failure> {
        let path = Self::path(data);
        notes::write(&path, self).doing(format!("write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_datanodes_than_the_data_has_are_refused() {
        let at = Path::new("/mnt");
        let first = State::plan(None, at, None, None).unwrap();
        assert_eq!((first.datanodes, first.replicas, first.min_replicas()), (3, 3, 2));
        assert!(State::plan(Some(first.clone()), at, Some(2), None).is_err());
        let more = State::plan(Some(first), at, Some(5), None).unwrap();
        assert_eq!((more.datanodes, more.replicas), (5, 3));
        let one = State::plan(None, at, Some(1), None).unwrap();
        assert_eq!((one.replicas, one.min_replicas()), (1, 1));
        assert!(State::plan(None, at, Some(1), Some(2)).is_err());
    }
}
