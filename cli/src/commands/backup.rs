//! `cairn coordinator backup` and `cairn coordinator restore`.

use std::io::Write as _;
use std::path::Path;

use cairn_coordinator::{RestoreOptions, Restored};
use cairn_proto::v1;
use serde_json::json;

use super::Tool;
use crate::args::{BackupArgs, RestoreArgs};
use crate::failure::{Context, Exit, Failure};
use crate::human;

/// Writes a backup of all metadata.
pub(super) async fn backup(tool: &Tool, args: &BackupArgs) -> Result<(), Failure> {
    let done = match &args.file {
        Some(file) => to_file(tool, file, args.force).await?,
        None => in_place(tool).await?,
    };
    if tool.output.json {
        return tool.output.json(&json!({
            "file": done.file, "sequence": done.sequence, "rows": done.rows, "bytes": done.bytes,
        }));
    }
    tool.output.say(format!(
        "{}: {} in {}, as of commit {}",
        done.file,
        human::count(done.rows, "row"),
        human::size(done.bytes),
        done.sequence
    ));
    Ok(())
}

async fn in_place(tool: &Tool) -> Result<v1::BackupDone, Failure> {
    let cluster = tool.cluster()?;
    let mut stream = cluster.backup(true).await?;
    let message = cluster.next_of_backup(&mut stream).await?;
    message.and_then(|message| message.done).ok_or_else(cut_off)
}

fn cut_off() -> Failure {
    Failure::new("back up the metadata", "the coordinator ended the backup early").next("try it again")
}

/// The file appears whole, durably, or not at all.
async fn to_file(tool: &Tool, file: &Path, force: bool) -> Result<v1::BackupDone, Failure> {
    if !force && file.exists() {
        return Err(
            Failure::usage(file.display(), "it exists already").next("name another file, or add --force")
        );
    }
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut name = file.as_os_str().to_owned();
    name.push(".part");
    let part = std::path::PathBuf::from(name);
    let result = receive(tool, &part).await;
    let what = file.display();
    let done = match result {
        Ok(done) => done,
        Err(failure) => {
            // Half of a backup helps nobody.
            let _ = std::fs::remove_file(&part);
            return Err(failure);
        }
    };
    std::fs::rename(&part, file).doing(&what)?;
    open_directory(directory).and_then(|directory| directory.sync_all()).doing(&what)?;
    Ok(v1::BackupDone { file: file.display().to_string(), ..done })
}

#[allow(clippy::disallowed_methods)] // a file of the person at the machine
fn open_directory(directory: &Path) -> std::io::Result<std::fs::File> {
    std::fs::File::open(directory)
}

#[allow(clippy::disallowed_methods)] // a file of the person at the machine
async fn receive(tool: &Tool, part: &Path) -> Result<v1::BackupDone, Failure> {
    let cluster = tool.cluster()?;
    let mut stream = cluster.backup(false).await?;
    let mut file = std::fs::File::create(part).doing(part.display())?;
    while let Some(message) = cluster.next_of_backup(&mut stream).await? {
        if let Some(done) = message.done {
            file.sync_all().doing(part.display())?;
            return Ok(done);
        }
        file.write_all(&message.data).doing(part.display())?;
    }
    Err(cut_off())
}

/// Makes the directory of a coordinator from backups.
pub(super) async fn restore(tool: &Tool, args: RestoreArgs) -> Result<(), Failure> {
    tool.init_command_logs()?;
    let data = args.data.clone();
    let options = RestoreOptions { from: args.from, data: args.data, until: args.until };
    let restored = cairn_coordinator::restore(options).await.map_err(|error| {
        let failure = Failure::new("restore the metadata", &error);
        match error.kind() {
            cairn_proto::ErrorKind::Corrupt => failure
                .next("restore from another place, or up to before the damage with --until")
                .exit(Exit::Unhealthy),
            _ => failure,
        }
    })?;
    if tool.output.json {
        return tool.output.json(&as_json(&restored));
    }
    for warning in &restored.warnings {
        tool.output.note(format!("warning: {warning}"));
    }
    tool.output.say(format!(
        "cluster {}\nfrom    {}, {} (commit {})\nas of   commit {}, {}\nholds   {}, {} of content",
        restored.cluster,
        restored.place,
        restored.base,
        restored.base_sequence,
        restored.sequence,
        human::time(restored.time_ns),
        human::count(restored.inodes, "inode"),
        human::size(restored.bytes),
    ));
    tool.output.say(format!(
        "\nNext: start it with `cairn coordinator --data {}` where the old one was, then look at `cairn status`.\n\
         Nothing is deleted on datanodes until `cairn gc resume --accept-rollback` says that all is well.",
        data.display()
    ));
    Ok(())
}

fn as_json(restored: &Restored) -> serde_json::Value {
    json!({
        "cluster": restored.cluster.to_string(),
        "place": restored.place,
        "base": restored.base,
        "base_sequence": restored.base_sequence,
        "sequence": restored.sequence,
        "time_ns": restored.time_ns,
        "inodes": restored.inodes,
        "bytes": restored.bytes,
        "warnings": restored.warnings,
    })
}
