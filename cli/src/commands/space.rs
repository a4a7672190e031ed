//! `cairn du` and `cairn df`.

use std::collections::HashSet;

use cairn_client::{Attr, Kind};
use serde_json::{Value, json};

use super::{Tool, close};
use crate::args::{DfArgs, DuArgs, RemotePath};
use crate::failure::{Exit, Failure};
use crate::human;
use crate::output::{Output, table};
use crate::remote::Remote;

/// Shows the space that each directory uses, with all below it. As JSON: an array.
pub(super) async fn du(tool: &Tool, mut args: DuArgs) -> Result<Exit, Failure> {
    if args.paths.is_empty() {
        args.paths.push(RemotePath::root());
    }
    let (client, shutdown) = tool.client().await?;
    let mut walk = Usage {
        remote: Remote::new(&client),
        args: &args,
        output: tool.output,
        lines: Vec::new(),
        seen: HashSet::new(),
    };
    let mut exit = Exit::Done;
    for path in &args.paths {
        if let Err(failure) = walk.path(path).await {
            tool.output.complain(&failure);
            exit = failure.exit;
        }
    }
    let lines = walk.lines;
    close(&client, &shutdown).await?;
    if tool.output.json {
        tool.output.json(&Value::Array(lines))?;
    }
    Ok(exit)
}

struct Usage<'a> {
    remote: Remote,
    args: &'a DuArgs,
    output: Output,
    lines: Vec<Value>,
    /// Files with several names count once.
    seen: HashSet<u64>,
}

/// A directory that is being added up.
struct Open {
    path: RemotePath,
    total: u64,
    /// Directories in it that come next.
    left: Vec<(RemotePath, Attr)>,
}

impl Usage<'_> {
    async fn path(&mut self, path: &RemotePath) -> Result<(), Failure> {
        let attr = self.remote.lstat(path).await?;
        if attr.kind != Kind::Directory {
            let own = self.own(&attr);
            return self.line(path, own);
        }
        let mut stack = vec![self.open(path.clone(), &attr).await?];
        while let Some(top) = stack.last_mut() {
            if let Some((path, attr)) = top.left.pop() {
                stack.push(self.open(path, &attr).await?);
                continue;
            }
            let Some(done) = stack.pop() else { break };
            if let Some(parent) = stack.last_mut() {
                parent.total += done.total;
            }
            if stack.is_empty() || !self.args.summarize {
                self.line(&done.path, done.total)?;
            }
        }
        Ok(())
    }

    async fn open(&mut self, path: RemotePath, attr: &Attr) -> Result<Open, Failure> {
        let mut open = Open { total: self.own(attr), left: Vec::new(), path };
        for (name, attr) in self.remote.list(&open.path).await? {
            if attr.kind == Kind::Directory {
                open.left.push((open.path.join(&name), attr));
            } else {
                open.total += self.own(&attr);
            }
        }
        open.left.reverse();
        Ok(open)
    }

    fn own(&mut self, attr: &Attr) -> u64 {
        if attr.kind != Kind::Directory && attr.nlink > 1 && !self.seen.insert(attr.inode.get()) {
            return 0;
        }
        match (self.args.apparent_size, attr.kind) {
            (_, Kind::Directory) => 0,
            (true, _) => attr.size,
            (false, _) => attr.allocated,
        }
    }

    fn line(&mut self, path: &RemotePath, bytes: u64) -> Result<(), Failure> {
        if self.output.json {
            self.lines.push(json!({ "path": path.to_string(), "bytes": bytes }));
            return Ok(());
        }
        let size = if self.args.bytes { bytes.to_string() } else { human::size(bytes) };
        self.output.data(format!("{size:<10}  {}\n", human::name(path.as_bytes())).as_bytes())
    }
}

/// Shows the space of the cluster. As JSON: an object.
pub(super) async fn df(tool: &Tool, args: &DfArgs) -> Result<(), Failure> {
    let cluster = tool.cluster()?;
    let space = cluster.stat_fs().await?;
    if tool.output.json {
        return tool.output.json(&json!({
            "coordinator": cluster.address(),
            "capacity": space.capacity, "used": space.used, "available": space.available,
            "inodes": space.inodes, "inodes_max": space.inodes_max,
        }));
    }
    let size = |bytes: u64| if args.bytes { bytes.to_string() } else { human::size(bytes) };
    let mut rows = table(&["CLUSTER", "SIZE", "USED", "AVAILABLE", "USE", "INODES"], &[1, 2, 3, 4, 5]);
    rows.add_row([
        cluster.address().to_owned(),
        size(space.capacity),
        size(space.used),
        size(space.available),
        human::percent(space.used, space.used.saturating_add(space.available)),
        space.inodes.to_string(),
    ]);
    tool.output.table(rows)
}
