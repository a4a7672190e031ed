//! Settings of a mount.

use std::path::PathBuf;
use std::time::Duration;

use cairn_client::vfs::ATTRIBUTES_VALID_MAX;
use cairn_runtime::config::{ByteSize, ConfigError, Validate};
use serde::{Deserialize, Serialize};

/// More read-ahead would only push useful pages out of memory.
const READ_AHEAD_MAX: u64 = 64 << 20;
/// More session threads than this gain nothing anywhere.
const THREADS_MAX: usize = 16;

/// Where and how to mount.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MountConfig {
    /// The directory; it must exist.
    pub mountpoint: PathBuf,
    /// Other users may enter. Needs root, or `user_allow_other` in `/etc/fuse.conf`.
    pub allow_other: bool,
    /// Nothing can be changed through this mount.
    pub read_only: bool,
    /// The directory may have entries; they are hidden while it is mounted.
    pub nonempty: bool,
    /// set-user-ID, set-group-ID and file capabilities count when a program of the mount is run (`suid` of mount(8)).
    /// Whoever can write to the cluster as root can then become root here. Needs root.
    pub suid: bool,
    /// Devices of the mount can be opened (`dev` of mount(8)), with what that means for `suid`. Needs root.
    pub dev: bool,
    /// What the kernel reads ahead of a sequential reader, at most 64 MiB; set where permitted (root).
    pub read_ahead: ByteSize,
    /// How long the kernel may show names and attributes without asking; at most 1 s.
    #[serde(with = "humantime_serde")]
    pub attr_timeout: Duration,
    /// Makes the covered directory unwritable, so that nothing is written beside the file system while
    /// it is not mounted: immutable (`chattr +i`) where possible, else without write permission. It
    /// stays so after the unmount.
    pub protect_mountpoint: bool,
    /// Threads that read the kernel's requests; 1 to 16.
    pub threads: usize,
    /// How long an unmount waits for programs to leave before it detaches the mount from its place.
    #[serde(with = "humantime_serde")]
    pub unmount_grace: Duration,
}

impl Default for MountConfig {
    fn default() -> Self {
        Self {
            mountpoint: PathBuf::new(),
            allow_other: false,
            read_only: false,
            nonempty: false,
            suid: false,
            dev: false,
            read_ahead: ByteSize::mib(4),
            attr_timeout: ATTRIBUTES_VALID_MAX,
            protect_mountpoint: false,
            threads: 2,
            unmount_grace: Duration::from_secs(5),
        }
    }
}

impl Validate for MountConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        if self.mountpoint.as_os_str().is_empty() {
            return Err(ConfigError::out_of_range("mountpoint", "\"\"", "the path of an existing directory"));
        }
        if self.read_ahead.as_u64() > READ_AHEAD_MAX {
            return Err(ConfigError::out_of_range("read_ahead", self.read_ahead, "0 to 64 MiB"));
        }
        if self.attr_timeout > ATTRIBUTES_VALID_MAX {
            return Err(ConfigError::out_of_range(
                "attr_timeout",
                format!("{:?}", self.attr_timeout),
                "0s to 1s",
            ));
        }
        if !(1..=THREADS_MAX).contains(&self.threads) {
            return Err(ConfigError::out_of_range("threads", self.threads, "1 to 16"));
        }
        Ok(())
    }
}
