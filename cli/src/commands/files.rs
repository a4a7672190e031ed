//! `cairn cat`, `stat`, `mkdir`, `rm`.

use bytes::Bytes;
use cairn_client::fs::RemoveOptions;
use cairn_client::{Attr, Kind};
use cairn_proto::ErrorKind;
use serde_json::{Value, json};

use super::ls::kind_letter;
use super::{Tool, close};
use crate::args::{CatArgs, MkdirArgs, RemotePath, RmArgs, StatArgs};
use crate::failure::{Context, Exit, Failure};
use crate::output::STRONG;
use crate::remote::{Remote, umask};
use crate::{human, local};

/// Bytes that are read at once.
const PIECE: usize = 1 << 20;

/// Runs a step for each path, complains about those that fail, and goes on.
macro_rules! for_each_path {
    ($tool:expr, $paths:expr, $exit:ident, |$path:ident| $step:expr) => {
        for $path in $paths {
            let result: Result<(), Failure> = $step;
            if let Err(failure) = result {
                $tool.output.complain(&failure);
                $exit = failure.exit;
            }
        }
    };
}

pub(super) async fn cat(tool: &Tool, args: &CatArgs) -> Result<Exit, Failure> {
    let (client, shutdown) = tool.client().await?;
    let remote = Remote::new(&client);
    let mut exit = Exit::Done;
    for_each_path!(tool, &args.paths, exit, |path| cat_one(tool, &remote, path).await);
    close(&client, &shutdown).await?;
    Ok(exit)
}

async fn cat_one(tool: &Tool, remote: &Remote, path: &RemotePath) -> Result<(), Failure> {
    let attr = remote.stat(path).await?;
    if attr.kind == Kind::Directory {
        return Err(Failure::new(path, "it is a directory").next(format!("`cairn ls {path}` lists it")));
    }
    let file = remote.open(attr.inode).await.doing(path)?;
    let mut offset = 0;
    loop {
        let data = file.content.read(offset, PIECE).await.doing(path)?;
        if data.is_empty() {
            return Ok(());
        }
        offset += data.len() as u64;
        tool.output.data(&data)?;
    }
}

/// Shows all attributes. As JSON: an array with an object for each path.
pub(super) async fn stat(tool: &Tool, args: &StatArgs) -> Result<Exit, Failure> {
    let (client, shutdown) = tool.client().await?;
    let remote = Remote::new(&client);
    let (mut exit, mut all) = (Exit::Done, Vec::new());
    for_each_path!(tool, &args.paths, exit, |path| async {
        let attr = remote.lstat(path).await?;
        let xattrs = match attr.has_xattrs {
            true => remote.coordinator().xattrs(attr.inode).await.doing(path)?,
            false => Vec::new(),
        };
        if tool.output.json {
            all.push(attr_json(path.as_bytes(), &attr, Some(&xattrs)));
        } else {
            print_stat(tool, path, &attr, &xattrs);
        }
        Ok(())
    }
    .await);
    close(&client, &shutdown).await?;
    if tool.output.json {
        tool.output.json(&all)?;
    }
    Ok(exit)
}

fn print_stat(tool: &Tool, path: &RemotePath, attr: &Attr, xattrs: &[(Bytes, Bytes)]) {
    let output = tool.output;
    let name = human::name(path.as_bytes());
    let target = attr.symlink_target.as_ref().map(|target| format!(" -> {}", human::name(target)));
    output.say(format!("{}{}", output.paint(STRONG, name), target.unwrap_or_default()));
    let mode = human::mode(kind_letter(attr.kind), attr.mode);
    let (user, group) = (local::account("/etc/passwd", attr.uid), local::account("/etc/group", attr.gid));
    output.say(format!("  kind       {}, {}", kind_word(attr.kind), human::count(attr.nlink.into(), "name")));
    output.say(format!("  mode       {mode} ({:04o})", attr.mode));
    output.say(format!("  owner      {user} ({}), group {group} ({})", attr.uid, attr.gid));
    output.say(format!("  size       {} ({} bytes)", human::size(attr.size), attr.size));
    output.say(format!("  allocated  {} ({} bytes)", human::size(attr.allocated), attr.allocated));
    output.say(format!(
        "  changed    {} (content), {} (attributes)",
        human::time(attr.mtime_ns),
        human::time(attr.ctime_ns)
    ));
    output.say(format!("  accessed   {}, made {}", human::time(attr.atime_ns), human::time(attr.btime_ns)));
    output.say(format!("  inode      {}, version {}", attr.inode, attr.version));
    for (name, value) in xattrs {
        output.say(format!("  xattr      {} = {}", human::name(name), human::name(value)));
    }
}

/// Attributes with stable keys; `xattrs` only where they were asked for.
pub(super) fn attr_json(path: &[u8], attr: &Attr, xattrs: Option<&[(Bytes, Bytes)]>) -> Value {
    let mut object = json!({
        "path": String::from_utf8_lossy(path),
        "inode": attr.inode.get(),
        "kind": kind_word(attr.kind),
        "mode": format!("{:04o}", attr.mode),
        "uid": attr.uid,
        "gid": attr.gid,
        "nlink": attr.nlink,
        "rdev": attr.rdev,
        "size": attr.size,
        "allocated": attr.allocated,
        "atime_ns": attr.atime_ns,
        "mtime_ns": attr.mtime_ns,
        "ctime_ns": attr.ctime_ns,
        "btime_ns": attr.btime_ns,
        "version": attr.version,
        "symlink_target": attr.symlink_target.as_ref().map(|target| String::from_utf8_lossy(target)),
    });
    if let Some(xattrs) = xattrs {
        let xattrs: serde_json::Map<String, Value> = xattrs
            .iter()
            .map(|(name, value)| {
                (String::from_utf8_lossy(name).into_owned(), String::from_utf8_lossy(value).into())
            })
            .collect();
        object["xattrs"] = xattrs.into();
    }
    object
}

fn kind_word(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "file",
        Kind::Directory => "directory",
        Kind::Symlink => "symlink",
        Kind::Fifo => "fifo",
        Kind::Socket => "socket",
        Kind::CharDevice => "character device",
        Kind::BlockDevice => "block device",
    }
}

pub(super) async fn mkdir(tool: &Tool, args: &MkdirArgs) -> Result<Exit, Failure> {
    let (client, shutdown) = tool.client().await?;
    let remote = Remote::new(&client);
    let usual = 0o777 & !umask();
    let mut exit = Exit::Done;
    for_each_path!(tool, &args.paths, exit, |path| async {
        let mode = args.mode.unwrap_or(usual);
        match remote.files().make_dir(path.to_path(), mode, args.parents).await {
            Err(error) if error.kind() == ErrorKind::NotFound && !args.parents => {
                let why = format!("{} does not exist", path.parent());
                Err(Failure::new(path, why).next("-p makes the directories that are missing, too"))
            }
            made => made.doing(path).map(drop),
        }
    }
    .await);
    close(&client, &shutdown).await?;
    Ok(exit)
}

pub(super) async fn rm(tool: &Tool, args: &RmArgs) -> Result<Exit, Failure> {
    let (client, shutdown) = tool.client().await?;
    let remote = Remote::new(&client);
    let mut exit = Exit::Done;
    for_each_path!(tool, &args.paths, exit, |path| rm_one(&remote, path, args).await);
    close(&client, &shutdown).await?;
    Ok(exit)
}

async fn rm_one(remote: &Remote, path: &RemotePath, args: &RmArgs) -> Result<(), Failure> {
    if path.name().is_none() {
        return Err(Failure::usage("rm /", "the root directory stays").next("name what is in it"));
    }
    let remove = RemoveOptions { recursive: args.recursive, force: args.force };
    match remote.files().remove(path.to_path(), remove).await {
        Err(error) if error.kind() == ErrorKind::IsDirectory && args.dir => {
            remote.files().remove_dir(path.to_path()).await.doing(path)
        }
        Err(error) if error.kind() == ErrorKind::IsDirectory => {
            Err(Failure::new(path, "it is a directory").next("remove it with all in it by -r"))
        }
        removed => removed.doing(path).map(drop),
    }
}
