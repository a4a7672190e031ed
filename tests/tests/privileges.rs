//! What falls away from a file when it is written: set-user-ID, set-group-ID, `security.capability`.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use cairn_tests::{Cluster, need_root, process, shell};

const LIMIT: Duration = Duration::from_secs(120);
const CAPABILITY: &str = "security.capability";
/// cap_net_bind_service, permitted (version 2 of the attribute).
const VALUE: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// Neither the owner of the files (1000) nor in their group.
const OTHER: &str = "setpriv --reuid 1001 --regid 1001 --clear-groups";

/// A file of 1000 that everybody may write.
fn make(path: &Path, mode: u32, capable: bool) {
    let _ = fs::remove_file(path);
    fs::write(path, [b'x'; 8192]).expect("write");
    std::os::unix::fs::chown(path, Some(1000), Some(1000)).expect("chown");
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    if capable {
        xattr::set(path, CAPABILITY, &VALUE).expect("setxattr");
    }
}

fn has_capability(path: &Path) -> bool {
    xattr::get(path, CAPABILITY).expect("getxattr").is_some()
}

fn look(path: &Path) -> String {
    let mode = fs::metadata(path).expect("stat").mode() & 0o7777;
    format!("{mode:o}, capability {}", has_capability(path))
}

#[test]
fn a_change_takes_from_a_file_what_it_takes_on_a_local_file_system() {
    need_root();
    let cluster = Cluster::builder().mount_flag("--allow-other").start();
    let local = cluster.local().join("compared");
    fs::create_dir(&local).expect("mkdir");
    let write = "dd if=/dev/zero of=f bs=4096 count=1 conv=notrunc status=none";
    let actions = [
        write.to_owned(),
        format!("{write} oflag=direct"),
        // What it is while the file is still open.
        format!("bash -c 'exec 3<>f; {write} oflag=direct; stat -c %a f; stat -c %a f >&2'"),
        "truncate -s 100 f".to_owned(),
        "fallocate -l 10000 f".to_owned(),
        "chown : f".to_owned(),
        "chown :1000 f".to_owned(),
    ];
    let outcomes = |place: &Path| -> Vec<String> {
        let mut outcomes = Vec::new();
        for (mode, capable) in [(0o6777, false), (0o777, true), (0o6777, true), (0o777, false)] {
            for who in ["", OTHER] {
                for action in &actions {
                    make(&place.join("f"), mode, capable);
                    let output = shell::run_bash(place, LIMIT, &format!("{who} {action}"));
                    let (done, said) = (output.status.success(), String::from_utf8_lossy(&output.stdout));
                    let after = look(&place.join("f"));
                    outcomes.push(format!("{mode:o} {capable}: {who} {action}: {done} {said}: {after}"));
                }
            }
        }
        outcomes
    };
    let (want, got) = (outcomes(&local), outcomes(&cluster.mount_path()));
    for (want, got) in want.iter().zip(&got) {
        assert_eq!(got, want);
    }
}

/// Another user who has opened a file and waits.
struct Waiting(Child);

impl Waiting {
    fn open(path: &Path) -> Self {
        let mut command = process::command("bash");
        let script = r#"exec 3<>"$1"; echo open; read -r; printf w >&3; printf '%s\n' "written $?"; read -r"#;
        let script =
            format!(r#"exec {OTHER} bash -c '{script}' bash "$1""#, script = script.replace('\'', r"'\''"));
        command.args(["-c", &script, "bash"]).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut this = Self(command.spawn().expect("bash"));
        assert_eq!(this.line(), "open\n");
        this
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        // One byte at a time, so that nothing is lost with the reader.
        let out = self.0.stdout.as_mut().expect("stdout");
        BufReader::with_capacity(1, out).read_line(&mut line).expect("read");
        line
    }

    fn write(&mut self) {
        self.go_on();
        assert_eq!(self.line(), "written 0\n");
    }

    fn go_on(&mut self) {
        self.0.stdin.as_mut().expect("stdin").write_all(b"\n").expect("go on");
    }
}

#[test]
fn a_write_takes_what_another_mount_has_given_to_the_file_a_moment_before() {
    need_root();
    let cluster = Cluster::builder().mount_flag("--allow-other").start();
    let other = cluster.mount_at_with(Path::new("other"), &[]);
    for (name, mode, capable) in [("f", 0o6777, false), ("g", 0o777, true)] {
        let (here, there) = (cluster.mount_path().join(name), other.path().join(name));
        make(&here, 0o777, false);
        let mut user = Waiting::open(&here);
        fs::set_permissions(&there, fs::Permissions::from_mode(mode)).expect("chmod");
        if capable {
            xattr::set(&there, CAPABILITY, &VALUE).expect("setxattr");
        }
        user.write();
        user.go_on();
        assert!(user.0.wait().expect("wait").success());
        // The close has returned: every mount sees what was written, and nothing of what was given.
        assert_eq!(fs::read(&there).expect("read")[0], b'w');
        assert_eq!(look(&there), "777, capability false", "given {mode:o}, capability {capable}");
    }
}
