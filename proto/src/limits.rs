//! Bounds that both ends of every connection keep.

/// Unit of checksums: one CRC-32C for each block of a chunk.
pub const BLOCK_SIZE: usize = 64 << 10;
/// Payload of a frame by custom. 256 KiB messages in 1 MiB HTTP/2 frames cost the least CPU per GiB.
pub const FRAME_SIZE: usize = 256 << 10;
/// Largest payload of a frame that is accepted.
pub const FRAME_SIZE_MAX: usize = 1 << 20;
/// Names in a page of a listing by custom; coordinators have such pages of large directories ready.
pub const PAGE_NAMES: u32 = 16_384;
/// Bytes of a chunk unless the file or mount asks for another size.
pub const CHUNK_SIZE_DEFAULT: u64 = 8 << 20;
/// Smallest chunk size that can be asked for (a chunk itself may be shorter).
pub const CHUNK_SIZE_MIN: u64 = 64 << 10;
/// Largest chunk.
pub const CHUNK_SIZE_MAX: u64 = 64 << 20;
/// Largest gRPC message that is accepted: a frame and its header, or a page of metadata.
pub const MESSAGE_SIZE_MAX: usize = 16 << 20;
/// Longest file name in bytes (NAME_MAX).
pub const NAME_MAX: usize = 255;
/// Longest symlink target in bytes (PATH_MAX less the NUL).
pub const SYMLINK_MAX: usize = 4095;
/// Largest value of an extended attribute (XATTR_SIZE_MAX).
pub const XATTR_SIZE_MAX: usize = 64 << 10;
/// All extended attribute names of one inode together, each with its NUL (XATTR_LIST_MAX).
pub const XATTR_LIST_MAX: usize = 64 << 10;
/// Largest file: 2^63 - 1 bytes (off_t).
pub const FILE_SIZE_MAX: u64 = i64::MAX as u64;
/// Most names of one inode, as on ext4.
pub const LINK_MAX: u32 = 65_000;
/// Reply slots of one session.
pub const SLOTS_MAX: u32 = 256;
/// Mutations in one `Apply`: the coordinator executes so many in some ten milliseconds.
pub const MUTATIONS_MAX: usize = 1024;
/// Ids in one plan, bad chunks in one heartbeat.
pub const BATCH_MAX: usize = 4096;
/// Extents, and chunks, in one `ConfirmUpload`: the coordinator commits so many in some ten milliseconds.
pub const COMMIT_EXTENTS_MAX: usize = 2048;
/// Files in one `ConfirmUpload`.
pub const COMMIT_FILES_MAX: usize = 1024;
/// Extents in one answer, chunks in one request to a datanode.
pub const LIST_MAX: usize = 65_536;
/// How far a client's idea of the cluster's clock may be ahead of the coordinator's own clock, and the other way round;
/// later times are not believed.
pub const CLOCKS_APART: std::time::Duration = std::time::Duration::from_secs(1);
