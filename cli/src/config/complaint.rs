//! What is said about a setting that can not be used: where it stands, its key, its value, and
//! what was expected.

use cairn_runtime::config::ConfigError;
use figment::error::Kind;

use super::{Config, Origin, Settings};
use crate::failure::Failure;

/// A key that is not known, or a value of the wrong type or form.
pub(super) fn form(settings: &Settings, error: figment::Error) -> Failure {
    let path = error.path.join(".");
    match &error.kind {
        Kind::UnknownField(name, known) => {
            let key = match path.strip_suffix(name.as_str()) {
                Some(parent) => format!("{parent}{name}"),
                None if path.is_empty() => name.clone(),
                None => format!("{path}.{name}"),
            };
            let what = place(&settings.origin(&key), &key);
            Failure::usage(what, format!("there is no such setting{}", nearest(name, known)))
                .next("`cairn config show` lists all")
        }
        kind => {
            let value = settings.given(&path).map(|value| format!(" = {value}")).unwrap_or_default();
            let what = format!("{}{value}", place(&settings.origin(&path), &path));
            Failure::usage(what, reason(kind)).next(expected(&path))
        }
    }
}

/// A value outside its range, or that does not go with the others.
pub(super) fn range(settings: &Settings, section: &str, error: &ConfigError) -> Failure {
    match error {
        ConfigError::OutOfRange { key, value, expected } => {
            let full = if key.contains('.') { (*key).to_owned() } else { format!("{section}.{key}") };
            let what = format!("{} = {value}", place(&settings.origin(&full), &full));
            let ending = if expected.contains("expected") { "" } else { " was expected" };
            Failure::usage(what, format!("{expected}{ending}"))
        }
        ConfigError::Invalid(_) | ConfigError::Unreadable { .. } => {
            Failure::usage(format!("section [{section}]"), error)
        }
    }
}

fn place(origin: &Origin, key: &str) -> String {
    match origin {
        Origin::Default | Origin::Up => format!("setting {key}"),
        origin => format!("{origin}: {key}"),
    }
}

fn reason(kind: &Kind) -> String {
    match kind {
        Kind::Message(text) => text.clone(),
        Kind::InvalidType(got, wanted) | Kind::InvalidValue(got, wanted) => {
            format!("this is {got}, and {wanted} was expected")
        }
        other => other.to_string(),
    }
}

/// An example, from the default of the key.
fn expected(key: &str) -> String {
    let default = serde_json::to_value(Config::default()).ok();
    let pointer = format!("/{}", key.replace('.', "/"));
    match default.as_ref().and_then(|config| config.pointer(&pointer)) {
        Some(value) if !value.is_null() => format!("the default is {value}"),
        _ => "`cairn config init` explains every setting".to_owned(),
    }
}

/// A known name that looks like the one that was typed.
fn nearest(name: &str, known: &[&str]) -> String {
    let close = known.iter().map(|&k| (distance(name, k), k)).min();
    match close {
        Some((steps, known)) if steps <= 1 + name.len() / 4 => format!("; {known} was perhaps meant"),
        _ => format!("; there are {}", known.join(", ")),
    }
}

/// Levenshtein's: how many letters must change, come or go.
pub(super) fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let cost = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
