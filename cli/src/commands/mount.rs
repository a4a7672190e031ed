//! `cairn mount` and `cairn umount`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cairn_client::{Client, ClientConfig};
use cairn_fuse::MountConfig;
use cairn_runtime::shutdown::Shutdown;
use cairn_runtime::{clock, net, telemetry};
use clap::ValueEnum;
use rustix::process::Signal;
use tokio_util::sync::CancellationToken;

use super::{Tool, describe_process, serve};
use crate::args::{MountArgs, MountOption, UmountArgs};
use crate::config::{Flags, Settings};
use crate::failure::{Context, Failure};
use crate::notes::{self, Ready};
use crate::unmount::{self, Manner};
use crate::{background, places};

/// A background mount is usable within this time, or the command fails.
const MOUNT_LIMIT: Duration = Duration::from_secs(60);
/// `umount` waits this long for the last byte.
const UMOUNT_LIMIT: Duration = Duration::from_secs(600);
/// A mount without supervisor that nothing was asked of for so long is taken away, unless a program has it open. A
/// script may do nothing there between two of its commands.
const UNUSED_AFTER: Duration = Duration::from_secs(30);
/// How often it looks.
const LEAVE_EVERY: Duration = Duration::from_secs(1);
/// A process that shall end by force gets this long to do so by itself.
const FORCE_LIMIT: Duration = Duration::from_secs(2);

pub(super) async fn mount(tool: &Tool, args: MountArgs) -> Result<(), Failure> {
    if !args.foreground {
        return mount_in_background(tool, &args).await;
    }
    let child = args.child.clone();
    serve::tell("mount", &child, mount_here(tool, args).await)
}

fn flags(args: &MountArgs, directory: &Path) -> Flags {
    Flags::new()
        .set("mount.mountpoint", "DIR", Some(directory))
        .set("mount.read_only", "-o", args.chosen(MountOption::Ro, Some(MountOption::Rw)))
        .set("mount.suid", "-o", args.chosen(MountOption::Suid, Some(MountOption::Nosuid)))
        .set("mount.dev", "-o", args.chosen(MountOption::Dev, Some(MountOption::Nodev)))
        .set("mount.allow_other", "-o", args.chosen(MountOption::AllowOther, None))
        .set("mount.nonempty", "-o", args.chosen(MountOption::Nonempty, None))
        .switch("mount.read_only", "--read-only", args.read_only)
        .switch("mount.allow_other", "--allow-other", args.allow_other)
        .switch("mount.protect_mountpoint", "--protect", args.protect)
        .switch("mount.nonempty", "--nonempty", args.nonempty)
        .set("client.unreachable", "--unreachable", args.unreachable.as_deref())
        .set("client.memory", "--memory", args.memory)
        .switch("client.durable_close", "--durable-close", args.durable_close)
        .switch("client.durable_names", "--durable-names", args.durable_names)
}

/// Both sections that a mount uses, judged.
fn sections(tool: &Tool, settings: &Settings) -> Result<(ClientConfig, MountConfig), Failure> {
    Ok((tool.client_config(settings)?, settings.section("mount")?))
}

/// Serves the directory until it is unmounted or this process shall stop.
async fn mount_here(tool: &Tool, args: MountArgs) -> Result<(), Failure> {
    let directory = unmount::absolute(&args.directory).unwrap_or_else(|_| args.directory.clone());
    let settings = tool.service_settings(flags(&args, &directory), args.child.output.as_deref())?;
    let (client_config, mount_config) = sections(tool, &settings)?;
    let (stop, orphaned) = serve::prepare(&args.child)?;
    // The session outlives the wish to stop, since what is buffered must be stored first.
    let life = Shutdown::new();
    let client = connect(tool, client_config, &directory, &life, &stop).await?;
    let result = serve_mount(&args, &directory, &client, mount_config, &stop, &orphaned).await;
    let closed = client.close().await.doing(format!("store what was written to {}", directory.display()));
    life.drain().await;
    stop.drain().await;
    result.and(closed)
}

async fn connect(
    tool: &Tool,
    config: ClientConfig,
    directory: &Path,
    life: &Shutdown,
    stop: &Shutdown,
) -> Result<Arc<Client>, Failure> {
    let description = format!("{} at {}", describe_process(), directory.display());
    let what = format!("mount {}", directory.display());
    tokio::select! {
        client = tool.connect(&config, description, life) => client.map_err(|failure| Failure {
            what: what.clone(),
            ..failure
        }),
        () = stop.requested() => Err(Failure::new(what, "stopped")),
    }
}

async fn serve_mount(
    args: &MountArgs,
    directory: &Path,
    client: &Arc<Client>,
    config: MountConfig,
    stop: &Shutdown,
    orphaned: &CancellationToken,
) -> Result<(), Failure> {
    let metrics_address = match &args.metrics_listen {
        Some(address) => {
            let listener = net::listen(address).await.doing("serve metrics")?;
            // A weak reference, so that the HTTP server does not keep the session.
            let session = Arc::downgrade(client);
            let ready: telemetry::Readiness = Arc::new(move || match session.upgrade() {
                Some(client) => client.connected(),
                None => Err("the mount is ending".to_owned()),
            });
            Some(telemetry::serve_http(listener, ready, stop).doing("serve metrics")?)
        }
        None => None,
    };
    let mounted =
        cairn_fuse::mount(Arc::clone(client), config, stop).await.map_err(|error| Failure::new("", error))?;
    let ready = Ready {
        role: "mount".to_owned(),
        pid: std::process::id(),
        metrics_address: metrics_address.map(|address| address.to_string()),
        directory: Some(directory.to_owned()),
        ..Ready::default()
    };
    if let Err(error) = notes::announce_mount(&ready) {
        tracing::warn!(%error, "`cairn umount` will not know when this process has ended");
    }
    background::tell_ready(args.child.ready_file.as_deref(), &ready)?;
    tracing::info!(directory = %directory.display(), "mounted");
    tokio::select! {
        () = mounted.unmounted() => tracing::info!(directory = %directory.display(), "unmounted"),
        () = unused(&mounted, orphaned) => {
            tracing::info!(directory = %directory.display(), "unmounted: the supervisor is gone, and nobody uses it");
        }
        () = stop.requested() => {}
    }
    let result = mounted.unmount().await.map_err(|error| Failure::new("", error));
    notes::retract_mount();
    result
}

/// Resolves when the supervisor is gone, no program uses the directory any more, and it is unmounted.
async fn unused(mounted: &cairn_fuse::Mounted, orphaned: &CancellationToken) {
    orphaned.cancelled().await;
    let (mut requests, mut since) = (mounted.requests(), clock::now());
    loop {
        clock::sleep(LEAVE_EVERY).await;
        let now = mounted.requests();
        if now != requests {
            (requests, since) = (now, clock::now());
        } else if since.elapsed() >= UNUSED_AFTER {
            match mounted.try_leave().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => tracing::debug!(%error, "the mount stays"),
            }
        }
    }
}

/// Starts the same command in the foreground of another process, and returns when the directory
/// can be used.
async fn mount_in_background(tool: &Tool, args: &MountArgs) -> Result<(), Failure> {
    let directory = unmount::absolute(&args.directory).unwrap_or_else(|_| args.directory.clone());
    // Judged here already, so that what is wrong is said at once and in the right place.
    sections(tool, &tool.settings(flags(args, &directory))?)?;
    let log = args.log_file.clone().unwrap_or_else(|| places::mount_log(&directory));
    let log = std::path::absolute(&log).doing(format!("find the log {}", log.display()))?;
    let ready_file = match &args.child.ready_file {
        Some(path) => std::path::absolute(path).doing("find the ready-file")?,
        None => places::runtime().join(format!("mounting-{}.json", std::process::id())),
    };
    notes::remove(&ready_file);
    let line = background_line(tool, args, &directory, &ready_file, &log)?;
    let mut child = background::spawn(&line, &log, false, false)?;
    let limit = MOUNT_LIMIT + tool.global.timeout.unwrap_or_default();
    let address = coordinator(tool)?;
    let what = || format!("waiting for the coordinator at {address}; the log is {}", log.display());
    let mounting = background::await_ready(&mut child, &ready_file, &log, limit);
    let ready = crate::reach::saying(tool.output, what, mounting).await;
    if args.child.ready_file.is_none() {
        notes::remove(&ready_file);
    }
    match ready {
        Ok(ready) => {
            if tool.output.json {
                return tool.output.json(&ready);
            }
            tool.output.say(format!(
                "Mounted at {} (pid {}, log {})",
                directory.display(),
                ready.pid,
                log.display()
            ));
            Ok(())
        }
        Err(failure) => {
            let _ = child.start_kill();
            unmount::clear_dead(&directory);
            Err(failure)
        }
    }
}

fn background_line(
    tool: &Tool,
    args: &MountArgs,
    directory: &Path,
    ready_file: &Path,
    log: &Path,
) -> Result<Vec<OsString>, Failure> {
    let mut line: Vec<OsString> = vec!["mount".into(), directory.into(), "--foreground".into()];
    line.extend(["--new-session".into(), "--ready-file".into(), ready_file.into()]);
    line.extend(["--output".into(), log.into()]);
    let global = &tool.global;
    let config =
        global.config.as_ref().map(std::path::absolute).transpose().doing("find the configuration")?;
    let timeout = global.timeout.map(|limit| humantime::format_duration(limit).to_string());
    let pairs: [(&str, Option<OsString>); 7] = [
        ("--timeout", timeout.map(Into::into)),
        ("--config", config.map(PathBuf::into_os_string)),
        ("--coordinator", Some(coordinator(tool)?.into())),
        ("--unreachable", args.unreachable.clone().map(Into::into)),
        ("--memory", args.memory.map(|size| size.as_u64().to_string().into())),
        ("--metrics-listen", args.metrics_listen.clone().map(Into::into)),
        ("--log-file", args.log_file.clone().map(Into::into)),
    ];
    for (flag, value) in pairs {
        line.extend(value.into_iter().flat_map(|value| [flag.into(), value]));
    }
    for option in args.options.iter().filter_map(ValueEnum::to_possible_value) {
        line.extend(["-o".into(), option.get_name().into()]);
    }
    let switches = [
        ("--read-only", args.read_only),
        ("--allow-other", args.allow_other),
        ("--protect", args.protect),
        ("--nonempty", args.nonempty),
        ("--durable-close", args.durable_close),
        ("--durable-names", args.durable_names),
        ("--quiet", global.quiet),
    ];
    line.extend(switches.iter().filter(|(_, given)| *given).map(|(flag, _)| (*flag).into()));
    line.extend((0..global.verbose).map(|_| "--verbose".into()));
    Ok(line)
}

/// Fixed here: what this person's environment says may not be what the background process finds.
fn coordinator(tool: &Tool) -> Result<String, Failure> {
    Ok(tool.client_config(&tool.settings(Flags::new())?)?.coordinator)
}

pub(super) async fn umount(tool: &Tool, args: &UmountArgs) -> Result<(), Failure> {
    let given = args.directory.display();
    let directory = unmount::absolute(&args.directory).doing(format!("unmount {given}"))?;
    match unmount::mounted_at(&directory) {
        None => {
            return Err(Failure::new(format!("unmount {given}"), "it is not mounted")
                .next(unmount::what_is_mounted()));
        }
        Some(mounted) if !mounted.is_cairn() => {
            let why =
                format!("what is mounted there is {} (type {}), not Cairn", mounted.source, mounted.kind);
            return Err(Failure::new(format!("unmount {given}"), why).next("use umount"));
        }
        Some(_) => {}
    }
    let server = notes::find_mount(&directory);
    let manner = match (args.lazy, args.force) {
        (true, _) => Manner::Lazy,
        (_, true) => Manner::Force,
        _ => Manner::Polite,
    };
    unmount::unmount(&directory, manner)?;
    let Some(pid) = server else {
        tool.output.note(format!(
            "the process that served {given} is not known; what it still stores is not waited for"
        ));
        return Ok(());
    };
    match manner {
        // It ends when the last program has let go.
        Manner::Lazy => Ok(()),
        Manner::Polite => await_server(tool, pid, &directory).await,
        Manner::Force => {
            if !unmount::await_end(pid, FORCE_LIMIT, || {}).await {
                unmount::send(pid, Signal::KILL);
                unmount::await_end(pid, FORCE_LIMIT, || {}).await;
            }
            Ok(())
        }
    }
}

async fn await_server(tool: &Tool, pid: u32, directory: &Path) -> Result<(), Failure> {
    let notice = || tool.output.note("waiting for the last data to be stored");
    if unmount::await_end(pid, UMOUNT_LIMIT, notice).await {
        return Ok(());
    }
    let why = format!("after {} s its process (pid {pid}) still stores data", UMOUNT_LIMIT.as_secs());
    Err(Failure::new(format!("unmount {}", directory.display()), why)
        .next("`cairn status` shows what the cluster lacks"))
}
