//! What people do all day, with the programs they do it with, on a real mount; each checked against
//! the same work done on the local disk.

use std::path::Path;
use std::time::Duration;

use cairn_tests::{Cluster, shell};

const LIMIT: Duration = Duration::from_secs(150);

/// A tree with what a real one has, in `$1`; and a description of a tree that holds whatever should
/// survive a copy.
const TREE: &str = r#"
make_tree() {
    local t=$1 i d
    mkdir -p "$t"/a/b/c "$t/with space" "$t/$(printf 'caf\xc3\xa9')" "$t/empty"
    for i in $(seq 1 60); do
        d=$(printf 'a a/b a/b/c' | cut -d' ' -f$((i % 3 + 1)))
        head -c $((i * i * 20)) /dev/urandom >"$t/$d/f$i"
        chmod $((i % 2 ? 644 : 750)) "$t/$d/f$i"
    done
    : >"$t/with space/zero"
    head -c 3000000 /dev/urandom >"$t/big"
    ln "$t/big" "$t/a/hardlink"
    ln -s b/c/f2 "$t/a/symlink"
    ln -s /nonexistent/target "$t/dangling"
    mkfifo "$t/fifo"
    truncate -s 5000000 "$t/sparse"
    printf tail | dd of="$t/sparse" bs=1 seek=4000000 conv=notrunc status=none
    touch -d '2001-02-03 04:05:06.789012345 UTC' "$t/a/f3" "$t/a/b/f1" "$t/empty"
    chmod 4755 "$t/a/b/c/f2"
    chmod 1777 "$t/empty"
    if [ "$(id -u)" = 0 ]; then
        chown 1234:4321 "$t/a/f6"
        chown -h 1234:4321 "$t/dangling"
        mknod "$t/null" c 1 3
    fi
    setfattr -n user.origin -v "https example" "$t/big"
    setfattr -n user.binary -v 0x00ff10 "$t/a/f3"
    setfattr -n user.probe -v 1 "$t/empty"
    touch -d '2001-02-03 04:05:06.789012345 UTC' "$t/a/f3" "$t/empty"
}
describe() {
    cd "$1"
    find . -mindepth 1 -printf '%p|%y|%m|%U:%G|%n|%T@|%l|' \( -type f -printf '%s' -o -printf '-' \) -printf '\n' |
        sed 's/|d|\([^|]*|[^|]*\)|[0-9]*|/|d|\1|-|/' | sort
    find . -type f -print0 | sort -z | xargs -0 sha256sum
    find . -print0 | sort -z | xargs -0 getfattr -h -d -m '^user\.' -e hex 2>/dev/null
}
same_tree() {
    (describe "$1") >"$L/tree.a"
    (describe "$2") >"$L/tree.b"
    [ "$(wc -l <"$L/tree.a")" -gt 120 ] || fail "the tree to compare with is not whole"
    diff "$L/tree.a" "$L/tree.b" >"$L/tree.diff" || { head -20 "$L/tree.diff" >&2; fail "the trees differ"; }
}
"#;

/// Runs a script with `$M` in the mount and `$L` on the local disk.
#[track_caller]
fn on_mount(script: &str) {
    let cluster = Cluster::builder().start();
    run(&cluster, script);
}

#[track_caller]
fn run(cluster: &Cluster, script: &str) {
    let (mount, local) = (cluster.mount_path(), cluster.local());
    let head = format!("M='{}' L='{}'\n{TREE}", mount.display(), local.display());
    shell::bash(&local, LIMIT, &format!("{head}\n{script}"));
}

#[test]
fn cp_keeps_everything_there_and_back() {
    on_mount(
        r#"
        make_tree "$L/src"
        cp -a "$L/src" "$M/copy"
        same_tree "$L/src" "$M/copy"
        cp -a --reflink=auto "$M/copy" "$M/copy2"
        forget
        same_tree "$L/src" "$M/copy2"
        cp -a --sparse=always "$M/copy2" "$L/back"
        same_tree "$L/src" "$L/back"
        rm -rf "$M/copy" "$M/copy2"
        same "$(ls -A "$M")" "" "left after rm -rf"
        "#,
    );
}

#[test]
fn a_copy_within_the_mount_takes_no_room() {
    on_mount(
        r#"
        head -c 40000000 /dev/urandom >"$M/one"
        sync "$M/one"
        before=$(df --output=used -B1 "$M" | tail -1)
        cp --reflink=auto "$M/one" "$M/two"
        sync "$M/two"
        after=$(df --output=used -B1 "$M" | tail -1)
        [ $((after - before)) -lt 130000000 ] || fail "the copy took $((after - before)) bytes"
        forget
        cmp "$M/one" "$M/two"
        printf changed | dd of="$M/two" bs=1 seek=20000000 conv=notrunc status=none
        forget
        cmp -n 20000000 "$M/one" "$M/two"
        cmp -s "$M/one" "$M/two" && fail "a change of the copy is not seen"
        same "$(dd if="$M/two" bs=1 skip=20000000 count=7 status=none)" changed "what was written"
        "#,
    );
}

#[test]
fn tar_round_trip_with_xattrs_and_holes() {
    on_mount(
        r#"
        make_tree "$L/src"
        o=(--numeric-owner --xattrs '--xattrs-include=user.*')
        tar -C "$L" "${o[@]}" -cSf "$M/t.tar" src
        mkdir "$M/out"
        tar -C "$M/out" "${o[@]}" -xpSf "$M/t.tar"
        same_tree "$L/src" "$M/out/src"
        forget
        [ "$(stat -c %b "$M/out/src/sparse")" -lt 1000 ] || fail "the hole takes room: $(stat -c %b "$M/out/src/sparse") blocks"
        tar -C "$M/out" "${o[@]}" -czf "$L/back.tgz" src
        mkdir "$L/out"
        tar -C "$L/out" "${o[@]}" -xpzf "$L/back.tgz"
        same_tree "$L/src" "$L/out/src"
        tar -C "$M/out" -df "$M/t.tar"
        "#,
    );
}

#[test]
fn rsync_round_trip_sees_no_difference() {
    on_mount(
        r#"
        o="-aHSX --modify-window=-1"
        make_tree "$L/src"
        rsync $o "$L/src/" "$M/copy/"
        same_tree "$L/src" "$M/copy"
        same "$(rsync $o --checksum --itemize-changes --dry-run "$L/src/" "$M/copy/")" "" "differences"
        printf x | dd of="$L/src/big" bs=1 seek=1500000 conv=notrunc status=none
        echo more >>"$L/src/a/b/f4"
        rm "$L/src/a/f9"
        mv "$L/src/a/b/f7" "$L/src/renamed"
        rsync $o --checksum --delete "$L/src/" "$M/copy/"
        same_tree "$L/src" "$M/copy"
        printf y | dd of="$L/src/big" bs=1 seek=2500000 conv=notrunc status=none
        rsync $o --no-S --inplace --no-whole-file --checksum "$L/src/" "$M/copy/"
        forget
        rsync $o "$M/copy/" "$L/back/"
        same_tree "$L/src" "$L/back"
        "#,
    );
}

#[test]
fn git_commits_clones_collects_and_checks() {
    on_mount(
        r#"
        git init -q -b main "$L/origin"
        cd "$L/origin"
        for i in $(seq 1 20); do
            mkdir -p d$((i % 5))
            head -c $((i * 3000)) /dev/urandom | base64 >"d$((i % 5))/f$i"
            echo "line $i" >>log
            git add -A
            git commit -qm "commit $i"
        done
        git clone -q "$L/origin" "$M/clone"
        cd "$M/clone"
        same "$(git rev-parse HEAD)" "$(git -C "$L/origin" rev-parse HEAD)" "HEAD of the clone"
        for i in $(seq 1 12); do
            echo "mine $i" >>mine
            git mv "d$((i % 5))/f$i" "d$((i % 5))/g$i"
            git add -A
            git commit -qm "mine $i"
        done
        git checkout -q -b side HEAD~8
        echo side >side
        git add side
        git commit -qm side
        git checkout -q main
        git merge -q -m merge side
        git worktree add -q "$M/worktree" side
        same "$(git status --porcelain)" "" "git status"
        git gc -q --prune=now
        git fsck --full --strict 2>"$L/fsck" >&2
        git repack -adfq
        git reset -q --hard HEAD~5
        same "$(git status --porcelain)" "" "git status after reset"
        forget
        git fsck --full 2>/dev/null
        git push -q "$L/origin" main:pushed
        same "$(git -C "$L/origin" rev-parse pushed)" "$(git rev-parse HEAD)" "what was pushed"
        git -C "$L/origin" fsck --full 2>/dev/null
        git clone -q "$M/clone" "$M/clone2"
        same "$(git -C "$M/clone2" rev-parse HEAD)" "$(git rev-parse HEAD)" "HEAD of the second clone"
        git -C "$M/clone2" fsck --full 2>/dev/null
        cd /
        rm -rf "$M/clone" "$M/clone2" "$M/worktree"
        same "$(ls -A "$M")" "" "left after rm -rf"
        "#,
    );
}

/// The same statements give the same database, here and there.
const SQL: &str = r#"
load() {
    echo "PRAGMA journal_mode=$1; PRAGMA synchronous=FULL; CREATE TABLE t(id INTEGER PRIMARY KEY, k INT, v TEXT); CREATE INDEX tk ON t(k);"
    echo "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c WHERE x<20000) INSERT INTO t SELECT x, (x*7919)%1000, printf('%064d', x*31) FROM c;"
    for i in $(seq 1 40); do
        echo "BEGIN; UPDATE t SET v=v||'$i' WHERE k=$i; DELETE FROM t WHERE k=$((i + 500)); INSERT INTO t(k,v) VALUES($i, 'new$i'); COMMIT;"
    done
    echo "BEGIN; DELETE FROM t; ROLLBACK; VACUUM; ANALYZE;"
}
load $MODE | sqlite3 "$M/db" >/dev/null
load $MODE | sqlite3 "$L/db" >/dev/null
same "$(sqlite3 "$M/db" 'PRAGMA journal_mode')" "$NAME" "journal mode"
same "$(sqlite3 "$M/db" 'PRAGMA integrity_check')" ok integrity_check
forget
same "$(sqlite3 "$M/db" .dump | sha256sum)" "$(sqlite3 "$L/db" .dump | sha256sum)" dump
# Several writers at once: every increment must count.
sqlite3 "$M/c.db" "PRAGMA journal_mode=$MODE; CREATE TABLE c(n INT); INSERT INTO c VALUES(0)" >/dev/null
pids=()
for n in 1 2 3; do
    (for i in $(seq 1 15); do echo "BEGIN IMMEDIATE; UPDATE c SET n=n+1; COMMIT;"; done |
        sqlite3 -bail -cmd '.timeout 60000' "$M/c.db") &
    pids+=($!)
done
for p in "${pids[@]}"; do wait "$p"; done
same "$(sqlite3 "$M/c.db" 'SELECT n FROM c; PRAGMA integrity_check' | tr '\n' ' ')" "45 ok " increments
"#;

#[test]
fn sqlite_with_a_rollback_journal() {
    on_mount(&format!("MODE=DELETE NAME=delete\n{SQL}"));
}

#[test]
fn sqlite_with_a_write_ahead_log() {
    on_mount(&format!("MODE=WAL NAME=wal\n{SQL}"));
}

#[test]
fn make_builds_a_c_program_and_sees_what_changed() {
    on_mount(
        r#"
        cd "$M"
        for i in $(seq 1 12); do
            printf '#include "all.h"\n#include <stdio.h>\nint f%d(int x) { return x %% 7 ? x + %d : x * 2; }\n' "$i" "$i" >"f$i.c"
            echo "int f$i(int);"
        done >all.h
        {
            printf '#include "all.h"\n#include <stdio.h>\nint main(void) { int x = 1;\n'
            for i in $(seq 1 12); do echo "x = f$i(x);"; done
            echo 'printf("%d\n", x); return 0; }'
        } >main.c
        printf 'O = $(patsubst %%.c,%%.o,$(wildcard f*.c))\nprog: main.o libf.a\n\tcc -o $@ main.o -L. -lf\nlibf.a: $(O)\n\tar rcs $@ $(O)\n%%.o: %%.c all.h\n\tcc -O1 -g -c -o $@ $<\n' >Makefile
        make -j2 >"$L/make.log" 2>&1 || { tail -5 "$L/make.log"; fail make; }
        mkdir "$L/ref"
        cp ./*.c ./*.h Makefile "$L/ref"
        make -C "$L/ref" -j2 >/dev/null
        same "$(./prog)" "$("$L/ref/prog")" "output of the program"
        make -q || fail "make wants to build again: times are not kept"
        sleep 1.1
        touch f3.c
        make -q && fail "make does not see a touched file"
        make -j2 >"$L/make2.log"
        same "$(grep -c ' -c ' "$L/make2.log")" 1 "files compiled after one touch"
        forget
        make -q || fail "make wants to build again after the caches were dropped"
        same "$(./prog)" "$("$L/ref/prog")" "output of the program"
        "#,
    );
}

#[test]
fn cargo_builds_a_project_and_sees_what_changed() {
    on_mount(
        r#"
        export CARGO_NET_OFFLINE=true RUSTUP_HOME=${RUSTUP_HOME:-$HOME/.rustup} CARGO_HOME=$L/cargo
        unset CARGO_TARGET_DIR RUSTFLAGS
        mkdir -p "$M/p/src" "$M/p/lib/src"
        cd "$M/p"
        printf '[package]\nname = "p"\nversion = "0.1.0"\nedition = "2021"\n[dependencies]\nlib = { path = "lib" }\n[workspace]\nmembers = ["lib"]\n' >Cargo.toml
        printf '[package]\nname = "lib"\nversion = "0.1.0"\nedition = "2021"\n' >lib/Cargo.toml
        echo 'pub fn f(x: u64) -> u64 { (0..x).sum() }' >lib/src/lib.rs
        echo 'fn main() { println!("{}", lib::f(1000)); }' >src/main.rs
        cargo build --quiet
        same "$(./target/debug/p)" 499500 "output of the program"
        cargo build >"$L/again" 2>&1
        grep -q Compiling "$L/again" && fail "cargo builds again: times are not kept"
        sleep 1.1
        echo '// changed' >>lib/src/lib.rs
        cargo build >"$L/again" 2>&1
        grep -q 'Compiling lib' "$L/again" || fail "cargo does not see a changed file"
        same "$(./target/debug/p)" 499500 "output of the program"
        "#,
    );
}

#[test]
fn fio_verifies_what_it_wrote_in_every_way() {
    on_mount(
        r#"
        for how in "psync 0 4k-128k" "psync 1 4k-128k" "mmap 0 4k-64k" "psync 0 1k-9k"; do
            read -r engine direct sizes <<<"$how"
            fio --name=$engine-$direct-$sizes --directory="$M" --ioengine=$engine --direct=$direct --rw=randwrite \
                --bsrange=$sizes --size=8m --numjobs=2 --verify=crc32c --verify_fatal=1 --do_verify=1 --fsync=64 \
                --randseed=7 --minimal >"$L/fio.log" 2>&1 || { cut -c1-300 "$L/fio.log"; fail "fio $how"; }
        done
        "#,
    );
}

#[test]
fn a_full_read_after_the_caches_are_dropped_gives_what_was_written() {
    let cluster = Cluster::builder().chunk_size(1 << 20).start();
    let path = cluster.mount_path().join("file");
    cairn_tests::pattern::write_file(&path, 11, 30 << 20);
    run(&cluster, "forget");
    cairn_tests::pattern::check_file(&path, 11, 30 << 20);
    run(
        &cluster,
        "cat \"$M/file\" >/dev/null; forget; dd if=\"$M/file\" iflag=direct bs=1M of=\"$L/back\" status=none",
    );
    cairn_tests::pattern::check_file(&cluster.local().join("back"), 11, 30 << 20);
}

#[test]
fn what_a_mount_left_is_there_after_an_orderly_end_of_everything() {
    let mut cluster = Cluster::builder().start();
    run(&cluster, "make_tree \"$L/src\"; cp -a \"$L/src\" \"$M/copy\"");
    let status = cluster.mount_process().terminate(Duration::from_secs(30));
    assert!(status.success(), "SIGTERM is an orderly end: {status}");
    let mount = cluster.path().join("mnt");
    assert!(!cairn_tests::cluster::is_mounted(&mount), "SIGTERM unmounts");
    cluster.kill9_mount();
    for index in 0..cluster.nodes() {
        let status = cluster.node_process(index).terminate(Duration::from_secs(20));
        assert!(status.success(), "datanode {index}: {status}");
        cluster.kill9_node(index);
    }
    let status = cluster.coordinator_process().terminate(Duration::from_secs(20));
    assert!(status.success(), "coordinator: {status}");
    cluster.kill9_coordinator();
    cluster.restart();
    run(&cluster, "same_tree \"$L/src\" \"$M/copy\"");
}

#[test]
fn umount_waits_for_the_last_byte() {
    let mut cluster = Cluster::builder().start();
    let path = cluster.mount_path();
    cairn_tests::pattern::write_file(&path.join("file"), 12, 64 << 20);
    cluster.run_ok(&["umount", path.to_str().expect("path")]);
    assert!(!cairn_tests::cluster::is_mounted(&path));
    let status = cluster.mount_process().wait_exit(Duration::from_secs(20));
    assert!(status.success(), "{status}");
    cluster.kill9_mount();
    cluster.restart();
    cairn_tests::pattern::check_file(&path.join("file"), 12, 64 << 20);
}

#[test]
fn a_read_only_mount_refuses_changes() {
    let cluster = Cluster::builder().start();
    std::fs::write(cluster.mount_path().join("file"), "content").expect("write");
    // One more daemon, on another directory, over the same cluster.
    let other = cluster.mount_at_with(Path::new("ro"), &["--read-only"]);
    assert_eq!(std::fs::read(other.path().join("file")).expect("read"), b"content");
    let error = std::fs::write(other.path().join("new"), "x").expect_err("a write");
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    let error = std::fs::remove_file(other.path().join("file")).expect_err("an unlink");
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
}
