//! Commands on files in the cluster.

use clap::Args;

use super::RemotePath;

/// Arguments of `cairn cat`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  cairn cat /logs/today | grep error")]
pub struct CatArgs {
    /// Files in the cluster.
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<RemotePath>,
}

/// Arguments of `cairn ls`.
#[derive(Debug, Args)]
#[command(disable_help_flag = true, after_help = "Examples:\n  cairn ls\n  cairn ls -l /photos")]
pub struct LsArgs {
    /// Files or directories in the cluster [default: /].
    #[arg(value_name = "PATH")]
    pub paths: Vec<RemotePath>,
    /// One line for each, with mode, links, owner, size and time.
    #[arg(short, long)]
    pub long: bool,
    /// Also names that start with a dot.
    #[arg(short, long)]
    pub all: bool,
    /// Also what is in the directories below.
    #[arg(short = 'R', long)]
    pub recursive: bool,
    /// The directory itself, not what is in it.
    #[arg(short, long)]
    pub directory: bool,
    /// Sizes such as 1.5 MiB (the default).
    #[arg(short, long = "human-readable", conflicts_with = "bytes")]
    pub human: bool,
    /// Sizes in bytes.
    #[arg(short, long)]
    pub bytes: bool,
    /// Print help.
    #[arg(long, action = clap::ArgAction::Help)]
    pub help: Option<bool>,
}

/// Arguments of `cairn stat`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  cairn stat --json /photos/a.jpg")]
pub struct StatArgs {
    /// Files or directories in the cluster.
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<RemotePath>,
}

/// Arguments of `cairn mkdir`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  cairn mkdir -p /photos/2026/summer")]
pub struct MkdirArgs {
    /// Directories to make.
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<RemotePath>,
    /// Also those above; one that exists is fine.
    #[arg(short, long)]
    pub parents: bool,
    /// Permission bits [default: 755].
    #[arg(short, long, value_name = "OCTAL", value_parser = parse_mode)]
    pub mode: Option<u32>,
}

/// Arguments of `cairn rm`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  cairn rm -r /photos/2019")]
pub struct RmArgs {
    /// Files or directories in the cluster.
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<RemotePath>,
    /// Directories with all that is in them.
    #[arg(short, long)]
    pub recursive: bool,
    /// What is not there is fine.
    #[arg(short, long)]
    pub force: bool,
    /// Empty directories, too.
    #[arg(short, long)]
    pub dir: bool,
}

/// Arguments of `cairn mv`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  cairn mv /photos/new /photos/2026")]
pub struct MvArgs {
    /// Files or directories in the cluster.
    #[arg(value_name = "SOURCE", required = true, num_args = 1..)]
    pub sources: Vec<RemotePath>,
    /// A directory that exists, or a new name.
    #[arg(value_name = "DESTINATION")]
    pub destination: RemotePath,
    /// Fail when the destination exists.
    #[arg(short, long)]
    pub no_clobber: bool,
}

/// Arguments of `cairn cp`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  cairn cp -r /photos /photos-before")]
pub struct CpArgs {
    /// Files or directories in the cluster.
    #[arg(value_name = "SOURCE", required = true, num_args = 1..)]
    pub sources: Vec<RemotePath>,
    /// A directory that exists, or a new name.
    #[arg(value_name = "DESTINATION")]
    pub destination: RemotePath,
    /// Directories with all that is in them.
    #[arg(short, long)]
    pub recursive: bool,
    /// Leave files alone that exist.
    #[arg(short, long)]
    pub no_clobber: bool,
}

/// Arguments of `cairn du`.
#[derive(Debug, Args)]
#[command(disable_help_flag = true, after_help = "Example:\n  cairn du -s /photos /music")]
pub struct DuArgs {
    /// Files or directories in the cluster [default: /].
    #[arg(value_name = "PATH")]
    pub paths: Vec<RemotePath>,
    /// One total for each path.
    #[arg(short, long)]
    pub summarize: bool,
    /// Sizes such as 1.5 MiB (the default).
    #[arg(short, long = "human-readable", conflicts_with = "bytes")]
    pub human: bool,
    /// Sizes in bytes.
    #[arg(short, long)]
    pub bytes: bool,
    /// Lengths of files instead of the space that is allocated for them.
    #[arg(long)]
    pub apparent_size: bool,
    /// Print help.
    #[arg(long, action = clap::ArgAction::Help)]
    pub help: Option<bool>,
}

/// Arguments of `cairn df`.
#[derive(Debug, Args)]
#[command(disable_help_flag = true, after_help = "Example:\n  cairn df --json")]
pub struct DfArgs {
    /// Sizes such as 1.5 MiB (the default).
    #[arg(short, long = "human-readable", conflicts_with = "bytes")]
    pub human: bool,
    /// Sizes in bytes.
    #[arg(short, long)]
    pub bytes: bool,
    /// Print help.
    #[arg(long, action = clap::ArgAction::Help)]
    pub help: Option<bool>,
}

/// Arguments of `cairn locate`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cairn locate /photos/a.jpg
  cairn locate --verify --json /photos/a.jpg

A copy is healthy (the datanode has it), missing, corrupt, or unreachable (the datanode does not
answer). Exit status 4 when a chunk has fewer good copies than its policy wants.")]
pub struct LocateArgs {
    /// Files in the cluster.
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<RemotePath>,
    /// Have every datanode read its copies and check them.
    #[arg(long)]
    pub verify: bool,
}

fn parse_mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o7777 => Ok(mode),
        _ => Err("permission bits in octal were expected, 0 to 7777, such as 755".to_owned()),
    }
}
