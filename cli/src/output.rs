//! Printing: text for people (tables, colour on a terminal only) or JSON with stable keys.

use std::io::{self, IsTerminal, Write};

use anstyle::{AnsiColor, Style};
use comfy_table::presets::NOTHING;
use comfy_table::{Attribute, Cell, CellAlignment, Color, ContentArrangement, Table};
use serde::Serialize;

use crate::args::GlobalArgs;
use crate::failure::{Context, Failure};

/// Good news.
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
/// Something is not as it should be.
pub(crate) const WARN: Style = AnsiColor::Yellow.on_default();
/// Something is broken.
pub(crate) const BAD: Style = AnsiColor::Red.on_default().bold();
/// Headings and what matters most.
pub(crate) const STRONG: Style = Style::new().bold();

/// How and how much to print.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// JSON instead of text.
    pub json: bool,
    /// Errors only.
    pub quiet: bool,
    /// Colour on standard output.
    pub color: bool,
}

impl Output {
    /// Decides about colour: a terminal, no `NO_COLOR`, no `--no-color`.
    pub(crate) fn new(global: &GlobalArgs) -> Self {
        let no_color = global.no_color || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        if no_color {
            anstream::ColorChoice::Never.write_global();
        }
        Self { json: global.json, quiet: global.quiet, color: !no_color && io::stdout().is_terminal() }
    }

    /// Text in a style, or plain when there is no colour.
    pub(crate) fn paint(&self, style: Style, text: impl std::fmt::Display) -> String {
        if self.color { format!("{style}{text}{style:#}") } else { text.to_string() }
    }

    /// Prints a line for people; nothing with `--quiet` or `--json`.
    pub(crate) fn say(&self, text: impl std::fmt::Display) {
        if !self.quiet && !self.json {
            // A reader that has gone away (`cairn ls | head`) is no failure.
            let _ = writeln!(anstream::stdout(), "{text}");
        }
    }

    /// Prints a note on standard error; nothing with `--quiet`.
    pub(crate) fn note(&self, text: impl std::fmt::Display) {
        if !self.quiet {
            let _ = writeln!(anstream::stderr(), "cairn: {text}");
        }
    }

    /// Asks a person something on standard error; the cursor stays behind the question.
    pub(crate) fn ask(&self, question: &str) -> Result<(), Failure> {
        let mut stderr = anstream::stderr();
        write!(stderr, "cairn: {question}").and_then(|()| stderr.flush()).doing("ask")
    }

    /// Prints a failure that does not end the command.
    pub(crate) fn complain(&self, failure: &Failure) {
        let _ = writeln!(anstream::stderr(), "cairn: {failure}");
    }

    /// Prints data as one JSON document.
    pub(crate) fn json(&self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(value).map_err(|error| Failure::new("print JSON", error))?;
        self.data(format!("{text}\n").as_bytes())
    }

    /// Prints data as one line of JSON.
    pub(crate) fn json_line(&self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string(value).map_err(|error| Failure::new("print JSON", error))?;
        self.data(format!("{text}\n").as_bytes())
    }

    /// Prints bytes as they are. A reader that has gone away ends the process quietly, as `cat` does.
    pub(crate) fn data(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(Exit128::PIPE),
            result => result.doing("write to standard output"),
        }
    }

    /// A cell of a table in a style. (Escape codes in its text would spoil the width of the column.)
    pub(crate) fn cell(&self, style: Style, text: impl std::fmt::Display) -> Cell {
        let cell = Cell::new(text);
        match style.get_fg_color() {
            Some(anstyle::Color::Ansi(AnsiColor::Green)) => cell.fg(Color::Green),
            Some(anstyle::Color::Ansi(AnsiColor::Yellow)) => cell.fg(Color::Yellow),
            Some(anstyle::Color::Ansi(AnsiColor::Red)) => cell.fg(Color::Red).add_attribute(Attribute::Bold),
            _ => cell,
        }
    }

    /// Prints a table.
    pub(crate) fn table(&self, mut table: Table) -> Result<(), Failure> {
        if self.color {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
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
pub(crate) fn table(headings: &[&str], right: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if !headings.is_empty() {
        table.set_header(headings.iter().copied());
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}
