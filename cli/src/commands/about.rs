//! `cairn completions` and `cairn man`.

use clap::CommandFactory;
use clap_mangen::Man;

use crate::args::{Cli, CompletionsArgs, ManArgs};
use crate::failure::{Context, Failure};
use crate::human;
use crate::output::Output;

pub(super) fn completions(args: &CompletionsArgs, output: Output) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "cairn", &mut script);
    output.data(&script)
}

/// One page for `cairn` and one for each command, as git does (`cairn-node-list.1`).
pub(super) fn man(args: &ManArgs, output: Output) -> Result<(), Failure> {
    let directory = &args.directory;
    std::fs::create_dir_all(directory).doing(format!("make {}", directory.display()))?;
    let mut command = Cli::command();
    command.build();
    let mut pages = 0;
    write_pages(&command, directory, &mut pages)?;
    output.say(format!("{} written to {}", human::count(pages, "man page"), directory.display()));
    Ok(())
}

fn write_pages(command: &clap::Command, directory: &std::path::Path, pages: &mut u64) -> Result<(), Failure> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).replace(' ', "-");
    let path = directory.join(format!("{name}.1"));
    let mut page = Vec::new();
    let man = Man::new(command.clone());
    man.render(&mut page).doing(format!("write the man page of {name}"))?;
    let text = String::from_utf8_lossy(&page);
    crate::local::write_text(&path, &text, true).doing(format!("write {}", path.display()))?;
    *pages += 1;
    let children =
        command.get_subcommands().filter(|child| child.get_name() != "help" && !child.is_hide_set());
    for child in children {
        write_pages(child, directory, pages)?;
    }
    Ok(())
}
