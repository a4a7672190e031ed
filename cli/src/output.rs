//! Printing: text for people (tables, colour on a terminal only) or JSON with stable keys.

use std::io::{self, IsTerminal, Write};

use anstyle::{AnsiColor, Style};
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use serde::Serialize;

use crate::args::GlobalArgs;
use crate::failure::{Context, Failure};

/// Good news.
pub const GOOD: Style = AnsiColor::Green.on_default();
/// Something is not as it should be.
pub const WARN: Style = AnsiColor::Yellow.on_default();
/// Something is broken.
pub const BAD: Style = AnsiColor::Red.on_default().bold();
/// Headings and what matters most.
pub const STRONG: Style = Style::new().bold();

/// How and how much to print.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    /// JSON instead of text.
    pub json: bool,
    /// Errors only.
    pub quiet: bool,
    /// Colour on standard output.
    pub color: bool,
}

impl Output {
    /// Decides about colour: a terminal, no `NO_COLOR`, no `--no-color`.
    pub fn new(global: &GlobalArgs) -> Self {
        let no_color = global.no_color || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        if no_color {
            anstream::ColorChoice::Never.write_global();
        }
        Self { json: global.json, quiet: global.quiet, color: !no_color && io::stdout().is_terminal() }
    }

    /// Text in a style, or plain when there is no colour.
    pub fn paint(&self, style: Style, text: impl std::fmt::Display) -> String {
        if self.color { format!("{style}{text}{style:#}") } else { text.to_string() }
    }

    /// Prints a line for people; nothing with `--quiet` or `--json`.
    pub fn say(&self, text: impl std::fmt::Display) {
        if !self.quiet && !self.json {
            // A reader that has gone away (`cairn ls | head`) is no failure.
            let _ = writeln!(anstream::stdout(), "{text}");
        }
    }

    /// Prints a note on standard error; nothing with `--quiet`.
    pub fn note(&self, text: impl std::fmt::Display) {
        if !self.quiet {
            let _ = writeln!(anstream::stderr(), "cairn: {text}");
        }
    }

    /// Prints a failure that does not end the command.
    pub fn complain(&self, failure: &Failure) {
        let _ = writeln!(anstream::stderr(), "cairn: {failure}");
    }

    /// Prints data as one JSON document.
    pub fn json(&self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(value)
            .map_err(|error| Failure::new("print JSON", error))?;
        self.data(format!("{text}\n").as_bytes())
    }

    /// Prints data as one line of JSON.
    pub fn json_line(&self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string(value).map_err(|error| Failure::new("print JSON", error))?;
        self.data(format!("{text}\n").as_bytes())
    }

    /// Prints bytes as they are. A reader that has gone away ends the process quietly, as `cat` does.
    pub fn data(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                std::process::exit(Exit128::PIPE)
            }
            result => result.doing("write to standard output"),
        }
    }

    /// Prints a table.
    pub fn table(&self, table: &Table) -> Result<(), Failure> {
        // Trailing blanks are of no use, least of all in a pipe.
        let mut text = String::new();
        for line in table.lines() {
            text.push_str(line.trim_end());
            text.push('\n');
        }
        self.data(text.as_bytes())
    }
}

/// Exit statuses of processes that a signal ended, as shells show them.
struct Exit128;

impl Exit128 {
    /// SIGPIPE.
    const PIPE: i32 = 128 + 13;
}

/// An empty table with headings, no lines, and the given columns (from 0) aligned to the right.
pub fn table(headings: &[&str], right: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headings.iter().copied());
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}
