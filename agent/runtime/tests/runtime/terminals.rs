//! Terminals: handed to a console socket, and passed through.

use std::{
    fs,
    io::{IoSliceMut, Read, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixListener,
    },
};

use nix::{
    cmsg_space,
    sys::socket::{ControlMessageOwned, MsgFlags, recvmsg},
};
use serde_json::json;

use crate::harness::Bundle;

/// What somebody sends to the socket, as containerd receives it.
fn receive(listener: &UnixListener) -> fs::File {
    let (stream, _) = listener.accept().expect("a connection");
    let mut bytes = [0; 64];
    let mut space = cmsg_space!(RawFd);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty()).expect("received");
    let fd = message.cmsgs().expect("whole").find_map(|message| match message {
        ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
        _ => None,
    });
    // SAFETY: the kernel just made it for this process.
    unsafe { OwnedFd::from_raw_fd(fd.expect("a descriptor")) }.into()
}

/// Up to these words, or the hanging up of the other end.
fn read_until(mut master: &fs::File, words: &str) -> String {
    let (mut said, mut buffer) = (Vec::new(), [0; 1024]);
    loop {
        let length = master.read(&mut buffer).unwrap_or(0);
        said.extend_from_slice(&buffer[..length]);
        let text = String::from_utf8_lossy(&said).replace("\r\n", "\n");
        if length == 0 || text.contains(words) {
            return text;
        }
    }
}

fn read(master: &fs::File) -> String {
    read_until(master, "\0")
}

#[test]
fn a_terminal_is_handed_to_the_console_socket() {
    let mut bundle = Bundle::new(&[]);
    bundle.shell("tty; stty size; test -c /dev/console && echo console; read -r line; echo got $line");
    bundle.set("/process/terminal", json!(true));
    bundle.set("/process/consoleSize", json!({ "height": 33, "width": 101 }));
    assert!(bundle.refused(&["create", "one"]).contains("--console-socket"));
    let socket = bundle.file("console");
    let listener = UnixListener::bind(&socket).expect("bound");
    let socket = socket.to_str().expect("text").to_owned();
    assert_eq!(bundle.detached(&["create", "--console-socket", &socket, "one"]).code, 0);
    let mut master = receive(&listener);
    bundle.ok(&["start", "one"]);
    // Typed earlier, it would be shown in the midst of what the program says.
    let before = read_until(&master, "console\n");
    master.write_all(b"typed\n").expect("written");
    assert_eq!(before + &read(&master), "/dev/pts/0\n33 101\nconsole\ntyped\ngot typed\n");
    bundle.until("one", "stopped");
    bundle.ok(&["delete", "one"]);

    bundle.set("/process/terminal", json!(false));
    bundle.set("/process/args", json!(["/bin/sleep", "1000"]));
    assert!(bundle.refused(&["create", "--console-socket", &socket, "two"]).contains("of no use"));
    assert_eq!(bundle.detached(&["run", "-d", "two"]).code, 0);
    let exec = ["exec", "-d", "-t", "--console-socket", &socket, "two", "/bin/sh", "-c", "tty; echo $0"];
    assert_eq!(bundle.detached(&exec).code, 0);
    let text = read(&receive(&listener));
    assert!(text.starts_with("/dev/pts/"), "{text:?}");
}

#[test]
fn what_a_terminal_shows_is_passed_through() {
    let mut bundle = Bundle::new(&[]);
    bundle.shell("tty; read -r line; echo got $line; exit 6");
    bundle.set("/process/terminal", json!(true));
    let mut child = bundle.spawn(&["run", "one"]);
    child.stdin.as_mut().expect("piped").write_all(b"typed\n").expect("written");
    let ended = crate::harness::said(child.wait_with_output().expect("it ends"));
    assert_eq!(ended.code, 6, "{ended:?}");
    let text = ended.out.replace("\r\n", "\n");
    assert!(text.contains("/dev/pts/0\n") && text.ends_with("got typed\n"), "{text:?}");
}

#[test]
fn a_container_is_removed_though_nobody_reads_its_terminal_any_more() {
    let mut bundle = Bundle::new(&[]);
    bundle.shell("while :; do echo more; done");
    bundle.set("/process/terminal", json!(true));
    let mut child = bundle.spawn(&["run", "one"]);
    drop(child.stdout.take());
    let ended = crate::harness::said(child.wait_with_output().expect("it ends"));
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.err.contains("watch the program"), "{ended:?}");
    assert!(bundle.ok(&["list", "-q"]).is_empty(), "it is gone");
}

#[test]
fn a_container_is_removed_though_nobody_hears_a_warning_any_more() {
    let mut bundle = Bundle::new(&["/bin/true"]);
    let fails = bundle.script("fails", "exit 1");
    bundle.set("/hooks", json!({ "poststop": [{ "path": fails }] }));
    let mut child = bundle.spawn(&["run", "one"]);
    drop(child.stderr.take());
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
    assert!(bundle.ok(&["list", "-q"]).is_empty(), "it is gone");
}
