//! Sizes, times and modes as people read them.

use std::time::Duration;

use cairn_cli::human;

#[test]
fn sizes_keep_one_to_four_digits() {
    for (bytes, text) in [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (102_400, "100 KiB"),
        (1_048_575, "1.0 MiB"),
        (8 << 20, "8.0 MiB"),
        (100 << 30, "100 GiB"),
        (1 << 40, "1.0 TiB"),
        (u64::MAX, "16.0 EiB"),
    ] {
        assert_eq!(human::size(bytes), text, "{bytes}");
    }
}

#[test]
fn spans_name_their_two_largest_units() {
    for (millis, text) in [
        (0, "0 ms"),
        (999, "999 ms"),
        (1_000, "1 s"),
        (59_999, "59 s"),
        (60_000, "1 min"),
        (125_000, "2 min 5 s"),
        (3_600_000, "1 h"),
        (14_520_000, "4 h 2 min"),
        (90_000_000, "1 d 1 h"),
    ] {
        assert_eq!(human::span(Duration::from_millis(millis)), text);
    }
}

#[test]
fn the_past_is_told_from_now() {
    assert_eq!(human::ago(0, 5), "never");
    assert_eq!(human::ago(1, 5_000_000_001), "5 s ago");
    // Clocks of two machines differ.
    assert_eq!(human::ago(10, 5), "0 ms ago");
}

#[test]
fn parts_and_counts() {
    assert_eq!(human::percent(1, 0), "-");
    assert_eq!(human::percent(1, 3), "33%");
    assert_eq!(human::count(1, "file"), "1 file");
    assert_eq!(human::count(0, "file"), "0 files");
}

#[test]
fn modes_look_like_those_of_ls() {
    assert_eq!(human::mode('-', 0o644), "-rw-r--r--");
    assert_eq!(human::mode('d', 0o1777), "drwxrwxrwt");
    assert_eq!(human::mode('-', 0o4755), "-rwsr-xr-x");
    assert_eq!(human::mode('-', 0o6644), "-rwSr-Sr--");
    assert_eq!(human::mode('d', 0o1770), "drwxrwx--T");
}

#[test]
fn names_can_not_write_to_the_terminal() {
    assert_eq!(human::name("größe".as_bytes()), "größe");
    assert_eq!(human::name(b"a\x1b[31m\n"), "a\\u{1b}[31m\\n");
    assert_eq!(human::name(b"\xff\xfe"), "\\xff\\xfe");
}

#[test]
fn times_are_dates() {
    let text = human::time(1_700_000_000_000_000_000);
    assert!(text.starts_with("2023-11-1") && text.len() == 19, "{text}");
    assert!(human::time(-1).starts_with("19"), "{}", human::time(-1));
}
