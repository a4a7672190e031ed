//! The rows of the metadata store: one struct for each table, with its key.
//!
//! The macro derives from each definition the struct, its variant of [`Row`] and [`Key`], its SQL
//! columns and the way back from them. Ids are positive, times are nanoseconds since the Unix
//! epoch, sizes are bytes.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use cairn_proto::{ChunkId, ClusterId, InodeId, NodeId, ReplicaSetId, SessionId};

use super::value::{Column, Columns, Value, ValueRef};

/// A row of one particular table.
pub(crate) trait Record: Sized + Into<Row> {
    /// `None` when it is a row of another table.
    fn from_row(row: Row) -> Option<Self>;
}

macro_rules! tables {
    ($(
        $(#[$doc:meta])*
        $name:ident = $sql:literal {
            key { $($(#[$key_doc:meta])* $key:ident: $key_type:ty,)+ }
            $($(#[$field_doc:meta])* $field:ident: $field_type:ty,)*
        }
    )*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, PartialEq, Eq)]
            pub(crate) struct $name {
                $($(#[$key_doc])* pub(crate) $key: $key_type,)+
                $($(#[$field_doc])* pub(crate) $field: $field_type,)*
            }

            impl Record for $name {
                fn from_row(row: Row) -> Option<Self> {
                    if let Row::$name(row) = row { Some(row) } else { None }
                }
            }

            impl From<$name> for Row {
                fn from(row: $name) -> Self {
                    Self::$name(row)
                }
            }
        )*

        /// A table of the store.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(crate) enum Table { $($name),* }

        impl Table {
            pub(crate) const ALL: &[Self] = &[$(Self::$name),*];

            /// Its name in SQL.
            pub(crate) fn name(self) -> &'static str {
                match self { $(Self::$name => $sql),* }
            }

            /// Names and SQL types of its key columns.
            pub(crate) fn key_columns(self) -> &'static [(&'static str, &'static str)] {
                match self { $(Self::$name => &[$((stringify!($key), <$key_type as Column>::SQL)),+]),* }
            }

            /// Names and SQL types of the columns behind the key.
            pub(crate) fn value_columns(self) -> &'static [(&'static str, &'static str)] {
                match self { $(Self::$name => &[$((stringify!($field), <$field_type as Column>::SQL)),*]),* }
            }
        }

        /// Names one row. Keys of one table sort as the engine sorts them.
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(crate) enum Key { $($name($($key_type),+)),* }

        impl Key {
            pub(crate) fn table(&self) -> Table {
                match self { $(Self::$name(..) => Table::$name),* }
            }

            /// `None` when a column holds what it never can.
            pub(crate) fn decode(table: Table, columns: &(impl Columns + ?Sized)) -> Option<Self> {
                let mut index = 0;
                let mut next = || {
                    let value = columns.column(index);
                    index += 1;
                    value
                };
                Some(match table {
                    $(Table::$name => Self::$name($(<$key_type as Column>::from_value(next()?)?),+)),*
                })
            }

            /// Bytes that it owns besides its own size.
            pub(crate) fn heap_bytes(&self) -> usize {
                match self { $(Self::$name($($key),+) => 0 $(+ $key.heap_bytes())+),* }
            }

            /// As [`Row::detached`].
            pub(crate) fn detached(mut self) -> Self {
                match &mut self { $(Self::$name($($key),+) => { $($key.detach();)+ })* }
                self
            }

            /// The key columns.
            pub(crate) fn values(&self) -> Vec<Value> {
                match self { $(Self::$name($($key),+) => vec![$($key.value()),+]),* }
            }
        }

        /// A row of any table.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub(crate) enum Row { $($name($name)),* }

        impl Row {
            pub(crate) fn key(&self) -> Key {
                match self { $(Self::$name(row) => Key::$name($(row.$key.clone()),+)),* }
            }

            /// All columns, keys first.
            pub(crate) fn values(&self) -> Vec<Value> {
                match self { $(Self::$name(row) => vec![$(row.$key.value(),)+ $(row.$field.value(),)*]),* }
            }

            /// Bytes that it owns besides its own size.
            pub(crate) fn heap_bytes(&self) -> usize {
                match self { $(Self::$name(row) => 0 $(+ row.$key.heap_bytes())+ $(+ row.$field.heap_bytes())*),* }
            }

            /// As it is kept beyond the request that brought it: it keeps nothing else of that alive.
            pub(crate) fn detached(mut self) -> Self {
                match &mut self { $(Self::$name(row) => { $(row.$key.detach();)+ $(row.$field.detach();)* })* }
                self
            }

            /// `None` when a column holds what it never can.
            pub(crate) fn decode(table: Table, columns: &(impl Columns + ?Sized)) -> Option<Self> {
                let mut index = 0;
                let mut next = || {
                    let value = columns.column(index);
                    index += 1;
                    value
                };
                Some(match table {
                    $(Table::$name => Self::$name($name {
                        $($key: <$key_type as Column>::from_value(next()?)?,)+
                        $($field: <$field_type as Column>::from_value(next()?)?,)*
                    })),*
                })
            }
        }
    };
}

tables! {
    /// Identity of the store. Its form never changes, so that any version can read it.
    Cluster = "cluster" {
        key {
            /// Always 1.
            id: u64,
        }
        cluster: ClusterId,
        /// Version of the schema.
        schema: u64,
        created_ns: i64,
    }

    /// A number that is kept in the same transaction as what it counts.
    Counter = "counter" {
        key { name: Count, }
        value: u64,
    }

    /// A file, directory or other inode.
    Inode = "inode" {
        key { id: InodeId, }
        kind: Kind,
        /// Permission bits, 0 to 07777.
        mode: u32,
        uid: u32,
        gid: u32,
        rdev: u32,
        /// Names; for directories 2 and one for each subdirectory; 0 when unlinked.
        nlink: u32,
        /// Length; of a symlink that of its target, of a directory its entries.
        size: u64,
        /// Bytes of its extents, dead ones included.
        allocated: u64,
        atime_ns: i64,
        mtime_ns: i64,
        ctime_ns: i64,
        btime_ns: i64,
        /// Raised by every change of the inode, its extents or its xattrs.
        version: u64,
        /// Directories: the inode of "..", the root's own id for the root. Files: how many dead ranges they have.
        /// Otherwise 0.
        parent: u64,
        symlink_target: Bytes,
        /// Directories: the cookie for the next entry.
        next_cookie: u64,
        /// How many xattrs there are.
        xattrs: u32,
    }

    /// A name in a directory.
    Dentry = "dentry" {
        key {
            parent: InodeId,
            name: Bytes,
        }
        child: InodeId,
        kind: Kind,
        /// Place in the listing: given once, never again in the same directory.
        cookie: u64,
    }

    /// A run of file bytes that lies in a chunk.
    Extent = "extent" {
        key {
            inode: InodeId,
            offset: u64,
        }
        length: u64,
        chunk: ChunkId,
        chunk_offset: u64,
    }

    /// Extents of a file that start in `[start, end)` are no part of it any more, and wait to be removed.
    DeadRange = "dead_range" {
        key {
            inode: InodeId,
            start: u64,
        }
        end: u64,
    }

    /// A chunk that extents refer to.
    Chunk = "chunk" {
        key { id: ChunkId, }
        replica_set: ReplicaSetId,
        length: u64,
        crc32c: u32,
        /// Sum of the extents that refer to it; never 0.
        live: u64,
        /// Rows in the table of faults.
        faults: u32,
        created_ns: i64,
    }

    /// An extended attribute.
    Xattr = "xattr" {
        key {
            inode: InodeId,
            name: Bytes,
        }
        value: Bytes,
    }

    /// Datanodes that hold the same chunks.
    ReplicaSet = "replica_set" {
        key { id: ReplicaSetId, }
        members: Members,
        replicas: u32,
        min_replicas: u32,
        epoch: u64,
    }

    /// A datanode that has registered.
    Datanode = "datanode" {
        key { id: NodeId, }
        address: String,
        metrics_address: String,
        labels: Labels,
        capacity: u64,
        used: u64,
        version: String,
        last_seen_ns: i64,
        /// What the operator wants of it.
        admin: AdminState,
    }

    /// A copy known to be missing or bad.
    Fault = "fault" {
        key {
            chunk: ChunkId,
            node: NodeId,
        }
        noticed_ns: i64,
    }

    /// A chunk that was committed without sync and is not yet known to survive power loss.
    Unsynced = "unsynced" {
        key { chunk: ChunkId, }
        committed_ns: i64,
    }

    /// A chunk that nothing refers to any more.
    Garbage = "garbage" {
        key {
            not_before_ns: i64,
            chunk: ChunkId,
        }
        replica_set: ReplicaSetId,
    }

    /// A mounted client.
    Session = "session" {
        key { id: SessionId, }
        description: String,
        opened_ns: i64,
    }

    /// The last request of a slot and its reply.
    Slot = "slot" {
        key {
            session: SessionId,
            slot: u32,
        }
        sequence: u64,
        reply: Bytes,
    }

    /// An inode without names that a session holds open; with the nil session: one whose extents
    /// are being removed.
    Orphan = "orphan" {
        key {
            inode: InodeId,
            session: SessionId,
        }
        since_ns: i64,
    }

    /// Chunk ids granted to a session: `count` of them from `first`.
    Plan = "plan" {
        key { first: ChunkId, }
        count: u32,
        replica_set: ReplicaSetId,
        epoch: u64,
        session: SessionId,
        expires_ns: i64,
        /// One bit for each id that was committed, the lowest first; as long as it has to be.
        used: Bytes,
    }
}

impl Inode {
    /// How many dead ranges a file has.
    pub(crate) fn dead_ranges(&self) -> u64 {
        if self.kind == Kind::File { self.parent } else { 0 }
    }

    /// For files alone: others have no extents.
    pub(crate) fn set_dead_ranges(&mut self, count: u64) {
        assert!(self.kind == Kind::File, "inode {} is no file and has {count} dead ranges", self.id);
        self.parent = count;
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.table().key_columns().iter();
        for (index, ((name, _), value)) in columns.zip(self.values()).enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            match value {
                Value::Int(value) => write!(f, "{name} {value}")?,
                Value::Text(value) => write!(f, "{name} {value}")?,
                Value::Blob(value) => write!(f, "{name} {:?}", value)?,
            }
        }
        Ok(())
    }
}

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(crate) enum Kind {
    File = 1,
    Directory = 2,
    Symlink = 3,
    Fifo = 4,
    Socket = 5,
    CharDevice = 6,
    BlockDevice = 7,
}

impl Kind {
    pub(crate) fn from_number(number: i64) -> Option<Self> {
        Some(match number {
            1 => Self::File,
            2 => Self::Directory,
            3 => Self::Symlink,
            4 => Self::Fifo,
            5 => Self::Socket,
            6 => Self::CharDevice,
            7 => Self::BlockDevice,
            _ => return None,
        })
    }
}

impl Column for Kind {
    const SQL: &'static str = "INTEGER";
    fn value(&self) -> Value {
        Value::Int(*self as i64)
    }
    fn from_value(value: ValueRef<'_>) -> Option<Self> {
        i64::from_value(value).and_then(Self::from_number)
    }
}

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// What is counted.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(crate) enum Count { $($(#[$doc])* $name),* }

        impl Column for Count {
            const SQL: &'static str = "TEXT";
            fn value(&self) -> Value {
                Value::Text(match self { $(Self::$name => $text),* }.to_owned())
            }
            fn from_value(value: ValueRef<'_>) -> Option<Self> {
                match value { $(ValueRef::Text($text) => Some(Self::$name),)* _ => None }
            }
        }
    };
}

// In the order of their names, so that keys sort alike in every engine.
counts! {
    /// Bytes that extents refer to.
    Bytes = "bytes",
    /// Rows in the table of chunks.
    Chunks = "chunks",
    /// Epoch of the map.
    Epoch = "epoch",
    /// Rows in the table of faults.
    Faults = "faults",
    /// Rows in the table of garbage.
    Garbage = "garbage",
    /// When an operator stopped the deletion of chunks, ns since the epoch; 0: it goes on.
    GcPaused = "gc_paused",
    /// Rows in the table of inodes.
    Inodes = "inodes",
    NextChunk = "next_chunk",
    NextInode = "next_inode",
    NextSet = "next_set",
    /// When the store was restored from a backup, ns; 0 once the operator has seen to what follows
    /// from it. Until then nothing is deleted on datanodes.
    Restored = "restored",
    /// When metadata was seen to have gone backwards, ns since the epoch; 0: it has not.
    RolledBack = "rolled_back",
    /// The highest epoch and sequence that a datanode has seen of metadata that is no more.
    SeenEpoch = "seen_epoch",
    SeenSequence = "seen_sequence",
    /// Commits of the store since it was made.
    Sequence = "sequence",
    /// The coordinator's reign.
    Term = "term",
}

/// One datanode in a replica set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) node: NodeId,
    pub(crate) state: MemberState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MemberState {
    /// Holds every chunk of the set but those with a row in the table of faults.
    Active,
    /// Takes new chunks; is still to get older ones.
    Backfilling,
    /// Counts for nothing; leaves the set once another has taken its place.
    Lost,
    /// As active; leaves the set once another has taken its place.
    Leaving,
}

/// What the operator wants of a datanode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AdminState {
    /// Serves.
    In,
    /// Takes no new chunks; its places in replica sets move to others.
    Draining,
    /// Removed: its copies do not count, and it may not register again.
    Out,
}

impl Column for AdminState {
    const SQL: &'static str = "TEXT";
    fn value(&self) -> Value {
        let text = match self {
            Self::In => "in",
            Self::Draining => "draining",
            Self::Out => "out",
        };
        Value::Text(text.to_owned())
    }
    fn from_value(value: ValueRef<'_>) -> Option<Self> {
        match value {
            ValueRef::Text("in") => Some(Self::In),
            ValueRef::Text("draining") => Some(Self::Draining),
            ValueRef::Text("out") => Some(Self::Out),
            _ => None,
        }
    }
}

/// The ordered members of a replica set; the first is the primary. Stored as words `UUID=state`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Members(pub(crate) Vec<Member>);

impl Members {
    /// A set of which every member holds everything.
    pub(crate) fn active(nodes: impl IntoIterator<Item = NodeId>) -> Self {
        Self(nodes.into_iter().map(|node| Member { node, state: MemberState::Active }).collect())
    }

    pub(crate) fn contains(&self, node: NodeId) -> bool {
        self.0.iter().any(|member| member.node == node)
    }

    /// For logs: short ids with their states.
    pub(crate) fn summary(&self) -> Vec<String> {
        self.0.iter().map(|member| format!("{} {:?}", member.node.short(), member.state)).collect()
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.0.iter().map(|member| member.node)
    }
}

impl Column for Members {
    const SQL: &'static str = "TEXT";
    fn value(&self) -> Value {
        let words = self.0.iter().map(|member| {
            let state = match member.state {
                MemberState::Active => "active",
                MemberState::Backfilling => "backfilling",
                MemberState::Lost => "lost",
                MemberState::Leaving => "leaving",
            };
            format!("{}={state}", member.node)
        });
        Value::Text(words.collect::<Vec<_>>().join(" "))
    }
    fn from_value(value: ValueRef<'_>) -> Option<Self> {
        let ValueRef::Text(text) = value else { return None };
        let member = |word: &str| {
            let (node, state) = word.split_once('=')?;
            let state = match state {
                "active" => MemberState::Active,
                "backfilling" => MemberState::Backfilling,
                "lost" => MemberState::Lost,
                "leaving" => MemberState::Leaving,
                _ => return None,
            };
            Some(Member { node: NodeId::from_uuid(node.parse().ok()?), state })
        };
        text.split_whitespace().map(member).collect::<Option<Vec<_>>>().map(Self)
    }
}

/// Failure domains of a datanode. Stored as lines `name=value`; neither holds a line break, names
/// hold no `=`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Labels(pub(crate) BTreeMap<String, String>);

impl Column for Labels {
    const SQL: &'static str = "TEXT";
    fn value(&self) -> Value {
        let lines = self.0.iter().map(|(name, value)| format!("{name}={value}"));
        Value::Text(lines.collect::<Vec<_>>().join("\n"))
    }
    fn from_value(value: ValueRef<'_>) -> Option<Self> {
        let ValueRef::Text(text) = value else { return None };
        let label = |line: &str| {
            let (name, value) = line.split_once('=')?;
            Some((name.to_owned(), value.to_owned()))
        };
        text.lines().map(label).collect::<Option<_>>().map(Self)
    }
}
