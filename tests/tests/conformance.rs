//! The conformance suites of others, on a real mount.

use std::path::Path;
use std::time::Duration;

use cairn_tests::{Cluster, need_root, shell};

/// Installing a suite the first time may take some minutes on a slow machine; running it does not.
const LIMIT: Duration = Duration::from_secs(440);

fn script(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/conformance").join(name);
    path.canonicalize().expect("a script of the repository").to_str().expect("path").to_owned()
}

#[test]
fn pjdfstest_finds_no_failure_but_those_listed() {
    need_root();
    let cluster = Cluster::builder().mount_flag("--allow-other").start();
    let command = format!("{} {}", script("pjdfstest"), cluster.mount_path().display());
    println!("{}", shell::bash(&cluster.local(), LIMIT, &command));
}

#[test]
fn fsx_finds_no_wrong_byte() {
    let cluster = Cluster::builder().chunk_size(1 << 20).start();
    let command = format!("{} {} 40", script("fsx"), cluster.mount_path().display());
    println!("{}", shell::bash(&cluster.local(), LIMIT, &command));
}
