//! Whether a program of the host already listens on a port, which publishing the port would take away from it.
//!
//! Reads `/proc/net/{tcp,tcp6,udp,udp6}` (proc(5)) of the calling thread's network namespace.

use std::{fs, io};

use roster_proto::spec::Protocol;

/// The state of a TCP socket that listens, in hexadecimal (TCP_LISTEN of linux/net/tcp_states.h).
const LISTEN: &str = "0A";

/// Whether a socket waits on the port, on any of the host's addresses. For UDP any socket bound to the port counts.
pub fn listening(port: u16, protocol: Protocol) -> io::Result<bool> {
    let tables = match protocol {
        Protocol::Tcp => ["tcp", "tcp6"],
        Protocol::Udp => ["udp", "udp6"],
    };
    for table in tables {
        match fs::read_to_string(format!("/proc/thread-self/net/{table}")) {
            Ok(text) if has_listener(&text, port, protocol) => return Ok(true),
            Ok(_) => {}
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

fn has_listener(table: &str, port: u16, protocol: Protocol) -> bool {
    let suffix = format!(":{port:04X}");
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (local, state) = (fields.next(), fields.nth(1));
        local.is_some_and(|local| local.ends_with(&suffix)) && (protocol == Protocol::Udp || state == Some(LISTEN))
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn listeners_are_seen_and_connections_are_not() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(listening(port, Protocol::Tcp).unwrap());
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert!(!listening(client.local_addr().unwrap().port(), Protocol::Tcp).unwrap());
        let socket = UdpSocket::bind("[::1]:0").or_else(|_| UdpSocket::bind("127.0.0.1:0")).unwrap();
        assert!(listening(socket.local_addr().unwrap().port(), Protocol::Udp).unwrap());
    }
}
