//! `cairn config`.

use serde_json::{Map, Value, json};

use super::Tool;
use crate::args::{ConfigInitArgs, ConfigShowArgs};
use crate::config::{Flags, template};
use crate::failure::{Context, Failure};
use crate::output::table;

/// Prints what is in force, as TOML that could be used as a file, or as a table with origins.
/// As JSON: an object with a key for each setting, holding `value` and `origin`.
pub(super) fn show(tool: &Tool, args: &ConfigShowArgs) -> Result<(), Failure> {
    let settings = tool.settings(Flags::new())?;
    let output = tool.output;
    if output.json {
        let entries = settings.entries()?.into_iter();
        let object: Map<String, Value> = entries
            .map(|entry| (entry.key, json!({ "value": entry.value, "origin": entry.origin.to_string() })))
            .collect();
        return output.json(&object);
    }
    if args.origin {
        let mut rows = table(&["SETTING", "VALUE", "ORIGIN"], &[]);
        for entry in settings.entries()? {
            let value = if entry.value.is_null() { "-".to_owned() } else { entry.value.to_string() };
            rows.add_row([entry.key, value, entry.origin.to_string()]);
        }
        return output.table(rows);
    }
    let text =
        toml::to_string(&settings.whole()?).map_err(|error| Failure::new("show the configuration", error))?;
    output.data(text.as_bytes())
}

pub(super) fn init(tool: &Tool, args: &ConfigInitArgs) -> Result<(), Failure> {
    let text = template()?;
    let Some(file) = &args.file else { return tool.output.data(text.as_bytes()) };
    let written = crate::local::write_text(file, &text, args.force);
    let what = format!("write {}", file.display());
    match written {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            Err(Failure::new(what, "it exists already")
                .next("choose another name, or replace it with --force"))
        }
        written => written.doing(what),
    }?;
    tool.output.say(format!("{} written; every line in it is a comment until you change it", file.display()));
    Ok(())
}
