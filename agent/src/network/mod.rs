//! One host's container network: a bridge, a namespace and a pair of interfaces per task, addresses, published ports.
//!
//! What exists is asked of the kernel: a task's namespace is a bind mount under `run_dir/netns` named after the task,
//! its pair's name on the host follows from the task's id, its address is in that interface's hardware address
//! ([`naming`]). So nothing needs to be written down, and a restarted agent finds everything again.
//!
//! Guarantees: every verb may be repeated and finishes what an earlier call left half done; a container never gets an
//! address that another one has; publishing replaces all ports at once or changes nothing; containers cannot reach
//! what listens on the host's loopback ([`rules`]).
//!
//! Turns `net.ipv4.ip_forward` on and leaves it on, since others may have come to rely on it. Deliberately absent: IPv6,
//! networks across hosts, names, and undoing what another firewall on the host drops (see [`rules`]).

mod error;
mod ipam;
mod listening;
mod naming;
mod netlink;
mod netns;
mod nft;
mod rules;
mod subnet;

use std::{
    fs,
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    io,
    net::Ipv4Addr,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{Mutex as SyncMutex, MutexGuard as SyncMutexGuard, PoisonError},
};

use nix::errno::Errno;
use roster_proto::id::TaskId;
use tokio::sync::{Mutex, MutexGuard, Semaphore};

pub use self::{
    error::{Errors, NetworkError},
    listening::listening,
    nft::NftError,
    subnet::{InvalidSubnet, Subnet},
};
use self::{
    ipam::Pool,
    netlink::{Link, Netlink, Pair},
    netns::Netns,
    rules::Scope,
};
use crate::runtime::Publication;

/// More would only wait for each other in the kernel, whose network configuration has one lock.
const ATTACHES_AT_ONCE: usize = 16;

/// Locks that tasks share by chance; each keeps two calls for the same task apart.
const TASK_LOCKS: usize = 64;

#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// The bridge's name, 1 to 15 characters.
    pub bridge: String,
    pub subnet: Subnet,
    /// Namespaces are mounted in `run_dir/netns`.
    pub run_dir: PathBuf,
    /// The nftables table, of family `ip`, that belongs to this network alone.
    pub table: String,
}

/// A task's place in the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// A file to be given to setns(2).
    pub netns: PathBuf,
    pub address: Ipv4Addr,
    pub gateway: Ipv4Addr,
    pub prefix: u8,
}

#[derive(Debug)]
pub struct Network {
    config: NetworkConfig,
    scope: Scope,
    netlink: Netlink,
    pool: SyncMutex<Pool>,
    /// Whether bridge, forwarding and basic rules were seen or made by this process.
    prepared: Mutex<bool>,
    loaded: Mutex<nft::Loaded>,
    tasks: [Mutex<()>; TASK_LOCKS],
    attaching: Semaphore,
    deleting: Mutex<()>,
}

impl Network {
    /// Takes back what is there. Makes nothing: that waits for the first [`attach`](Self::attach).
    ///
    /// Belongs to the network namespace of the threads that use it, which must be the same for all of them.
    pub async fn open(config: NetworkConfig) -> Result<Self, NetworkError> {
        let invalid = |what, value: &String, rule| NetworkError::Config { what, value: value.clone(), rule };
        naming::check_bridge(&config.bridge).map_err(|rule| invalid("name of a bridge", &config.bridge, rule))?;
        naming::check_table(&config.table).map_err(|rule| invalid("name of a table", &config.table, rule))?;
        let scope = Scope { table: config.table.clone(), bridge: config.bridge.clone(), subnet: config.subnet };
        let network = Self {
            scope,
            netlink: Netlink::open().map_err(NetworkError::Socket)?,
            pool: SyncMutex::new(Pool::new(config.subnet)),
            prepared: Mutex::new(false),
            loaded: Mutex::default(),
            tasks: std::array::from_fn(|_| Mutex::default()),
            attaching: Semaphore::new(ATTACHES_AT_ONCE),
            deleting: Mutex::default(),
            config,
        };
        network.read_addresses().await?;
        network.pool().begin_after_highest();
        Ok(network)
    }

    /// Gives the task a namespace of its own with `lo`, `eth0`, an address and a default route.
    pub async fn attach(&self, task: &TaskId) -> Result<Attachment, NetworkError> {
        let _turn = self.turn(task).await;
        let _permit = self.attaching.acquire().await.expect("the semaphore is never closed");
        let bridge = self.bridge().await?;
        let path = self.netns_path(task);
        let netns = netns::open_or_create(path.clone())
            .await
            .map_err(NetworkError::file("make or open the network namespace", &path))?;
        let name = naming::veth(&self.config.bridge, task);
        let address = match self.existing_pair(&name, bridge, &netns).await? {
            Some(address) => address,
            None => self.add_pair(&name, bridge, &netns).await?,
        };
        tokio::try_join!(self.set_port(&name, task), self.configure(&netns.netlink, address, task))?;
        let subnet = self.config.subnet;
        Ok(Attachment { netns: path, address, gateway: subnet.gateway(), prefix: subnet.prefix() })
    }

    /// Removes the task's interfaces and namespace, whatever of them there is. Goes on past errors and returns all.
    pub async fn detach(&self, task: &TaskId) -> Result<(), NetworkError> {
        let _turn = self.turn(task).await;
        let mut errors = Vec::new();
        let name = naming::veth(&self.config.bridge, task);
        errors.extend(self.delete_pair(&name).await.err());
        let path = self.netns_path(task);
        let removed =
            blocking(move || netns::remove(&path).map_err(NetworkError::file("remove the network namespace", path)));
        errors.extend(removed.await.err());
        NetworkError::all(errors)
    }

    /// Every task of whose network something exists, in order.
    pub async fn attached(&self) -> Result<Vec<TaskId>, NetworkError> {
        let directory = self.netns_directory();
        let names = blocking(move || netns::names(&directory).map_err(NetworkError::file("list", directory))).await?;
        // A name that is no task's was not made here.
        let mut tasks: Vec<TaskId> = names.into_iter().filter_map(|name| TaskId::new(name).ok()).collect();
        let links = self.links().await?;
        tasks.extend(links.iter().filter_map(|link| self.task_of(link)));
        tasks.sort_unstable();
        tasks.dedup();
        Ok(tasks)
    }

    /// Makes exactly these ports answer on the host. Where they already do, this costs next to nothing.
    pub async fn publish(&self, ports: &[Publication]) -> Result<(), NetworkError> {
        let rules = self.scope.full(ports);
        self.loaded.lock().await.ensure(&rules).await.map_err(|source| self.rules_error(source))
    }

    /// Removes every trace of the network. Goes on past errors and returns all.
    pub async fn remove(&self) -> Result<(), NetworkError> {
        let mut errors = Vec::new();
        match self.attached().await {
            Ok(tasks) => {
                let results = futures::future::join_all(tasks.iter().map(|task| self.detach(task))).await;
                errors.extend(results.into_iter().filter_map(Result::err));
            }
            Err(error) => errors.push(error),
        }
        let mut prepared = self.prepared.lock().await;
        *prepared = false;
        errors.extend(self.remove_bridge().await.err());
        // Last: the rules protect the host for as long as the bridge exists.
        let mut loaded = self.loaded.lock().await;
        loaded.forget();
        errors.extend(nft::load(&self.scope.removal()).await.map_err(|source| self.rules_error(source)).err());
        let directory = self.netns_directory();
        match fs::remove_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                errors.push(NetworkError::file("remove", directory)(error));
            }
            _ => {}
        }
        NetworkError::all(errors)
    }

    /// The address of the pair that an earlier call left in this namespace, brought back onto the bridge. What does not
    /// lead into the namespace is removed.
    async fn existing_pair(&self, name: &str, bridge: u32, netns: &Netns) -> Result<Option<Ipv4Addr>, NetworkError> {
        if netns.is_new {
            return Ok(None);
        }
        let Some(link) = self.link(name).await? else { return Ok(None) };
        let address = link.mac.and_then(|mac| naming::address_of(name, mac));
        let inside = netns.netlink.link(naming::CONTAINER_INTERFACE).await;
        let inside = inside.map_err(NetworkError::netlink("look up the container's interface"))?;
        match address.filter(|address| self.config.subnet.contains(*address)) {
            Some(address) if inside.is_some_and(|link| link.mac == Some(naming::container_mac(address))) => {
                if link.controller != Some(bridge) {
                    let action = || format!("make {name} a port of {}", self.config.bridge);
                    self.netlink.set_controller(name, bridge).await.map_err(|e| NetworkError::netlink(action())(e))?;
                }
                self.pool().settle(address);
                Ok(Some(address))
            }
            _ => self.delete_pair(name).await.map(|()| None),
        }
    }

    async fn add_pair(&self, name: &str, bridge: u32, netns: &Netns) -> Result<Ipv4Addr, NetworkError> {
        let address = self.take_address().await?;
        let pair = || Pair { name, bridge, address, netns: netns.file.as_fd() };
        let mut result = self.netlink.add_pair(pair()).await;
        if let Err(error) = &result
            && netlink::errno(error) == Some(Errno::EEXIST)
        {
            // The other end of what has this name is in a namespace that has lost its own.
            let deleted = self.delete_pair(name).await;
            if deleted.is_err() {
                self.pool().release(address);
            }
            deleted?;
            result = self.netlink.add_pair(pair()).await;
        }
        match result {
            Ok(()) => {
                self.pool().settle(address);
                Ok(address)
            }
            Err(error) => {
                self.pool().release(address);
                Err(NetworkError::netlink(format!("make the interface pair {name}"))(error))
            }
        }
    }

    async fn set_port(&self, name: &str, task: &TaskId) -> Result<(), NetworkError> {
        self.netlink
            .set_port(name, &naming::alias(task))
            .await
            .map_err(NetworkError::netlink(format!("set up the bridge's port {name}")))
    }

    async fn configure(&self, netlink: &Netlink, address: Ipv4Addr, task: &TaskId) -> Result<(), NetworkError> {
        let subnet = self.config.subnet;
        let steps = async {
            netlink.set_loopback_up().await?;
            let interface = netlink.link(naming::CONTAINER_INTERFACE).await?;
            let interface = interface.ok_or(rtnetlink::Error::RequestFailed)?;
            netlink.add_address(interface.index, address, subnet.prefix()).await?;
            netlink.set_up(interface.index).await?;
            netlink.add_default_route(subnet.gateway()).await
        };
        steps.await.map_err(NetworkError::netlink(format!("configure the network of task {task}")))
    }

    /// Of many calls at once the first deletes what all have marked.
    async fn delete_pair(&self, name: &str) -> Result<(), NetworkError> {
        let Some(link) = self.link(name).await? else { return Ok(()) };
        let failed = || NetworkError::netlink(format!("delete the interface {name}"));
        self.netlink.doom(name).await.map_err(failed())?;
        let turn = self.deleting.lock().await;
        self.netlink.delete_doomed().await.map_err(failed())?;
        drop(turn);
        if let Some(address) = link.mac.and_then(|mac| naming::address_of(name, mac)) {
            self.pool().release(address);
        }
        Ok(())
    }

    async fn take_address(&self) -> Result<Ipv4Addr, NetworkError> {
        let taken = self.pool().take();
        if let Some(address) = taken {
            return Ok(address);
        }
        self.read_addresses().await?;
        let mut pool = self.pool();
        let subnet = self.config.subnet;
        let exhausted = NetworkError::Exhausted { subnet, used: pool.used(), capacity: subnet.capacity() };
        pool.take().ok_or(exhausted)
    }

    async fn read_addresses(&self) -> Result<(), NetworkError> {
        let reading = self.pool().begin_reading();
        let links = self.links().await?;
        let found = links.iter().filter_map(|link| naming::address_of(&link.name, link.mac?));
        self.pool().observe(reading, found);
        Ok(())
    }

    /// The bridge's index, after making whatever is missing of what all tasks share.
    async fn bridge(&self) -> Result<u32, NetworkError> {
        let mut prepared = self.prepared.lock().await;
        let link = self.link(&self.config.bridge).await?;
        if let Some(link) = &link
            && *prepared
        {
            return Ok(link.index);
        }
        *prepared = false;
        let index = self.prepare(link).await?;
        *prepared = true;
        Ok(index)
    }

    async fn prepare(&self, link: Option<Link>) -> Result<u32, NetworkError> {
        let NetworkConfig { bridge, subnet, .. } = &self.config;
        let index = match link {
            Some(link) => {
                if let Some(why) = self.foreign(&link).await? {
                    return Err(NetworkError::BridgeTaken { bridge: bridge.clone(), why });
                }
                self.check_subnet(Some(link.index)).await?;
                link.index
            }
            None => {
                self.check_subnet(None).await?;
                let added = self.netlink.add_bridge(bridge, subnet.gateway()).await;
                added.map_err(NetworkError::netlink(format!("make the bridge {bridge}")))?;
                let made = self.link(bridge).await?;
                made.ok_or_else(|| NetworkError::netlink("find the bridge just made")(rtnetlink::Error::RequestFailed))?
                    .index
            }
        };
        // Before the bridge gets an address and route_localnet: the rules protect the host from it.
        self.loaded.lock().await.forget();
        nft::load(&self.scope.base()).await.map_err(|source| self.rules_error(source))?;
        self.netlink
            .add_address(index, subnet.gateway(), subnet.prefix())
            .await
            .map_err(NetworkError::netlink(format!("give the bridge {bridge} its address")))?;
        self.netlink.set_up(index).await.map_err(NetworkError::netlink(format!("set the bridge {bridge} up")))?;
        enable("/proc/sys/net/ipv4/ip_forward".into())?;
        enable(format!("/proc/sys/net/ipv4/conf/{bridge}/route_localnet").into())?;
        let directory = self.netns_directory();
        fs::create_dir_all(&directory).map_err(NetworkError::file("make the directory", directory))?;
        Ok(index)
    }

    /// What speaks against taking an interface with the bridge's name for it.
    async fn foreign(&self, link: &Link) -> Result<Option<String>, NetworkError> {
        if !link.is_bridge {
            return Ok(Some("it is not a bridge".to_owned()));
        }
        let claims = self.netlink.addresses().await.map_err(NetworkError::netlink("list the host's addresses"))?;
        let own = (self.config.subnet.gateway(), self.config.subnet.prefix());
        let mut others = claims.iter().filter(|claim| claim.interface == link.index);
        Ok(others.find(|claim| (claim.address, claim.prefix) != own).map(|claim| format!("it has {claim}")))
    }

    async fn check_subnet(&self, own: Option<u32>) -> Result<(), NetworkError> {
        let mut claims = self.netlink.addresses().await.map_err(NetworkError::netlink("list the host's addresses"))?;
        claims.extend(self.netlink.routes().await.map_err(NetworkError::netlink("list the host's routes"))?);
        let subnet = self.config.subnet;
        let Some(claim) = subnet::collision(subnet, own, &claims) else { return Ok(()) };
        let links = self.links().await?;
        let interface = links.into_iter().find(|link| link.index == claim.interface).map(|link| link.name);
        let interface = interface.unwrap_or_else(|| format!("interface {}", claim.interface));
        Err(NetworkError::SubnetTaken { subnet, claim: claim.to_string(), interface })
    }

    async fn remove_bridge(&self) -> Result<(), NetworkError> {
        let bridge = &self.config.bridge;
        let Some(link) = self.link(bridge).await? else { return Ok(()) };
        // An interface of somebody else's is not ours to remove; nothing of ours can be on it.
        if self.foreign(&link).await?.is_some() {
            return Ok(());
        }
        // Pairs that no name leads to any more.
        let ports = self.links().await?.into_iter().filter(|port| port.controller == Some(link.index));
        for port in ports.filter(|port| port.mac.is_some_and(|mac| naming::address_of(&port.name, mac).is_some())) {
            self.delete_pair(&port.name).await?;
        }
        self.netlink.delete_link(bridge).await.map_err(NetworkError::netlink(format!("delete the bridge {bridge}")))
    }

    /// The task whose pair this is, if it is of this network: another one's names differ.
    fn task_of(&self, link: &Link) -> Option<TaskId> {
        let task = naming::task_of(link.alias.as_deref()?)?;
        (naming::veth(&self.config.bridge, &task) == link.name).then_some(task)
    }

    async fn link(&self, name: &str) -> Result<Option<Link>, NetworkError> {
        self.netlink.link(name).await.map_err(NetworkError::netlink(format!("look up the interface {name}")))
    }

    async fn links(&self) -> Result<Vec<Link>, NetworkError> {
        self.netlink.links().await.map_err(NetworkError::netlink("list the host's interfaces"))
    }

    fn netns_directory(&self) -> PathBuf {
        self.config.run_dir.join("netns")
    }

    fn netns_path(&self, task: &TaskId) -> PathBuf {
        self.netns_directory().join(task.as_str())
    }

    fn pool(&self) -> SyncMutexGuard<'_, Pool> {
        // Nothing panics while it holds the pool, and no half-done change would be worse than stopping.
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn turn(&self, task: &TaskId) -> MutexGuard<'_, ()> {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(task);
        self.tasks[hash as usize % TASK_LOCKS].lock().await
    }

    fn rules_error(&self, source: NftError) -> NetworkError {
        NetworkError::Rules { table: self.config.table.clone(), source }
    }
}

/// Turns a kernel setting on, and says so where it was off.
fn enable(path: PathBuf) -> Result<(), NetworkError> {
    let value = fs::read_to_string(&path).map_err(NetworkError::file("read", &path))?;
    if value.trim() == "0" {
        fs::write(&path, "1").map_err(NetworkError::file("turn on", &path))?;
        tracing::info!(setting = %setting_name(&path), "turned on, containers need it to be reached");
    }
    Ok(())
}

fn setting_name(path: &Path) -> String {
    path.strip_prefix("/proc/sys").unwrap_or(path).display().to_string().replace('/', ".")
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("the work does not panic and is not cancelled")
}

#[cfg(test)]
mod tests;
