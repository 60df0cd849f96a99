use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
    path::Path,
};

use nix::{
    libc,
    sched::CloneFlags,
    sys::stat::{Mode, SFlag, makedev, mknod, umask},
};
use serde_json::{Value, json};

use super::containers::{Bundle, dev, has, in_child, proc};
use crate::{
    rootfs::{Options, Root, Sources, Way},
    sys,
};

fn fuse() -> Value {
    json!([{ "path": "/dev/net/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o622, "uid": 3, "gid": 4 }])
}

#[test]
fn a_new_dev_is_filled_whatever_the_umask() {
    let bundle = Bundle::new().mounts(json!([proc(), dev(&["nosuid", "mode=755"])]));
    in_child(|| {
        umask(Mode::from_bits_truncate(0o077));
        bundle.enter();
        for name in ["null", "zero", "full", "random", "urandom", "tty"] {
            let of = fs::metadata(Path::new("/dev").join(name)).expect("metadata");
            assert!(of.file_type().is_char_device() && of.mode() & 0o777 == 0o666, "{name}: {:o}", of.mode());
        }
        fs::write("/dev/null", "gone").expect("to write");
        assert_eq!(fs::read_link("/dev/fd").expect("a link"), Path::new("/proc/self/fd"));
        assert_eq!(fs::read_link("/dev/ptmx").expect("a link"), Path::new("pts/ptmx"));
        assert_eq!(umask(Mode::empty()), Mode::from_bits_truncate(0o077));
    });
}

#[test]
fn on_a_nodev_mount_the_hosts_devices_are_bound_and_cannot_be_changed() {
    let bundle = Bundle::new().mounts(json!([proc(), dev(&["nodev", "mode=755"])]));
    bundle.run(|| {
        fs::write("/dev/null", "gone").expect("to write");
        assert!(has("/dev/null", "ro") && has("/dev", "nodev"));
        let changed = fs::set_permissions("/dev/null", PermissionsExt::from_mode(0o600));
        assert_eq!(changed.expect_err("a failure").raw_os_error(), Some(libc::EROFS));
        mknod("/dev/mine", SFlag::S_IFCHR, Mode::S_IRUSR, makedev(1, 3)).expect("a node");
        assert_eq!(fs::read("/dev/mine").expect_err("a failure").kind(), ErrorKind::PermissionDenied);
    });
}

#[test]
fn a_dev_that_is_bound_is_left_as_it_is() {
    let bundle = Bundle::new();
    let volume = bundle.volume("volume");
    let bundle = bundle.mounts(json!([{ "destination": "/dev", "type": "bind", "source": volume }]));
    bundle.run(|| assert_eq!(fs::read_dir("/dev").expect("a directory").count(), 1));
}

#[test]
fn an_image_without_a_mount_on_dev_is_given_the_devices() {
    let bundle = Bundle::new();
    bundle.run(|| assert!(fs::metadata("/dev/null").expect("metadata").file_type().is_char_device()));
    bundle.run(|| fs::write("/dev/null", "again").expect("to write"));
    fs::remove_file(bundle.image("dev/null")).expect("to be removed");
    symlink("/etc/passwd", bundle.image("dev/null")).expect("a link");
    bundle.fails_with("something else of that name");
}

#[test]
fn devices_are_made_as_the_spec_says() {
    let devices = json!([fuse()[0], { "path": "/fifo", "type": "p", "fileMode": 0o600 }]);
    let bundle = Bundle::new().mounts(json!([dev(&[])])).with("linux", json!({ "devices": devices }));
    bundle.run(|| {
        let of = fs::metadata("/dev/net/fuse").expect("metadata");
        assert_eq!((of.rdev(), of.mode() & 0o7777, of.uid(), of.gid()), (makedev(10, 229), 0o622, 3, 4));
        assert!(fs::metadata("/fifo").expect("metadata").file_type().is_fifo());
    });
}

#[test]
fn a_device_of_the_spec_takes_the_place_of_a_default_one() {
    let only = json!([{ "path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600, "uid": 9 }]);
    let bundle = Bundle::new().mounts(json!([dev(&[])])).with("linux", json!({ "devices": only }));
    bundle.run(|| {
        let of = fs::metadata("/dev/null").expect("metadata");
        assert_eq!((of.mode() & 0o777, of.uid()), (0o600, 9));
    });
}

/// As engines name it among all of a host's.
#[test]
fn pseudo_terminals_are_the_containers_own_whatever_the_spec_says() {
    let bundle = Bundle::new().mounts(json!([proc(), dev(&["nosuid", "mode=755"])]));
    let bundle =
        bundle.with("linux", json!({ "devices": [{ "path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2 }] }));
    bundle.run(|| assert_eq!(fs::read_link("/dev/ptmx").expect("a link"), Path::new("pts/ptmx")));
}

#[test]
fn the_same_device_may_be_there_already_and_nothing_else() {
    let of = |bundle: Bundle| {
        bundle.mounts(json!([dev(&[])])).with(
            "linux",
            json!({ "devices": [
        { "path": "/etc/thing", "type": "c", "major": 1, "minor": 5 }] }),
        )
    };
    let bundle = of(Bundle::new());
    mknod(&bundle.image("etc/thing"), SFlag::S_IFCHR, Mode::S_IRUSR, makedev(1, 5)).expect("a node");
    bundle.run(|| assert_eq!(fs::metadata("/etc/thing").expect("metadata").rdev(), makedev(1, 5)));
    fs::remove_file(bundle.image("etc/thing")).expect("to be removed");
    mknod(&bundle.image("etc/thing"), SFlag::S_IFBLK, Mode::S_IRUSR, makedev(1, 5)).expect("a node");
    bundle.fails_with("something else of that name");
    fs::remove_file(bundle.image("etc/thing")).expect("to be removed");
    symlink("/dev/zero", bundle.image("etc/thing")).expect("a link");
    bundle.fails_with("something else of that name");
}

#[test]
fn a_device_that_the_host_lacks_cannot_be_bound() {
    let nowhere = json!([{ "path": "/dev/nowhere", "type": "c", "major": 240, "minor": 77 }]);
    let bundle = Bundle::new().mounts(json!([dev(&["nodev"])])).with("linux", json!({ "devices": nowhere }));
    bundle.fails_with("no char device 240:77");
    // Another device of the name is not taken for it.
    let only = json!([{ "path": "/dev/null", "type": "c", "major": 240, "minor": 77 }]);
    let bundle = bundle.with("linux", json!({ "devices": only }));
    bundle.fails_with("no char device 240:77");
}

#[test]
fn a_device_without_a_type_or_a_name_is_refused() {
    for (device, reason) in [
        (json!({ "path": "/dev/x", "type": "a", "major": 1, "minor": 3 }), "must be one of"),
        (json!({ "path": "/dev/..", "type": "c", "major": 1, "minor": 3 }), "has no name"),
        (json!({ "path": "/dev/x", "type": "c", "major": -1, "minor": 3 }), "must not be negative"),
    ] {
        Bundle::new().with("linux", json!({ "devices": [device] })).fails_with(reason);
    }
}

#[test]
fn in_a_user_namespace_everything_is_there_too() {
    let maps = json!([{ "containerID": 0, "hostID": 0, "size": 1000 }]);
    let bundle = Bundle::new();
    bundle.volume("volume");
    let bundle = bundle.with(
        "linux",
        json!({ "maskedPaths": ["/proc/kallsyms", "/proc/fs"],
        "readonlyPaths": ["/proc/sys"], "uidMappings": maps, "gidMappings": maps }),
    );
    let bundle = bundle.mounts(json!([
        proc(),
        dev(&["nosuid", "mode=755"]),
        { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] },
        { "destination": "/sys/fs/cgroup", "type": "cgroup2", "source": "cgroup", "options": ["ro"] },
        { "destination": "/volume", "type": "bind", "source": "volume", "options": ["idmap", "ro"] },
    ]));
    for way in [Way::Pivot, Way::MoveOver] {
        in_child(|| {
            let spec = bundle.spec();
            let sources = Sources::open(&spec, bundle.path(), Sources::mapped(&spec, bundle.path()).expect("sources"))
                .expect("sources");
            in_user_namespace(|| {
                let cgroups = vec![crate::rootfs::Hierarchy {
                    name: String::new(),
                    mount_point: "/sys/fs/cgroup".into(),
                    group: "/sys/fs/cgroup".into(),
                }];
                let options = Options { rootless_devices: true, cgroups, ..Options::default() };
                let root = Root::make(bundle.path(), &spec, sources, &options).expect("a root");
                root.enter(&spec, way).expect("to enter it");
                fs::write("/dev/null", "gone").expect("to write");
                assert_eq!(fs::metadata("/volume/file").expect("metadata").uid(), 0);
                assert_eq!(fs::read("/proc/kallsyms").expect("nothing"), b"");
                assert!(Path::new("/sys/kernel").exists() && has("/sys", "ro"));
            });
        });
    }
}

/// As the first process of new namespaces but for the network, root being mapped to itself.
fn in_user_namespace(body: impl FnOnce()) {
    let flags = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID;
    let (wait, go) = std::io::pipe().expect("a pipe");
    // SAFETY: the children of these tests have one thread.
    match unsafe { sys::fork_into(flags.bits(), None) }.expect("a child") {
        sys::Forked::Child => {
            drop(go);
            std::io::read_to_string(wait).expect("to wait");
            let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
            let text = ran.as_ref().err().and_then(|panic| panic.downcast_ref::<String>());
            if let Some(text) = text {
                // Past the harness's capture, which nobody reads here.
                std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes()).expect("to tell");
            }
            // SAFETY: ends this copy of the test at once.
            unsafe { libc::_exit(i32::from(ran.is_err())) };
        }
        sys::Forked::Parent { child, pidfd } => {
            drop(wait);
            for map in ["uid_map", "gid_map"] {
                fs::write(format!("/proc/{child}/{map}"), "0 0 1000").expect("a map");
            }
            drop(go);
            assert_eq!(sys::wait(&pidfd).expect("an end"), sys::WaitStatus::Code(0));
        }
    }
}
