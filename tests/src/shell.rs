//! Programs as a user would run them.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use crate::{process, wait};

/// What a script starts with: the first failing command ends it, and says where.
const PRELUDE: &str = r#"
set -eE -o pipefail
trap 'echo "failed at line $LINENO: $BASH_COMMAND" >&2' ERR
export LC_ALL=C GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.com GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.com
umask 022
fail() { echo "$*" >&2; exit 1; }
same() { [ "$1" = "$2" ] || fail "$3: got '$1', expected '$2'"; }
# lets go of clean cached data and names, so that what follows is read from the cluster
forget() { sync -f "${M:-.}"; echo 3 >/proc/sys/vm/drop_caches; }
"#;

/// Runs a bash script in `directory`; panics with its output when it fails or takes longer than `limit`.
#[track_caller]
pub fn bash(directory: &Path, limit: Duration, script: &str) -> String {
    let output = run_bash(directory, limit, script);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "the script failed ({}):\n{out}{err}", output.status);
    out.into_owned()
}

/// As [`bash`], with whatever came of it.
#[track_caller]
pub fn run_bash(directory: &Path, limit: Duration, script: &str) -> Output {
    let mut command = process::command("timeout");
    command
        .args(["-k", "2", &limit.as_secs().to_string(), "bash", "-c"])
        .arg(format!("{PRELUDE}\n{script}"))
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command.spawn().expect("bash");
    wait::within("the script", limit + Duration::from_secs(5), move || child.wait_with_output())
        .expect("output of the script")
}
