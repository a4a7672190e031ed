//! All metadata is gone, or only an old copy is left: what `cairn salvage` gets from the datanodes' directories.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use cairn_tests::{Cluster, MIB, need_root, pattern};
use serde_json::Value;

/// Every file below a directory with its content, and its blocks: a hole that was filled shows, too.
fn everything(directory: &Path) -> BTreeMap<PathBuf, (Vec<u8>, u64)> {
    let mut found = BTreeMap::new();
    let mut todo = vec![directory.to_owned()];
    while let Some(path) = todo.pop() {
        for entry in std::fs::read_dir(path).unwrap() {
            let entry = entry.unwrap();
            match entry.file_type().unwrap().is_dir() {
                true => todo.push(entry.path()),
                false => {
                    let content = std::fs::read(entry.path()).unwrap();
                    found.insert(entry.path(), (content, entry.metadata().unwrap().blocks()));
                }
            }
        }
    }
    found
}

fn write(mount: &Path, name: &str, seed: u64, length: usize) {
    let path = mount.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let file = std::fs::File::create(path).unwrap();
    file.write_all_at(&pattern::bytes(seed, 0, length), 0).unwrap();
    file.sync_all().unwrap();
}

fn salvage(cluster: &Cluster, to: &Path, nodes: &[usize], metadata: Option<&Path>) -> (Value, Option<i32>) {
    let to = to.display().to_string();
    let mut arguments = vec!["salvage".to_owned(), "--json".into(), "--to".into(), to];
    arguments.extend(nodes.iter().map(|&node| cluster.node_data(node).display().to_string()));
    if let Some(metadata) = metadata {
        arguments.extend(["--metadata".into(), metadata.display().to_string()]);
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = cluster.run(&arguments);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {error}"));
    (report, output.status.code())
}

#[test]
fn files_come_back_by_name_with_old_metadata_and_by_number_without() {
    need_root();
    let mut cluster = Cluster::builder().start();
    let mount = cluster.mount_path();
    let large = 20 * MIB as usize + 5;
    write(&mount, "a/b/large", 1, large);
    write(&mount, "a/small", 2, 70_000);
    write(&mount, "sparse", 3, 10);
    std::fs::File::options().write(true).open(mount.join("sparse")).unwrap().set_len(1 << 20).unwrap();
    std::fs::hard_link(mount.join("a/small"), mount.join("linked")).unwrap();
    std::os::unix::fs::symlink("a/small", mount.join("symlink")).unwrap();
    cairn_tests::workload::sync_directory(&mount).unwrap();
    let backup = cluster.path().join("metadata.cairn");
    cluster.run_ok(&["coordinator", "backup", &backup.display().to_string()]);
    let database = cluster.path().join("meta.db");
    write(&mount, "later", 4, 100_000);
    cluster.kill9_all();
    // With its log beside it, as a disk image would have it.
    for suffix in ["", "-wal"] {
        let from = cluster.coordinator_data().join(format!("meta.db{suffix}"));
        let to = PathBuf::from(format!("{}{suffix}", database.display()));
        std::fs::copy(from, to).unwrap();
    }
    std::fs::remove_dir_all(cluster.coordinator_data()).unwrap();
    let before: Vec<_> = (0..3).map(|node| everything(cluster.node_data(node))).collect();

    let out = cluster.path().join("by-name");
    let (report, code) = salvage(&cluster, &out, &[0, 1, 2], Some(&backup));
    assert_eq!((report["files"].as_u64(), report["incomplete"].as_u64(), code), (Some(3), Some(0), Some(0)));
    let files = out.join("files");
    assert!(std::fs::read(files.join("a/b/large")).unwrap() == pattern::bytes(1, 0, large));
    assert!(std::fs::read(files.join("a/small")).unwrap() == pattern::bytes(2, 0, 70_000));
    let sparse = std::fs::read(files.join("sparse")).unwrap();
    assert_eq!((sparse.len(), &sparse[..10]), (1 << 20, &*pattern::bytes(3, 0, 10)));
    assert_eq!(std::fs::read_link(files.join("symlink")).unwrap(), Path::new("a/small"));
    let inode = |name: &str| std::fs::metadata(files.join(name)).unwrap().ino();
    assert_eq!(inode("a/small"), inode("linked"));
    // What was written after the backup has no name in it, and comes by number.
    assert!(!files.join("later").exists());
    let numbered = everything(&out.join("chunks"));
    assert!(numbered.values().any(|(content, _)| *content == pattern::bytes(4, 0, 100_000)));

    let out = cluster.path().join("with-database");
    let (report, code) = salvage(&cluster, &out, &[0, 1, 2], Some(&database));
    assert_eq!((report["files"].as_u64(), code), (Some(4), Some(0)), "{report}");
    assert!(std::fs::read(out.join("files/later")).unwrap() == pattern::bytes(4, 0, 100_000));

    let out = cluster.path().join("by-number");
    let (report, code) = salvage(&cluster, &out, &[0, 1, 2], None);
    assert_eq!((report["files"].as_u64(), code), (Some(0), Some(0)));
    let part = pattern::bytes(1, 0, 8 * MIB as usize);
    assert!(everything(&out.join("chunks")).values().any(|(content, _)| *content == part));

    // Damage on one datanode costs nothing; on all of them it costs what was damaged, and is told.
    let victim = before[0].keys().find(|path| path.extension().is_some_and(|e| e == "seg")).unwrap();
    let content = std::fs::read(victim).unwrap();
    // The payload of a large chunk begins at a page.
    let page = content.chunks_exact(4096).position(|page| page == &part[4096..8192]);
    let at = page.expect("the file's bytes") * 4096;
    let damaged = std::fs::File::options().write(true).open(victim).unwrap();
    damaged.write_all_at(&[content[at] ^ 1], at as u64).unwrap();
    let out = cluster.path().join("one-damaged");
    let (report, code) = salvage(&cluster, &out, &[0, 1, 2], Some(&database));
    assert_eq!((report["incomplete"].as_u64(), code), (Some(0), Some(0)), "{report}");
    let out = cluster.path().join("only-the-damaged");
    let (report, code) = salvage(&cluster, &out, &[0], Some(&database));
    assert_eq!((report["incomplete"].as_u64(), code), (Some(1), Some(4)), "{report}");
    damaged.write_all_at(&[content[at]], at as u64).unwrap();

    for (node, before) in before.iter().enumerate() {
        assert!(
            *before == everything(cluster.node_data(node)),
            "the directory of datanode {node} was changed"
        );
    }
}
