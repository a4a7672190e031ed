//! The binary itself, without a cluster: configuration, completions, man pages, errors, exit codes.

use std::path::Path;
use std::process::{Command, Output};

struct Run {
    output: Output,
}

impl Run {
    fn code(&self) -> i32 {
        self.output.status.code().unwrap_or(-1)
    }

    fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }
}

/// Runs `cairn` in a directory that is its home, with these variables and nothing else.
fn cairn(home: &Path, variables: &[(&str, &str)], arguments: &[&str]) -> Run {
    let output = Command::new(env!("CARGO_BIN_EXE_cairn"))
        .args(arguments)
        .current_dir(home)
        .env_clear()
        .env("HOME", home)
        .env("CAIRN_RUNTIME_DIR", home.join("run"))
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .envs(variables.iter().copied())
        .output()
        .expect("run cairn");
    Run { output }
}

/// What is in force for a key, and where it comes from.
fn setting(home: &Path, variables: &[(&str, &str)], arguments: &[&str], key: &str) -> (String, String) {
    let mut line = vec!["config", "show", "--json"];
    line.extend(arguments);
    let run = cairn(home, variables, &line);
    assert_eq!(run.code(), 0, "{}", run.stderr());
    let all: serde_json::Value = serde_json::from_str(&run.stdout()).expect("JSON");
    let entry = &all[key];
    let text =
        |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
    (text(&entry["value"]), text(&entry["origin"]))
}

#[test]
fn flags_win_over_variables_over_the_file_over_defaults() {
    let home = tempfile::tempdir().expect("tempdir");
    let home = home.path();
    let file = home.join("c.toml");
    let key = "client.coordinator";
    let text = "[client]\ncoordinator = \"file:1\"\nmemory = \"64 MiB\"\n";
    std::fs::write(&file, text).expect("write");
    let with_file = ["--config", "c.toml"];
    let flag = ["--config", "c.toml", "--coordinator", "flag:4"];

    let (value, origin) = setting(home, &[], &[], key);
    assert_eq!((value.as_str(), origin.as_str()), ("127.0.0.1:7070", "default"));
    let (value, origin) = setting(home, &[], &with_file, key);
    assert_eq!((value.as_str(), origin.as_str()), ("file:1", "file c.toml"));
    let short = ("CAIRN_COORDINATOR", "short:2");
    let (value, origin) = setting(home, &[short], &with_file, key);
    assert_eq!((value.as_str(), origin.as_str()), ("short:2", "variable CAIRN_COORDINATOR"));
    let long = ("CAIRN_CLIENT__COORDINATOR", "long:3");
    let (value, origin) = setting(home, &[short, long], &with_file, key);
    assert_eq!((value.as_str(), origin.as_str()), ("long:3", "variable CAIRN_CLIENT__COORDINATOR"));
    let (value, origin) = setting(home, &[short, long], &flag, key);
    assert_eq!((value.as_str(), origin.as_str()), ("flag:4", "flag --coordinator"));
    // --coordinator means the datanode's, too; what nobody has set stays.
    assert_eq!(setting(home, &[], &flag, "datanode.coordinator").0, "flag:4");
    assert_eq!(setting(home, &[], &flag, "client.durable_close"), ("false".into(), "default".into()));
    let by_env = [("CAIRN_CONFIG", "c.toml")];
    assert_eq!(setting(home, &by_env, &[], "client.memory").1, "file c.toml");
}

#[test]
fn wrong_settings_are_refused_with_place_key_value_and_what_was_expected() {
    let home = tempfile::tempdir().expect("tempdir");
    let home = home.path();
    let cases: [(&str, &str, &[&str]); 7] = [
        (
            "unknown key",
            "[client]\nmemroy = \"1GiB\"\n",
            &["c.toml", "client.memroy", "memory was perhaps meant"],
        ),
        ("unknown section", "[clint]\nmemory = \"1GiB\"\n", &["clint", "client was perhaps meant"]),
        (
            "wrong type",
            "[coordinator]\nreplicas = \"many\"\n",
            &["c.toml", "coordinator.replicas", "many", "default is 3"],
        ),
        ("wrong form", "[client]\nmemory = \"a lot\"\n", &["c.toml", "client.memory", "a lot", "default is"]),
        ("wrong policy", "[client]\nunreachable = \"soft\"\n", &["client.unreachable", "soft=SECONDS"]),
        ("wrong time", "[client]\nwrite_back = \"5 parsecs\"\n", &["client.write_back", "parsecs"]),
        ("no TOML", "[client\n", &["c.toml"]),
    ];
    for (name, text, expected) in cases {
        std::fs::write(home.join("c.toml"), text).expect("write");
        let run = cairn(home, &[], &["status", "--config", "c.toml"]);
        assert_eq!(run.code(), 2, "{name}: {}", run.stderr());
        for part in expected {
            assert!(run.stderr().contains(part), "{name}: {part:?} is not in {}", run.stderr());
        }
    }
    let run = cairn(home, &[("CAIRN_CLIENT__MEMORY", "1 MiB")], &["status"]);
    assert_eq!(run.code(), 2, "{}", run.stderr());
    for part in ["CAIRN_CLIENT__MEMORY", "client.memory", "1.0 MiB", "32 MiB to 1 TiB was expected"] {
        assert!(run.stderr().contains(part), "{part:?} is not in {}", run.stderr());
    }
    let run = cairn(home, &[("CAIRN_CLIENT__MEMROY", "1 GiB")], &["status"]);
    assert!(run.code() == 2 && run.stderr().contains("CAIRN_CLIENT__MEMROY"), "{}", run.stderr());
    let run = cairn(home, &[], &["status", "--config", "missing.toml"]);
    assert!(run.code() == 2 && run.stderr().contains("missing.toml"), "{}", run.stderr());
    let run = cairn(home, &[], &["status", "--coordinator", "nowhere"]);
    assert!(run.code() == 2 && run.stderr().contains("host:port"), "{}", run.stderr());
}

#[test]
fn a_written_configuration_can_be_read_and_is_not_replaced() {
    let home = tempfile::tempdir().expect("tempdir");
    let home = home.path();
    assert_eq!(cairn(home, &[], &["config", "init", "c.toml"]).code(), 0);
    let run = cairn(home, &[], &["config", "show", "--config", "c.toml"]);
    assert_eq!(run.code(), 0, "{}", run.stderr());
    std::fs::write(home.join("shown.toml"), run.stdout()).expect("write");
    let again = cairn(home, &[], &["config", "show", "--config", "shown.toml"]);
    assert_eq!(again.stdout(), run.stdout(), "what is shown can be used as a file: {}", again.stderr());
    let run = cairn(home, &[], &["config", "init", "c.toml"]);
    assert!(run.code() == 1 && run.stderr().contains("--force"), "{}", run.stderr());
    assert_eq!(cairn(home, &[], &["config", "init", "c.toml", "--force"]).code(), 0);
}

#[test]
fn completions_and_man_pages_are_made() {
    let home = tempfile::tempdir().expect("tempdir");
    let home = home.path();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let run = cairn(home, &[], &["completions", shell]);
        assert!(run.code() == 0 && run.stdout().contains("locate"), "{shell}: {}", run.stderr());
    }
    assert_eq!(cairn(home, &[], &["man", "pages"]).code(), 0);
    for page in ["cairn", "cairn-up", "cairn-put", "cairn-node", "cairn-node-list", "cairn-config-show"] {
        let text = std::fs::read_to_string(home.join("pages").join(format!("{page}.1"))).expect(page);
        assert!(text.contains(".TH"), "{page}");
    }
}

#[test]
fn errors_are_one_line_that_says_what_to_do() {
    let home = tempfile::tempdir().expect("tempdir");
    let home = home.path();
    let unreachable = ["--coordinator", "127.0.0.1:1"];
    let run = cairn(home, &[], &["status", unreachable[0], unreachable[1]]);
    assert_eq!(run.code(), 3, "{}", run.stderr());
    assert!(run.stderr().starts_with("cairn: ") && run.stderr().contains("127.0.0.1:1"), "{}", run.stderr());
    assert_eq!(run.stderr().lines().count(), 1, "{}", run.stderr());
    let run = cairn(home, &[], &["umount", "nothing"]);
    assert!(run.code() == 1 && run.stderr().contains("nothing"), "{}", run.stderr());
    let run = cairn(home, &[], &["umount", "/"]);
    assert!(run.code() == 1 && run.stderr().contains("not Cairn"), "{}", run.stderr());
    let run = cairn(home, &[], &["umount", "."]);
    assert!(run.code() == 1 && run.stderr().contains("Cairn is mounted "), "{}", run.stderr());
    let run = cairn(home, &[], &["down"]);
    assert!(run.code() == 1 && run.stderr().contains("it does not run"), "{}", run.stderr());
    let run = cairn(home, &[], &["frobnicate"]);
    assert_eq!(run.code(), 2);
}

#[test]
fn a_cluster_that_is_refused_leaves_no_directory() {
    let home = tempfile::tempdir().expect("tempdir");
    let home = home.path();
    for (mount, data) in [("data/mount", "data"), ("mount", "mount/deep/data"), ("same", "./same")] {
        let run = cairn(home, &[], &["up", mount, "--data", data]);
        assert!(run.code() == 2 && run.stderr().contains("inside one another"), "{}", run.stderr());
        assert!(!home.join(mount).exists() && !home.join(data).exists(), "{mount}, {data}");
    }
    std::fs::create_dir(home.join("real")).expect("directory");
    std::os::unix::fs::symlink("real", home.join("link")).expect("link");
    let run = cairn(home, &[], &["up", "link/mount", "--data", "real"]);
    assert!(run.code() == 2 && !home.join("real/mount").exists(), "{}", run.stderr());
}

#[test]
fn every_health_code_is_explained_with_a_remedy() {
    let home = tempfile::tempdir().expect("tempdir");
    let all = cairn(home.path(), &[], &["explain", "--json"]);
    assert_eq!(all.code(), 0, "{}", all.stderr());
    let all: Vec<serde_json::Value> = serde_json::from_str(&all.stdout()).expect("JSON");
    assert!(all.iter().any(|one| one["code"] == "DISK_FAULT" && one["error"] == true));
    for one in &all {
        let [code, meaning, remedy] = ["code", "meaning", "remedy"].map(|key| one[key].as_str().expect(key));
        assert!(meaning.len() > 20 && remedy.len() > 20, "{one}");
        // As somebody types it.
        let told = cairn(home.path(), &[], &["explain", &code.to_lowercase()]);
        assert_eq!(told.code(), 0, "{}", told.stderr());
        assert!([code, meaning, remedy].iter().all(|text| told.stdout().contains(text)), "{}", told.stdout());
    }
    let unknown = cairn(home.path(), &[], &["explain", "DISK_EATEN"]);
    assert_eq!((unknown.code(), unknown.stdout().as_str()), (2, ""));
    let error = unknown.stderr();
    assert!(error.contains("DISK_EATEN") && error.contains("DISK_FAULT"), "what there is: {error}");
}
