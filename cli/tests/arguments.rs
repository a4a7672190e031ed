//! What can be typed, and what is said about what can not.

use std::path::Path;

use cairn_cli::args::{BadRemotePath, Cli, Command, RemotePath};
use clap::{CommandFactory, Parser};

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("cairn").chain(line.split_whitespace()))
}

#[test]
fn the_definition_of_the_arguments_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn lines_that_are_understood() {
    let lines = [
        "up /tmp/x",
        "up /tmp/x --datanodes 5 --data /d --replicas 2 --no-restart",
        "up -d /tmp/x",
        "down --data /d",
        "coordinator --listen 127.0.0.1:0 --data /d --metrics-listen 127.0.0.1:0 --ready-file r",
        "datanode --coordinator h:1 --data /a --data /b --label rack=r1 --label host=h --reserve 16MiB",
        "mount /m --foreground --read-only --allow-other --protect --unreachable soft=30 --memory 1GiB",
        "umount /m --lazy",
        "unmount /m",
        "put -r a b /c",
        "put a cairn:/c --parallel 4 --checksum --verify",
        "get /a /b c",
        "gc status --json",
        "gc pause",
        "gc run --wait",
        "gc resume --accept-rollback",
        "scrub start --rate 200MiB 7f3a 81",
        "scrub status",
        "fsck --repair --metadata-only --json",
        "cat /a",
        "ls",
        "ls -laRh / /b",
        "ls -lb",
        "stat /a --json",
        "mkdir -p /a -m 700",
        "rm -rf /a",
        "mv /a /b /c",
        "cp -r cairn:/a /b",
        "du -sh /a",
        "df -h",
        "locate --verify /a",
        "status --sessions",
        "node list --json",
        "node ls",
        "config show --origin",
        "config init f --force",
        "completions bash",
        "man /tmp/m",
        "--json --quiet ls",
        "-vv status",
    ];
    for line in lines {
        if let Err(error) = parse(line) {
            panic!("{line}: {error}");
        }
    }
}

#[test]
fn lines_that_are_refused_say_what_was_expected() {
    let lines = [
        ("up", "<DIR>"),
        ("up /x --datanodes 0", "1..=64"),
        ("up /x --replicas many", "many"),
        ("up /x -d -f", "cannot be used"),
        ("datanode --label rack", "rack=r1"),
        ("mount", "<DIR>"),
        ("umount /x --lazy --force", "cannot be used"),
        ("put a", "<REMOTE>"),
        ("put a b", "absolute"),
        ("get a b", "absolute"),
        ("cat photos/x", "/photos/x"),
        ("ls /a/../b", ".."),
        ("mkdir -m 99 /a", "octal"),
        ("put a /b --parallel 0", "1..=256"),
        ("get /a b --checksum --overwrite", "cannot be used"),
        ("ls --timeout 0s", "more than 0"),
        ("ls --timeout soon", "500ms"),
        ("mount /x --memory 1Gx", "512MiB"),
        ("datanode --reserve much", "512MiB"),
        ("scrub start --rate 64XB", "512MiB"),
        ("ls -h -b", "cannot be used"),
        ("completions tcl", "bash"),
        ("node", "list"),
        ("-q -v ls", "cannot be used"),
        ("frobnicate", "frobnicate"),
    ];
    for (line, expected) in lines {
        match parse(line) {
            Ok(parsed) => panic!("{line} was understood: {parsed:?}"),
            Err(error) => {
                assert!(error.use_stderr() || line == "node", "{line}");
                assert!(error.to_string().contains(expected), "{line}: {error}");
            }
        }
    }
}

#[test]
fn paths_in_the_cluster_are_absolute_and_plain() {
    let parse = |text: &str| RemotePath::parse(text.as_ref());
    for (text, path, name, is_directory) in [
        ("/", "/", None, true),
        ("//", "/", None, true),
        ("cairn:/", "/", None, true),
        ("/a", "/a", Some("a"), false),
        ("/a/", "/a", Some("a"), true),
        ("cairn:/a//b/./c", "/a/b/c", Some("c"), false),
        ("/.", "/", None, true),
        ("/...", "/...", Some("..."), false),
    ] {
        let parsed = parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(parsed.as_bytes(), path.as_bytes(), "{text}");
        assert_eq!(parsed.name(), name.map(str::as_bytes), "{text}");
        assert_eq!(parsed.is_directory, is_directory, "{text}");
    }
    assert_eq!(parse("a"), Err(BadRemotePath::Relative("a".into())));
    assert_eq!(parse(""), Err(BadRemotePath::Relative(String::new())));
    assert_eq!(parse("cairn:a"), Err(BadRemotePath::Relative("cairn:a".into())));
    assert_eq!(parse("/a/.."), Err(BadRemotePath::Parent("/a/..".into())));
    assert_eq!(parse("/a\0"), Err(BadRemotePath::Nul));
}

#[test]
fn paths_in_the_cluster_are_taken_apart_and_put_together() {
    let parse = |text: &str| RemotePath::parse(text.as_ref()).unwrap();
    assert_eq!(parse("/a/b").parent(), parse("/a/"));
    assert_eq!(parse("/a").parent(), RemotePath::root());
    assert_eq!(RemotePath::root().parent(), RemotePath::root());
    assert_eq!(RemotePath::root().join(b"a").as_bytes(), b"/a");
    assert_eq!(parse("/a").join(b"b").as_bytes(), b"/a/b");
    assert_eq!(parse("/a/").to_path(), Path::new("/a/"));
    assert!(parse("/a").contains(&parse("/a/b")) && parse("/a").contains(&parse("/a")));
    assert!(!parse("/a").contains(&parse("/ab")) && RemotePath::root().contains(&parse("/a")));
}

#[test]
fn every_command_explains_itself() {
    let mut command = Cli::command();
    command.build();
    for sub in command.get_subcommands_mut().filter(|sub| sub.get_name() != "help") {
        assert!(sub.get_about().is_some(), "{} has no description", sub.get_name());
        let help = sub.render_long_help().to_string();
        let has_children = sub.has_subcommands();
        assert!(has_children || help.contains("Example"), "{} shows no example", sub.get_name());
        let undocumented: Vec<_> =
            sub.get_arguments().filter(|arg| arg.get_help().is_none() && !arg.is_hide_set()).collect();
        assert!(undocumented.is_empty(), "{}: {undocumented:?}", sub.get_name());
    }
    assert!(matches!(parse("ls").map(|cli| cli.command), Ok(Command::Ls(_))));
}
