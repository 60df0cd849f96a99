//! On the real kernel, each test on a throw-away host.

mod host;

use std::{net::UdpSocket, time::Instant};

use roster_proto::spec::Protocol;

use self::host::*;
use super::*;

fn tcp(port: u16, backends: &[(Ipv4Addr, u16)]) -> Publication {
    Publication { host_ip: None, port, protocol: Protocol::Tcp, backends: backends.to_vec() }
}

fn udp(port: u16, backends: &[(Ipv4Addr, u16)]) -> Publication {
    Publication { protocol: Protocol::Udp, ..tcp(port, backends) }
}

async fn attach(network: &Network, name: &str) -> Attachment {
    network.attach(&task(name)).await.unwrap()
}

/// Interfaces, tables and names that are left, one a line.
fn traces(run_dir: &Path) -> String {
    let links = run("ip -o link").lines().map(|line| line.split(": ").nth(1).unwrap().to_owned()).collect::<Vec<_>>();
    let names = netns::names(&run_dir.join("run/netns")).unwrap();
    format!("links {links:?} tables {:?} names {names:?}", run("nft list tables"))
}

const NOTHING: &str = r#"links ["lo", "uplink0"] tables "" names []"#;

#[test]
fn containers_reach_each_other_and_the_host_and_leave_nothing() {
    on_a_host(|dir| async move {
        let network = Network::open(config(&dir)).await.unwrap();
        assert_eq!(traces(&dir), NOTHING);
        let (a, b) = (attach(&network, "a").await, attach(&network, "b").await);
        assert_eq!((a.gateway, a.prefix), (Ipv4Addr::new(10, 42, 0, 1), 24));
        assert_ne!(a.address, b.address);
        serve(&a.netns, 80, "a");
        let address = a.address;
        assert_eq!(ask(address, 80).unwrap(), ("a".into(), "10.42.0.1".into()));
        let (_, peer) = within(&b.netns, move || ask(address, 80)).unwrap();
        assert_eq!(peer, b.address.to_string());
        let listener = std::net::TcpListener::bind((HOST, 81)).unwrap();
        within(&b.netns, || std::net::TcpStream::connect((HOST, 81)).map(drop)).unwrap();
        drop(listener);
        assert_eq!(network.attached().await.unwrap(), [task("a"), task("b")]);
        network.detach(&task("a")).await.unwrap();
        network.detach(&task("a")).await.unwrap();
        assert_eq!(network.attached().await.unwrap(), [task("b")]);
        network.remove().await.unwrap();
        network.remove().await.unwrap();
        assert_eq!(traces(&dir), NOTHING);
    });
}

#[test]
fn published_ports_are_shared_in_turn_on_every_address() {
    on_a_host(|dir| async move {
        let network = Network::open(config(&dir)).await.unwrap();
        let mut backends = Vec::new();
        let mut netns = Vec::new();
        for name in ["a", "b", "c"] {
            let attachment = attach(&network, name).await;
            serve(&attachment.netns, 80, name);
            backends.push((attachment.address, 80));
            netns.push(attachment.netns);
        }
        network.publish(&[tcp(8080, &backends), udp(53, &backends[..1])]).await.unwrap();
        for address in [LOCALHOST, HOST] {
            let mut names: Vec<_> = (0..12).map(|_| ask(address, 8080).unwrap().0).collect();
            names.sort();
            assert_eq!(names.concat(), "aaaabbbbcccc", "over {address}");
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            assert_eq!(ask_udp(&socket, address, 53).unwrap(), "a", "over {address}");
        }
        // From a container, its own address among the backends.
        let mut names = within(&netns[0], || (0..3).map(|_| ask(HOST, 8080).unwrap().0).collect::<Vec<_>>());
        names.sort();
        assert_eq!(names.concat(), "abc");

        network.publish(&[tcp(8080, &backends[1..2])]).await.unwrap();
        assert_eq!((0..3).map(|_| ask(LOCALHOST, 8080).unwrap().0).collect::<String>(), "bbb");
        network.publish(&[tcp(8080, &[])]).await.unwrap();
        for address in [LOCALHOST, HOST] {
            assert_eq!(ask(address, 8080).unwrap_err().kind(), io::ErrorKind::ConnectionRefused, "over {address}");
        }
    });
}

#[test]
fn a_host_address_restricts_a_port_to_itself() {
    on_a_host(|dir| async move {
        let network = Network::open(config(&dir)).await.unwrap();
        let (a, b) = (attach(&network, "a").await, attach(&network, "b").await);
        serve(&a.netns, 80, "a");
        serve(&b.netns, 80, "b");
        let only = Publication { host_ip: Some(HOST), ..tcp(8080, &[(a.address, 80)]) };
        network.publish(std::slice::from_ref(&only)).await.unwrap();
        assert_eq!(ask(HOST, 8080).unwrap().0, "a");
        assert_eq!(ask(LOCALHOST, 8080).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        network.publish(&[tcp(8080, &[(b.address, 80)]), only]).await.unwrap();
        assert_eq!(ask(HOST, 8080).unwrap().0, "a");
        assert_eq!(ask(LOCALHOST, 8080).unwrap().0, "b");
    });
}

/// CVE-2020-8558: a container that sends packets for 127.0.0.1 to its gateway.
#[test]
fn a_container_cannot_reach_what_listens_on_the_hosts_loopback() {
    on_a_host(|dir| async move {
        let network = Network::open(config(&dir)).await.unwrap();
        let a = attach(&network, "a").await;
        let listener = std::net::TcpListener::bind((LOCALHOST, 6000)).unwrap();
        let address = a.address;
        let attack = move || {
            fs::write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1").unwrap();
            if run("ip address show dev lo").contains("127.0.0.1") {
                run("ip address del 127.0.0.1/8 dev lo");
                run(&format!("ip route add 127.0.0.1 via 10.42.0.1 src {address}"));
            }
            let to = std::net::SocketAddr::from((LOCALHOST, 6000));
            std::net::TcpStream::connect_timeout(&to, std::time::Duration::from_millis(300)).map(drop)
        };
        assert_eq!(within(&a.netns, attack).unwrap_err().kind(), io::ErrorKind::TimedOut);
        network.publish(&[]).await.unwrap();
        assert_eq!(within(&a.netns, attack).unwrap_err().kind(), io::ErrorKind::TimedOut);
        // Without the guard the attack works: it is the guard that stops it.
        run("nft flush chain ip roster guard");
        within(&a.netns, attack).unwrap();
        network.publish(&[]).await.unwrap();
        assert_eq!(within(&a.netns, attack).unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(listener);
    });
}

/// A machine next to the host, on the same wire, that knows the way to the subnet.
#[test]
fn a_neighbour_reaches_published_ports_only() {
    on_a_host(|dir| async move {
        let network = Network::open(config(&dir)).await.unwrap();
        let a = attach(&network, "a").await;
        serve(&a.netns, 80, "a");
        network.publish(&[tcp(8080, &[(a.address, 80)])]).await.unwrap();
        let neighbour = dir.join("neighbour");
        let _keep = netns::open_or_create(neighbour.clone()).await.unwrap();
        run("ip link add wire type veth peer name eth0");
        run("ip address add 198.51.100.1/24 dev wire");
        run("ip link set wire up");
        run("ip address flush dev uplink0");
        run(&format!("ip link set eth0 netns {}", neighbour.display()));
        within(&neighbour, || {
            run("ip address add 198.51.100.2/24 dev eth0");
            run("ip link set eth0 up");
            run("ip route add 10.42.0.0/24 via 198.51.100.1");
        });
        let wire = Ipv4Addr::new(198, 51, 100, 1);
        assert_eq!(within(&neighbour, move || ask(wire, 8080)).unwrap(), ("a".into(), "198.51.100.2".into()));
        let address = a.address;
        let direct = std::net::SocketAddr::from((address, 80));
        let direct =
            move || std::net::TcpStream::connect_timeout(&direct, std::time::Duration::from_millis(300)).map(drop);
        assert_eq!(within(&neighbour, direct).unwrap_err().kind(), io::ErrorKind::TimedOut);
        // What a container sends out carries the host's address.
        serve(&neighbour, 90, "n");
        let other = Ipv4Addr::new(198, 51, 100, 2);
        assert_eq!(within(&a.netns, move || ask(other, 90)).unwrap(), ("n".into(), "198.51.100.1".into()));
        netns::remove(&neighbour).unwrap();
    });
}

#[test]
fn a_second_opening_takes_back_what_is_there() {
    on_a_host(|dir| async move {
        let first = Network::open(config(&dir)).await.unwrap();
        let (a, b) = (attach(&first, "a").await, attach(&first, "b").await);
        serve(&a.netns, 80, "a");
        first.publish(&[tcp(8080, &[(a.address, 80)])]).await.unwrap();
        drop(first);
        let second = Network::open(config(&dir)).await.unwrap();
        assert_eq!(second.attached().await.unwrap(), [task("a"), task("b")]);
        assert_eq!(attach(&second, "a").await, a);
        assert_eq!(ask(LOCALHOST, 8080).unwrap().0, "a", "taking back must leave published ports alone");
        let c = attach(&second, "c").await;
        assert!(c.address != a.address && c.address != b.address);
        // Whatever somebody else removed comes back with the next call.
        run("nft delete table ip roster");
        second.publish(&[tcp(8080, &[(a.address, 80)])]).await.unwrap();
        assert_eq!(ask(LOCALHOST, 8080).unwrap().0, "a");
        run("ip link delete roster0");
        assert_eq!(attach(&second, "a").await, a);
        assert_eq!(ask(a.address, 80).unwrap().0, "a");
        second.remove().await.unwrap();
        assert_eq!(traces(&dir), NOTHING);
    });
}

#[test]
fn what_a_crash_leaves_half_made_is_finished_or_removed() {
    on_a_host(|dir| async move {
        let network = Network::open(config(&dir)).await.unwrap();
        let names = dir.join("run/netns");
        attach(&network, "other").await;
        // Died before the namespace had its mount.
        fs::write(names.join("file"), "").unwrap();
        // Died before the pair was made.
        drop(netns::open_or_create(names.join("empty")).await.unwrap());
        // The pair is there and the name is gone.
        let nameless = attach(&network, "nameless").await;
        let keep = fs::File::open(&nameless.netns).unwrap();
        netns::remove(&nameless.netns).unwrap();
        // Died before addresses and routes.
        let bare = attach(&network, "bare").await;
        within(&bare.netns, || run("ip address flush dev eth0"));

        let tasks = ["bare", "empty", "file", "nameless", "other"].map(task);
        assert_eq!(network.attached().await.unwrap(), tasks);
        assert_eq!(attach(&network, "bare").await, bare);
        for name in ["bare", "empty", "file", "nameless"] {
            let attachment = attach(&network, name).await;
            serve(&attachment.netns, 80, "x");
            assert_eq!(ask(attachment.address, 80).unwrap().0, "x", "{name}");
        }
        fs::write(names.join("file2"), "").unwrap();
        drop(netns::open_or_create(names.join("empty2")).await.unwrap());
        for task in network.attached().await.unwrap() {
            network.detach(&task).await.unwrap();
        }
        assert_eq!(network.attached().await.unwrap(), []);
        drop(keep);
        network.remove().await.unwrap();
        assert_eq!(traces(&dir), NOTHING);
    });
}

#[test]
fn two_networks_live_side_by_side() {
    on_a_host(|dir| async move {
        let one = Network::open(config(&dir)).await.unwrap();
        let two = NetworkConfig {
            bridge: "other0".into(),
            subnet: "10.43.0.0/24".parse().unwrap(),
            run_dir: dir.join("two"),
            table: "other".into(),
        };
        let two = Network::open(two).await.unwrap();
        let (a, b) = (attach(&one, "same").await, attach(&two, "same").await);
        serve(&a.netns, 80, "one");
        serve(&b.netns, 80, "two");
        one.publish(&[tcp(8081, &[(a.address, 80)])]).await.unwrap();
        two.publish(&[tcp(8082, &[(b.address, 80)])]).await.unwrap();
        assert_eq!((ask(LOCALHOST, 8081).unwrap().0, ask(HOST, 8082).unwrap().0), ("one".into(), "two".into()));
        // From one to the other over a published port only.
        assert_eq!(within(&a.netns, || ask(HOST, 8082)).unwrap().0, "two");
        one.remove().await.unwrap();
        assert_eq!(two.attached().await.unwrap(), [task("same")]);
        assert_eq!(ask(LOCALHOST, 8082).unwrap().0, "two");
        two.remove().await.unwrap();
        assert_eq!(traces(&dir), NOTHING);
    });
}

#[test]
fn conflicts_and_exhaustion_are_told_with_the_way_out() {
    on_a_host(|dir| async move {
        let with = |subnet: &str| NetworkConfig { subnet: subnet.parse().unwrap(), ..config(&dir) };
        let taken = Network::open(with("192.0.2.0/25")).await.unwrap();
        let error = taken.attach(&task("a")).await.unwrap_err().to_string();
        assert!(error.contains("address 192.0.2.1/24 on uplink0") && error.contains("--subnet"), "{error}");
        run("ip route add 10.50.0.0/16 dev uplink0");
        let routed = Network::open(with("10.50.7.0/24")).await.unwrap();
        let error = routed.attach(&task("a")).await.unwrap_err().to_string();
        assert!(error.contains("route 10.50.0.0/16 on uplink0"), "{error}");

        let small = Network::open(with("10.60.0.0/30")).await.unwrap();
        attach(&small, "a").await;
        let error = small.attach(&task("b")).await.unwrap_err().to_string();
        assert!(error.contains("1 of 1 are in use"), "{error}");
        small.detach(&task("a")).await.unwrap();
        attach(&small, "b").await;
        let other = Network::open(with("10.61.0.0/24")).await.unwrap();
        let error = other.attach(&task("c")).await.unwrap_err().to_string();
        assert!(error.contains("10.60.0.1/30") && error.contains("--bridge"), "{error}");
    });
}

#[test]
fn a_hundred_at_once_and_what_it_takes() {
    on_a_host(|dir| async move {
        let network = Network::open(config(&dir)).await.unwrap();
        let tasks: Vec<_> = (0..100).map(|n| task(&format!("t{n:03}"))).collect();
        let start = Instant::now();
        let attachments = futures::future::try_join_all(tasks.iter().map(|task| network.attach(task))).await.unwrap();
        println!("attach, 100 at once: {:?}", start.elapsed());
        let mut addresses: Vec<_> = attachments.iter().map(|attachment| attachment.address).collect();
        addresses.sort();
        addresses.dedup();
        assert_eq!(addresses.len(), 100);
        assert_eq!(network.attached().await.unwrap(), tasks);
        let start = Instant::now();
        let one = attach(&network, "one").await;
        println!("attach, one more: {:?}", start.elapsed());
        let backends: Vec<_> = addresses.iter().map(|address| (*address, 80)).collect();
        for what in ["first", "same again"] {
            let start = Instant::now();
            network.publish(&[tcp(8080, &backends)]).await.unwrap();
            println!("publish, 100 backends, {what}: {:?}", start.elapsed());
        }
        let start = Instant::now();
        network.detach(&task("one")).await.unwrap();
        println!("detach, one: {:?}", start.elapsed());
        assert!(!one.netns.exists());
        let start = Instant::now();
        futures::future::try_join_all(tasks.iter().map(|task| network.detach(task))).await.unwrap();
        println!("detach, 100 at once: {:?}", start.elapsed());
        network.remove().await.unwrap();
        assert_eq!(traces(&dir), NOTHING);
    });
}
