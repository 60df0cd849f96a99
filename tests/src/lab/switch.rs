//! The lab's own network namespace: a bridge that every host is plugged into, and the faults of that network.
//!
//! Cuts and losses are rules of one nftables table of the bridge family; what is cut is asked of the kernel, never
//! remembered. A cut drops packets silently, as a broken switch does: nobody sees a carrier go. Deliberately absent: any
//! link to the machine's own network.

use std::{
    io::Write,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

use super::{Error, Host, Result, describe, run};
use crate::netns::{Netns, unpin};

/// Whoever runs the lab is on the network too, at its last address.
pub const OPERATOR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 254);
const BRIDGE: &str = "lab0";
/// By this one the lab speaks to hosts that are machines; no fault reaches it.
const BACK: &str = "back0";
const BACK_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 254);
const TABLE: &str = "roster_lab";
/// Of every host, on its own side.
pub const LINK: &str = "eth0";

type Tc<'a> = dyn Fn() -> Result<Command> + 'a;

const RULES: &str = "
table bridge roster_lab {
    set alone { type ifname; }
    set pairs { type ifname . ifname; }
    chain lossy { }
    chain forward {
        type filter hook forward priority 0; policy accept;
        iifname @alone drop
        oifname @alone drop
        iifname . oifname @pairs drop
        jump lossy
    }
    chain input {
        type filter hook input priority 0; policy accept;
        iifname @alone drop
    }
    chain output {
        type filter hook output priority 0; policy accept;
        oifname @alone drop
    }
}
";

#[derive(Debug)]
pub(super) struct Switch {
    pub(super) netns: Netns,
    file: PathBuf,
}

/// How slow a host's link is made, in tc(8)'s words.
#[derive(Clone, Debug)]
pub struct Slowness {
    pub delay: Option<String>,
    pub rate: Option<String>,
    /// Of a hundred packets.
    pub loss: Option<u8>,
}

/// From whom a host is cut off.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cut {
    FromAll(String),
    Between(String, String),
}

impl Switch {
    /// Opens what is pinned there, or makes it.
    pub(super) fn ensure(file: &Path) -> Result<Self> {
        if let Some(switch) = Self::open(file)? {
            return Ok(switch);
        }
        let failed = Error::io("make the lab's network namespace at", file);
        let switch = Self { netns: Netns::pin(file).map_err(failed)?, file: file.to_owned() };
        switch.ip(&["link", "add", BRIDGE, "type", "bridge", "forward_delay", "0"])?;
        switch.ip(&["address", "add", &format!("{OPERATOR}/24"), "dev", BRIDGE])?;
        switch.ip(&["link", "set", BRIDGE, "up"])?;
        switch.nft(RULES)?;
        Ok(switch)
    }

    pub(super) fn open(file: &Path) -> Result<Option<Self>> {
        let netns = Netns::open(file).map_err(Error::io("open", file))?;
        Ok(netns.map(|netns| Self { netns, file: file.to_owned() }))
    }

    pub(super) fn remove(self) -> Result<()> {
        unpin(&self.file).map_err(Error::io("remove", &self.file))
    }

    /// Joins a host's namespace to the bridge, by a port of the host's name.
    pub(super) fn plug(&self, host: &str, address: Ipv4Addr, netns: &Netns, file: &Path) -> Result<()> {
        let file = file.display().to_string();
        self.ip(&["link", "add", host, "type", "veth", "peer", "name", LINK, "netns", &file])?;
        self.ip(&["link", "set", host, "master", BRIDGE, "up"])?;
        run(netns.command("ip").args(["address", "add", &format!("{address}/24"), "dev", LINK]))?;
        // The same at every boot, as a real card's: the others remember whom they spoke to.
        let [_, b, c, d] = address.octets();
        let card = format!("02:00:00:{b:02x}:{c:02x}:{d:02x}");
        run(netns.command("ip").args(["link", "set", LINK, "address", &card, "up"]))?;
        run(netns.command("ip").args(["route", "add", "default", "via", &OPERATOR.to_string()])).map(drop)
    }

    /// Two links for qemu to take: one is the network, the other the lab's own way in.
    pub(super) fn plug_machine(&self, name: &str, back: &str) -> Result<()> {
        if !self.has_port(BACK)? {
            self.ip(&["link", "add", BACK, "type", "bridge", "forward_delay", "0"])?;
            self.ip(&["address", "add", &format!("{BACK_ADDRESS}/24"), "dev", BACK])?;
            self.ip(&["link", "set", BACK, "up"])?;
        }
        for (link, bridge) in [(name, BRIDGE), (back, BACK)] {
            self.unplug(link)?;
            self.ip(&["tuntap", "add", "dev", link, "mode", "tap"])?;
            self.ip(&["link", "set", link, "master", bridge, "up"])?;
        }
        Ok(())
    }

    /// The cable goes, with both of its ends.
    pub(super) fn unplug(&self, host: &str) -> Result<()> {
        if self.has_port(host)? { self.ip(&["link", "delete", host]) } else { Ok(()) }
    }

    fn has_port(&self, host: &str) -> Result<bool> {
        let links = run(self.netns.command("ip").args(["-j", "link", "show"]))?;
        let links: Vec<Value> = serde_json::from_str(&links).map_err(|error| Error::unreadable("ip", error))?;
        Ok(links.iter().any(|link| link["ifname"] == host))
    }

    pub(super) fn cut(&self, cut: &Cut) -> Result<()> {
        self.nft(&match cut {
            Cut::FromAll(host) => format!("add element bridge {TABLE} alone {{ \"{host}\" }}\n"),
            Cut::Between(a, b) => {
                format!("add element bridge {TABLE} pairs {{ \"{a}\" . \"{b}\", \"{b}\" . \"{a}\" }}\n")
            }
        })
    }

    /// Ends every cut and loss. The hosts' links are made fast again by [`hasten`](Self::hasten).
    pub(super) fn heal(&self) -> Result<()> {
        self.nft(&format!(
            "flush set bridge {TABLE} alone\nflush set bridge {TABLE} pairs\nflush chain bridge {TABLE} lossy\n"
        ))
    }

    pub(super) fn cuts(&self) -> Result<Vec<Cut>> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let alone = self.elements("alone")?.iter().map(|element| Cut::FromAll(text(element))).collect::<Vec<_>>();
        let pairs = self.elements("pairs")?;
        let pairs = pairs.iter().map(|element| (text(&element["concat"][0]), text(&element["concat"][1])));
        // Each is there in both directions.
        Ok(alone.into_iter().chain(pairs.filter(|(a, b)| a < b).map(|(a, b)| Cut::Between(a, b))).collect())
    }

    fn elements(&self, set: &str) -> Result<Vec<Value>> {
        let text = run(self.netns.command("nft").args(["-j", "list", "set", "bridge", TABLE, set]))?;
        let whole: Value = serde_json::from_str(&text).map_err(|error| Error::unreadable("nft", error))?;
        let sets = whole["nftables"].as_array().into_iter().flatten();
        Ok(sets.filter_map(|entry| entry["set"]["elem"].as_array()).flatten().cloned().collect())
    }

    /// Both directions. What this kernel cannot do is returned in words.
    pub(super) fn slow(&self, host: &Host, slowness: &Slowness) -> Result<Vec<String>> {
        let mut notes = Vec::new();
        let name = &host.name;
        if let Some(loss) = slowness.loss {
            // Compared so that all of a hundred can be said too.
            let last = loss.max(1) - 1;
            let rule = |which| {
                format!("add rule bridge {TABLE} lossy {which}ifname \"{name}\" numgen random mod 100 <= {last} drop\n")
            };
            self.nft(&format!("{}{}", rule("i"), rule("o")))?;
        }
        if slowness.delay.is_none() && slowness.rate.is_none() {
            return Ok(notes);
        }
        for (tc, link) in self.ends(host) {
            if let Some(note) = shape(&*tc, link, slowness)?
                && !notes.contains(&note)
            {
                notes.push(note);
            }
        }
        Ok(notes)
    }

    pub(super) fn hasten(&self, host: &Host) -> Result<()> {
        for (tc, link) in self.ends(host) {
            if is_shaped(&*tc, link)? {
                run(tc()?.args(["qdisc", "del", "dev", link, "root"]))?;
            }
        }
        Ok(())
    }

    pub(super) fn is_slow(&self, host: &str) -> Result<bool> {
        is_shaped(&|| Ok(self.netns.command("tc")), host)
    }

    /// Both ends of a host's link, each with how tc(8) is run there.
    fn ends<'a>(&'a self, host: &'a Host) -> [(Box<Tc<'a>>, &'a str); 2] {
        [(Box::new(|| Ok(self.netns.command("tc"))), &host.name), (Box::new(|| host.command("tc")), LINK)]
    }

    fn ip(&self, arguments: &[&str]) -> Result<()> {
        run(self.netns.command("ip").args(arguments)).map(drop)
    }

    fn nft(&self, rules: &str) -> Result<()> {
        run_with(self.netns.command("nft").args(["-f", "-"]), rules)
    }
}

/// netem does all of it; without it, tbf can at least limit the rate.
fn shape(tc: &Tc<'_>, link: &str, slowness: &Slowness) -> Result<Option<String>> {
    let replace = || {
        let mut command = tc()?;
        command.args(["qdisc", "replace", "dev", link, "root"]);
        Ok::<_, Error>(command)
    };
    let mut netem = replace()?;
    netem.arg("netem");
    for (word, value) in [("delay", &slowness.delay), ("rate", &slowness.rate)] {
        if let Some(value) = value {
            netem.args([word, value]);
        }
    }
    match run(&mut netem) {
        Ok(_) => return Ok(None),
        Err(Error::Command { stderr, .. }) if stderr.contains("qdisc kind is unknown") => {}
        Err(error) => return Err(error),
    }
    let Some(rate) = &slowness.rate else { return Err(Error::NoNetem) };
    run(replace()?.args(["tbf", "rate", rate, "burst", "32kbit", "latency", "400ms"]))?;
    let note = "this kernel has no netem (sch_netem): packets are not delayed, only the rate is limited";
    Ok(slowness.delay.is_some().then(|| note.to_owned()))
}

fn is_shaped(tc: &Tc<'_>, link: &str) -> Result<bool> {
    let text = run(tc()?.args(["qdisc", "show", "dev", link, "root"]))?;
    Ok(["netem", "tbf"].iter().any(|kind| text.contains(&format!("qdisc {kind} "))))
}

fn run_with(command: &mut Command, input: &str) -> Result<()> {
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let name = describe(command);
    let failed = |source| Error::Start { command: name.clone(), source };
    let mut child = command.spawn().map_err(failed)?;
    let mut stdin = child.stdin.take().expect("it was asked for as a pipe");
    // What refuses its input says why; that counts for more than a broken pipe.
    let written = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() { written.map_err(failed) } else { Err(Error::failed(command, &output)) }
}
