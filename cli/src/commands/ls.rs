//! `cairn ls`.

use cairn_client::{Attr, Kind};
use serde_json::Value;

use super::files::attr_json;
use super::{Tool, close};
use crate::args::{LsArgs, RemotePath};
use crate::failure::{Exit, Failure};
use crate::output::{Output, table};
use crate::remote::Remote;
use crate::{human, local};

/// Directories.
const DIRECTORY: anstyle::Style = anstyle::AnsiColor::Blue.on_default().bold();
/// Symlinks.
const SYMLINK: anstyle::Style = anstyle::AnsiColor::Cyan.on_default();
/// Files that can be run.
const PROGRAM: anstyle::Style = anstyle::AnsiColor::Green.on_default();

/// Lists directories. As JSON: an array with an object for each entry.
pub(super) async fn ls(tool: &Tool, mut args: LsArgs) -> Result<Exit, Failure> {
    if args.paths.is_empty() {
        args.paths.push(RemotePath::root());
    }
    let (client, shutdown) = tool.client().await?;
    let remote = Remote::new(&client);
    let mut listing = Listing { output: tool.output, args: &args, json: Vec::new(), printed: false };
    let mut exit = Exit::Done;
    for path in &args.paths {
        if let Err(failure) = listing.path(&remote, path).await {
            tool.output.complain(&failure);
            exit = failure.exit;
        }
    }
    let json = listing.json;
    close(&client, &shutdown).await?;
    if tool.output.json {
        tool.output.json(&Value::Array(json))?;
    }
    Ok(exit)
}

struct Listing<'a> {
    output: Output,
    args: &'a LsArgs,
    json: Vec<Value>,
    printed: bool,
}

impl Listing<'_> {
    async fn path(&mut self, remote: &Remote, path: &RemotePath) -> Result<(), Failure> {
        // Like ls(1): a symlink to a directory is shown itself with -l, else followed.
        let attr = if self.args.long { remote.lstat(path).await? } else { remote.stat(path).await? };
        if attr.kind != Kind::Directory || self.args.directory {
            return self.entries(&[(path.clone(), path.as_bytes().to_vec(), attr)]);
        }
        let mut left = vec![(path.clone(), attr)];
        while let Some((path, directory)) = left.pop() {
            let found = remote.list_inode(&directory).await;
            let found = crate::failure::Context::doing(found, &path)?;
            let shown = found.into_iter().filter(|(name, _)| self.args.all || name.first() != Some(&b'.'));
            let entries: Vec<_> = shown.map(|(name, attr)| (path.join(&name), name, attr)).collect();
            if self.args.recursive || self.args.paths.len() > 1 {
                self.heading(&path);
            }
            self.entries(&entries)?;
            if self.args.recursive {
                let below = entries.into_iter().filter(|(_, _, attr)| attr.kind == Kind::Directory);
                let mut below: Vec<_> = below.map(|(path, _, attr)| (path, attr)).collect();
                below.reverse();
                left.extend(below);
            }
        }
        Ok(())
    }

    fn heading(&mut self, path: &RemotePath) {
        let gap = if self.printed { "\n" } else { "" };
        self.output.say(format!("{gap}{}:", human::name(path.as_bytes())));
        self.printed = true;
    }

    fn entries(&mut self, entries: &[(RemotePath, Vec<u8>, Attr)]) -> Result<(), Failure> {
        if self.output.json {
            self.json.extend(entries.iter().map(|(path, _, attr)| attr_json(path.as_bytes(), attr, None)));
            return Ok(());
        }
        self.printed = true;
        if self.args.long {
            return self.long(entries);
        }
        let lines: String =
            entries.iter().map(|(_, name, attr)| format!("{}\n", self.name(name, attr))).collect();
        self.output.data(lines.as_bytes())
    }

    fn long(&self, entries: &[(RemotePath, Vec<u8>, Attr)]) -> Result<(), Failure> {
        let mut accounts = Accounts::default();
        let mut rows = table(&[], &[]);
        for (_, name, attr) in entries {
            let size = if self.args.bytes { attr.size.to_string() } else { human::size(attr.size) };
            let target = attr.symlink_target.as_ref().map(|target| format!(" -> {}", human::name(target)));
            rows.add_row([
                human::mode(kind_letter(attr.kind), attr.mode),
                attr.nlink.to_string(),
                accounts.user(attr.uid),
                accounts.group(attr.gid),
                size,
                human::time(attr.mtime_ns),
                format!("{}{}", self.name(name, attr), target.unwrap_or_default()),
            ]);
        }
        for (index, column) in rows.column_iter_mut().enumerate() {
            column.set_padding((0, 1));
            if index == 1 || index == 4 {
                column.set_cell_alignment(comfy_table::CellAlignment::Right);
            }
        }
        if entries.is_empty() { Ok(()) } else { self.output.table(rows) }
    }

    fn name(&self, name: &[u8], attr: &Attr) -> String {
        let text = human::name(name);
        match attr.kind {
            Kind::Directory => self.output.paint(DIRECTORY, text),
            Kind::Symlink => self.output.paint(SYMLINK, text),
            Kind::File if attr.mode & 0o111 != 0 => self.output.paint(PROGRAM, text),
            _ => text,
        }
    }
}

/// Names of users and groups, each looked up once.
#[derive(Default)]
struct Accounts {
    users: std::collections::HashMap<u32, String>,
    groups: std::collections::HashMap<u32, String>,
}

impl Accounts {
    fn user(&mut self, id: u32) -> String {
        self.users.entry(id).or_insert_with(|| local::account("/etc/passwd", id)).clone()
    }

    fn group(&mut self, id: u32) -> String {
        self.groups.entry(id).or_insert_with(|| local::account("/etc/group", id)).clone()
    }
}

/// The first letter of a line of `ls -l`.
pub(super) fn kind_letter(kind: Kind) -> char {
    match kind {
        Kind::File => '-',
        Kind::Directory => 'd',
        Kind::Symlink => 'l',
        Kind::Fifo => 'p',
        Kind::Socket => 's',
        Kind::CharDevice => 'c',
        Kind::BlockDevice => 'b',
    }
}
