use super::*;

fn scope() -> Scope {
    Scope { table: "roster".into(), bridge: "roster0".into(), subnet: "10.42.0.0/16".parse().unwrap() }
}

fn publication(host_ip: Option<[u8; 4]>, port: u16, protocol: Protocol, backends: &[u8]) -> Publication {
    let backends = backends.iter().map(|last| (Ipv4Addr::new(10, 42, 0, *last), 80)).collect();
    Publication { host_ip: host_ip.map(Ipv4Addr::from), port, protocol, backends }
}

#[test]
fn the_whole_batch() {
    let ports = [
        publication(None, 8080, Protocol::Tcp, &[2, 3, 4]),
        publication(None, 53, Protocol::Udp, &[5]),
        publication(None, 9000, Protocol::Tcp, &[]),
        publication(Some([192, 0, 2, 1]), 8080, Protocol::Tcp, &[6]),
    ];
    let expected = r#"add table ip roster
add chain ip roster published
add chain ip roster guard { type filter hook prerouting priority -300; policy accept; }
add chain ip roster forward { type filter hook forward priority 0; policy accept; }
add chain ip roster prerouting { type nat hook prerouting priority -100; policy accept; }
add chain ip roster output { type nat hook output priority -100; policy accept; }
add chain ip roster postrouting { type nat hook postrouting priority 100; policy accept; }
flush table ip roster
add rule ip roster guard iifname "roster0" ip daddr 127.0.0.0/8 drop
add rule ip roster guard iifname "roster0" ip saddr 127.0.0.0/8 drop
add rule ip roster forward oifname "roster0" ct state established,related accept
add rule ip roster forward oifname "roster0" ct status dnat accept
add rule ip roster forward oifname "roster0" iifname != "roster0" drop
add rule ip roster prerouting fib daddr type local jump published
add rule ip roster output fib daddr type local jump published
add rule ip roster postrouting oifname "roster0" ip saddr 127.0.0.0/8 masquerade
add rule ip roster postrouting oifname "roster0" ip saddr 10.42.0.0/16 ct status dnat masquerade
add rule ip roster postrouting oifname != "roster0" ip saddr 10.42.0.0/16 masquerade
add rule ip roster published ip daddr 192.0.2.1 tcp dport 8080 dnat to 10.42.0.6:80
add rule ip roster published tcp dport 8080 dnat to numgen inc mod 3 map { 0 : 10.42.0.2 . 80, 1 : 10.42.0.3 . 80, 2 : 10.42.0.4 . 80 }
add rule ip roster published udp dport 53 dnat to 10.42.0.5:80
"#;
    assert_eq!(scope().full(&ports), expected);
}

#[test]
fn equal_wishes_render_equal() {
    let a = publication(None, 80, Protocol::Tcp, &[2, 3]);
    let b = publication(Some([0; 4]), 80, Protocol::Tcp, &[3]);
    assert_eq!(scope().full(&[a.clone(), b]), scope().full(&[a]));
}

#[test]
fn the_base_leaves_published_ports_alone() {
    let base = scope().base();
    assert!(!base.contains("flush table") && !base.contains("flush chain ip roster published"), "{base}");
    assert!(base.contains("flush chain ip roster guard"), "{base}");
}
