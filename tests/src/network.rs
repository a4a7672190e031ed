//! Hosts of a network of their own: a namespace each, joined by a bridge. Nothing of it touches the
//! machine's network, and all of it ends with the test.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use crate::process::{self, Process};
use crate::wait;

/// First three numbers of the addresses.
const PREFIX: &str = "10.77.0";

/// Namespaces by the names of what runs in them.
#[derive(Debug)]
pub struct Network {
    hosts: BTreeMap<String, Host>,
}

/// One namespace, kept alive by a process in it.
#[derive(Debug)]
struct Host {
    holder: Process,
    address: String,
}

impl Network {
    /// Makes a bridge in a new namespace that the calling thread, and whatever it starts, is in from
    /// now on; and one further namespace for each name, joined to it.
    pub fn enter_new(names: &[&str], logs: &Path) -> Self {
        #[allow(unsafe_code)]
        // SAFETY: only the network of this thread changes; its memory and files are left alone.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.expect("unshare");
        ip(&["link", "set", "lo", "up"]);
        ip(&["link", "add", "hub", "type", "bridge"]);
        ip(&["addr", "add", &format!("{PREFIX}.1/24"), "dev", "hub"]);
        ip(&["link", "set", "hub", "up"]);
        let mut hosts = BTreeMap::new();
        for (index, &name) in names.iter().enumerate() {
            let mut command = process::command("unshare");
            command.args(["--net", "sleep", "infinity"]);
            let holder = Process::start(&format!("network of {name}"), command, &logs.join("network"));
            let pid = holder.pid().to_string();
            let own = std::fs::read_link("/proc/thread-self/ns/net").expect("namespace");
            wait::until_true("a namespace", Duration::from_secs(5), || {
                std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|link| link != own)
            });
            let port = format!("port{index}");
            ip(&["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &pid]);
            ip(&["link", "set", &port, "master", "hub", "up"]);
            let host = Host { holder, address: format!("{PREFIX}.{}", index + 10) };
            host.run("ip", &["link", "set", "lo", "up"]);
            host.run("ip", &["addr", "add", &format!("{}/24", host.address), "dev", "eth0"]);
            host.run("ip", &["link", "set", "eth0", "up"]);
            host.run("nft", &["add table inet faults"]);
            for hook in ["input", "output"] {
                host.run(
                    "nft",
                    &[&format!("add chain inet faults {hook} {{ type filter hook {hook} priority 0; }}")],
                );
            }
            hosts.insert(name.to_owned(), host);
        }
        Self { hosts }
    }

    pub fn address(&self, name: &str) -> Option<&str> {
        self.hosts.get(name).map(|host| host.address.as_str())
    }

    /// The program and arguments that run what follows in the namespace of `name`.
    pub fn enter(&self, name: &str) -> Option<Vec<OsString>> {
        self.hosts.get(name).map(Host::enter)
    }

    fn host(&self, name: &str) -> &Host {
        self.hosts.get(name).unwrap_or_else(|| panic!("no host {name}"))
    }

    /// A rule for what `name` receives (`input`) or sends (`output`).
    pub fn rule(&self, name: &str, hook: &str, rule: &str) {
        self.host(name).run("nft", &[&format!("add rule inet faults {hook} {rule}")]);
    }

    /// Limits what `name` sends to so many kilobits per second.
    pub fn slow(&self, name: &str, kilobits: u32) {
        let rate = format!("{kilobits}kbit");
        let limit = [
            "qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", &rate, "burst", "32k", "latency",
            "400ms",
        ];
        self.host(name).run("tc", &limit);
    }

    /// Takes every fault away from `name`.
    pub fn heal(&self, name: &str) {
        self.host(name).run("nft", &["flush table inet faults"]);
        // Fails when there was none.
        self.host(name).try_run("tc", &["qdisc", "del", "dev", "eth0", "root"]);
    }

    /// Packets that the rules of `name` have dropped or refused, by counters in them.
    pub fn hits(&self, name: &str) -> u64 {
        let output = self.host(name).run("nft", &["list table inet faults"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let words: Vec<&str> = text.split_whitespace().collect();
        words
            .windows(2)
            .filter(|pair| pair[0] == "packets")
            .filter_map(|pair| pair[1].parse::<u64>().ok())
            .sum()
    }
}

impl Host {
    fn enter(&self) -> Vec<OsString> {
        vec!["nsenter".into(), format!("--net=/proc/{}/ns/net", self.holder.pid()).into(), "--".into()]
    }

    fn try_run(&self, program: &str, arguments: &[&str]) -> Output {
        let enter = self.enter();
        let mut command = process::command(&enter[0]);
        command.args(&enter[1..]).arg(program).args(arguments);
        command.output().unwrap_or_else(|error| panic!("{program}: {error}"))
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let output = self.try_run(program, arguments);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?}: {told}");
        output
    }
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("ip");
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
