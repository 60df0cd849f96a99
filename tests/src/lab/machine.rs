//! A host that is a small virtual machine: its process, its disk, and the way in.
//!
//! qemu runs in the switch's network namespace. One of the machine's links is plugged into the bridge that is cut and
//! slowed; by another, on a bridge of its own, the lab speaks to the machine over ssh. Inside, everything lies where a
//! real host has it. A power cut is qemu's SIGKILL, and what the machine never synced is lost with its page cache.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    Error, Result,
    host::wait_until,
    processes::is_alive,
    run,
    switch::{OPERATOR, Switch},
};
use crate::cluster::repository;

/// Where Roster's programs lie inside.
pub(super) const BIN: &str = "/usr/local/bin";
pub(super) const DATA: &str = "/var/lib/roster";
pub(super) const RUN: &str = "/run/roster";
/// An agent, a controller and some containers; a plain Debian's page cache is not needed.
const MEMORY: &str = "512M";
/// An emulated machine boots in ten seconds, on a busy one in a minute.
const BOOTING: Duration = Duration::from_secs(180);
/// A guest that KVM runs at all says so in one or two.
const PROBING: &str = "10";
/// What `deploy/vm/image` ends with when a package or a kernel cannot be had.
const CANNOT_BE_HAD: i32 = 3;
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Puts a command's words in quotes, for ssh hands one line to a shell. `$1` is the lab's images, `$2` the address.
pub(super) const BY_SSH: &str = r#"
words=("${@:3}")
terminal=-T
if [ -t 0 ]; then terminal=-t; fi
HOME=$1/home exec dbclient "$terminal" -K 60 -i "$1/key" "root@$2" "${words[*]@Q}"
"#;

#[derive(Clone, Debug)]
pub struct Machine {
    pub name: String,
    pub number: u8,
    /// The disk and what the console said.
    pub folder: PathBuf,
    pub run: PathBuf,
    pub images: Images,
    pub switch_file: PathBuf,
}

/// What all machines of a lab boot from.
#[derive(Clone, Debug)]
pub struct Images(pub PathBuf);

impl Images {
    /// Makes them where they are not there yet.
    pub(super) fn ensure(&self, programs: &Path, say: &mut dyn FnMut(&str)) -> Result<()> {
        let complete = self.0.join("complete");
        if complete.exists() {
            return Ok(());
        }
        say("making the machines' disk");
        let mut command = Command::new(repository().join("deploy/vm/image"));
        let output = command.arg(programs).arg(&self.0).output();
        let output = output.map_err(|source| Error::Start { command: "deploy/vm/image".to_owned(), source })?;
        match output.status.code() {
            Some(0) => {}
            Some(CANNOT_BE_HAD) => {
                let said = String::from_utf8_lossy(&output.stderr);
                return Err(Error::NoMachines(said.lines().last().unwrap_or_default().to_owned()));
            }
            _ => return Err(Error::failed(&command, &output)),
        }
        let accelerator = self.probe()?;
        say(match accelerator {
            "kvm" => "the machines run on kvm",
            _ => "no guest boots on kvm here: the machines are emulated, and some ten times slower",
        });
        fs::write(&complete, accelerator).map_err(Error::io("write", &complete))
    }

    /// /dev/kvm may be there and yet boot nothing, where this machine is itself a guest.
    fn probe(&self) -> Result<&'static str> {
        if !Path::new("/dev/kvm").exists() {
            return Ok("tcg");
        }
        let mut command = Command::new("timeout");
        command.args([PROBING, "qemu-system-x86_64", "-accel", "kvm", "-m", "256M", "-nodefaults", "-no-user-config"]);
        command.args(["-display", "none", "-serial", "stdio", "-no-reboot"]);
        command.arg("-kernel").arg(self.0.join("kernel")).arg("-initrd").arg(self.0.join("initramfs"));
        command.args(["-append", "console=ttyS0 quiet panic=1 roster.probe"]);
        let output = command.output().map_err(|source| Error::Start { command: "timeout".to_owned(), source })?;
        Ok(if String::from_utf8_lossy(&output.stdout).contains("roster-probe") { "kvm" } else { "tcg" })
    }

    fn accelerator(&self) -> Result<String> {
        let file = self.0.join("complete");
        fs::read_to_string(&file).map_err(Error::io("read", &file))
    }
}

impl Machine {
    fn disk(&self) -> PathBuf {
        self.folder.join("disk.img")
    }

    fn pid_file(&self) -> PathBuf {
        self.run.join("qemu.pid")
    }

    /// Its own side of the link by which the lab speaks to it.
    pub(super) fn back_address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 78, 0, self.number)
    }

    fn back_link(&self) -> String {
        format!("{}-back", self.name)
    }

    pub(super) fn pid(&self) -> Option<u32> {
        let pid = fs::read_to_string(self.pid_file()).ok()?.trim().parse().ok()?;
        // Another process may have the number by now.
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let ours = String::from_utf8_lossy(&command).contains(&*self.folder.to_string_lossy());
        (ours && is_alive(pid)).then_some(pid)
    }

    /// Power, without waiting until it answers.
    pub(super) fn boot(&self, switch: &Switch, address: Ipv4Addr) -> Result<()> {
        for folder in [&self.folder, &self.run] {
            fs::create_dir_all(folder).map_err(Error::io("make", folder))?;
        }
        if !self.disk().exists() {
            let (empty, new) = (self.images.0.join("empty.img"), self.disk().with_extension("new"));
            run(Command::new("cp").arg("--sparse=always").arg(empty).arg(&new))?;
            fs::rename(&new, self.disk()).map_err(Error::io("make", &self.disk()))?;
        }
        switch.plug_machine(&self.name, &self.back_link())?;
        let accelerator = self.images.accelerator()?;
        let mut qemu = switch.netns.command("qemu-system-x86_64");
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-daemonize"]);
        qemu.args(["-name", &self.name, "-accel", &accelerator, "-cpu", "max", "-smp", "1", "-m", MEMORY]);
        qemu.arg("-serial").arg(format!("file:{}", self.folder.join("console.log").display()));
        qemu.arg("-pidfile").arg(self.pid_file());
        qemu.arg("-kernel").arg(self.images.0.join("kernel")).arg("-initrd").arg(self.images.0.join("initramfs"));
        let (name, back) = (&self.name, self.back_address());
        qemu.arg("-append").arg(format!(
            "console=ttyS0 quiet panic=1 lab_name={name} lab_address={address} lab_gateway={OPERATOR} lab_back={back}"
        ));
        let root = self.images.0.join("root.img");
        qemu.arg("-drive").arg(format!("file={},format=raw,if=virtio,readonly=on", root.display()));
        qemu.arg("-drive").arg(format!("file={},format=raw,if=virtio,discard=unmap", self.disk().display()));
        for (number, link) in [name, &self.back_link()].into_iter().enumerate() {
            let hardware = format!("52:54:00:4d:{number:02x}:{:02x}", self.number);
            qemu.arg("-netdev").arg(format!("tap,id=n{number},ifname={link},script=no,downscript=no"));
            qemu.arg("-device").arg(format!("virtio-net-pci,netdev=n{number},mac={hardware},romfile="));
        }
        run(qemu.args(["-device", "virtio-rng-pci"])).map(drop)
    }

    pub(super) fn until_it_answers(&self) -> Result<()> {
        let deadline = Instant::now() + BOOTING;
        loop {
            if self.pid().is_none() {
                return Err(Error::Late(format!("{} to boot: {}", self.name, self.console())));
            }
            match run(&mut self.command(&[], "true".as_ref())?) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    return Err(Error::Late(format!("{} to answer: {error}\n{}", self.name, self.console())));
                }
                Err(_) => std::thread::sleep(LOOK_EVERY),
            }
        }
    }

    /// The end of what the console said.
    fn console(&self) -> String {
        let text = fs::read(self.folder.join("console.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }

    /// A command that will run inside; its words may still be added to.
    pub(super) fn command(
        &self,
        environment: &[(&'static str, std::ffi::OsString)],
        program: &std::ffi::OsStr,
    ) -> Result<Command> {
        let switch = Switch::open(&self.switch_file)?;
        let switch = switch.filter(|_| self.pid().is_some()).ok_or_else(|| Error::Off(self.name.clone()))?;
        let mut command = switch.netns.command("bash");
        command.args(["-c", BY_SSH, "ssh"]).arg(&self.images.0).arg(self.back_address().to_string()).arg("env");
        for (name, value) in environment {
            let mut pair = std::ffi::OsString::from(name);
            pair.push("=");
            pair.push(value);
            command.arg(pair);
        }
        command.arg(program);
        Ok(command)
    }

    /// The plug.
    pub(super) fn kill(&self, switch: Option<&Switch>) -> Result<()> {
        if let Some(pid) = self.pid() {
            let end = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
            end.map_err(|error| Error::io("end the machine", &self.pid_file())(error.into()))?;
            self.until_off(pid)?;
        }
        for link in [&self.name, &self.back_link()] {
            if let Some(switch) = switch {
                switch.unplug(link)?;
            }
        }
        Ok(())
    }

    /// What an orderly shutdown ends with: everything is on the disk.
    pub(super) fn power_off(&self) -> Result<()> {
        let Some(pid) = self.pid() else { return Ok(()) };
        // A connection that ends with the machine ends for nobody else: this one is given a second to be closed.
        let script = "sync; setsid sh -c 'sleep 1; poweroff -f' < /dev/null > /dev/null 2>&1 &";
        let mut command = self.command(&[], "sh".as_ref())?;
        command.args(["-c", script]).output().map(drop).map_err(Error::io("shut down", &self.folder))?;
        self.until_off(pid)
    }

    fn until_off(&self, pid: u32) -> Result<()> {
        wait_until(|| format!("{} (process {pid}) to be off", self.name), || Ok(!is_alive(pid)))
    }
}
