//! Images that would rather have something mounted elsewhere.

use std::{fs, os::unix::fs::symlink, path::Path};

use nix::sched::{CloneFlags, setns, unshare};
use serde_json::json;

use super::containers::{Bundle, in_child, proc};
use crate::rootfs::{Options, Way};

/// A bundle that mounts a tmpfs and a file on two paths.
fn mounting_on(directory: &str, file: &str) -> Bundle {
    let bundle = Bundle::new();
    bundle.volume("volume");
    bundle.mounts(json!([
        { "destination": directory, "type": "tmpfs", "source": "tmpfs" },
        { "destination": file, "type": "bind", "source": "volume/file" },
    ]))
}

#[test]
fn a_link_of_the_image_stays_in_the_image() {
    for (name, target) in [
        ("absolute", "/etc/inside"),
        ("relative", "etc/inside"),
        ("upward", "../../../../../../etc/inside"),
        ("crooked", "/tmp/../../etc/./inside"),
    ] {
        let bundle = mounting_on(&format!("/{name}"), &format!("/{name}-file"));
        symlink(target, bundle.image(name)).expect("a link");
        symlink(format!("{target}-file"), bundle.image(&format!("{name}-file"))).expect("a link");
        for existing in [false, true] {
            if existing {
                fs::create_dir_all(bundle.image("etc/inside")).expect("a directory");
            }
            bundle.run(|| {
                fs::write("/etc/inside/mine", "").expect("to write");
                assert_eq!(fs::read_to_string("/etc/inside-file").expect("the file"), "volume", "{name}");
            });
            assert!(!bundle.image("etc/inside/mine").exists(), "{name}: the tmpfs is not there");
        }
        assert!(!Path::new("/etc/inside").exists() && !Path::new("/etc/inside-file").exists());
    }
}

#[test]
fn links_that_lead_in_a_circle_are_an_error() {
    let bundle = mounting_on("/a", "/file");
    symlink("b", bundle.image("a")).expect("a link");
    symlink("a", bundle.image("b")).expect("a link");
    bundle.fails_with("symbolic links");
}

#[test]
fn what_is_there_must_be_of_the_same_kind() {
    let bundle = mounting_on("/etc/directory", "/etc");
    bundle.fails_with("what it is to cover is a directory");
    let bundle = mounting_on("/etc/file", "/etc/other");
    fs::write(bundle.image("etc/file"), "").expect("a file");
    bundle.fails_with("what it is to cover is a file");
    let bundle = Bundle::new();
    bundle.volume("volume");
    fs::write(bundle.image("etc/file"), "").expect("a file");
    let bundle = bundle.mounts(json!([{ "destination": "/etc/file", "type": "bind", "source": "volume" }]));
    bundle.fails_with("what it is to cover is a file");
}

#[test]
fn the_root_cannot_be_covered() {
    let bundle = Bundle::new();
    bundle.volume("volume");
    symlink("/", bundle.image("link")).expect("a link");
    for destination in ["/link", "link", "/etc/../link"] {
        let mounts = json!([{ "destination": destination, "type": "bind", "source": "volume" }]);
        let spec = Bundle::new().mounts(mounts.clone());
        spec.volume("volume");
        symlink("/", spec.image("link")).expect("a link");
        spec.fails_with("would hide the image");
    }
    let bundle = bundle.mounts(json!([proc(), { "destination": "/etc/..", "type": "tmpfs" }]));
    bundle.fails_with("only the first mount may be on the container's root");
    let bundle = bundle.mounts(json!([{ "destination": "/", "type": "tmpfs" }]));
    bundle.fails_with("only an overlay can be the container's root");
}

#[test]
fn a_root_that_is_a_link_is_refused() {
    let bundle = Bundle::new().with("root", json!({ "path": "link" }));
    symlink("/", bundle.path().join("link")).expect("a link");
    bundle.fails_with("a symbolic link");
    let bundle = bundle.with("root", json!({ "path": "nowhere" }));
    bundle.fails_with("does not exist on this node");
}

#[test]
fn a_procfs_is_mounted_on_an_ordinary_directory_only() {
    let bundle = Bundle::new().mounts(json!([proc()]));
    fs::remove_dir(bundle.image("proc")).expect("to be removed");
    symlink("/etc", bundle.image("proc")).expect("a link");
    bundle.fails_with("symbolic link of the image");
    fs::remove_file(bundle.image("proc")).expect("to be removed");
    symlink("/nowhere", bundle.image("proc")).expect("a link");
    bundle.fails_with("symbolic link of the image");
    fs::remove_file(bundle.image("proc")).expect("to be removed");
    fs::write(bundle.image("proc"), "").expect("a file");
    bundle.fails_with("not a directory");
}

#[test]
fn nothing_but_a_few_files_is_mounted_in_a_procfs() {
    let bundle = Bundle::new();
    bundle.volume("volume");
    symlink("/proc/sys", bundle.image("link")).expect("a link");
    let mut bundle = bundle;
    for destination in ["/proc/sys", "/proc/self", "/link", "/link/kernel", "/proc"] {
        let on = json!([proc(), { "destination": destination, "type": "bind", "source": "volume" }]);
        bundle = bundle.mounts(on);
        bundle.fails_with("nothing but a procfs may be on /proc");
    }
    bundle = bundle.mounts(json!([{ "destination": "/proc", "type": "tmpfs" }]));
    bundle.fails_with("nothing but a procfs may be on /proc");
    bundle =
        bundle.mounts(json!([proc(), { "destination": "/proc/meminfo", "type": "bind", "source": "volume/file" }]));
    bundle.run(|| assert_eq!(fs::read_to_string("/proc/meminfo").expect("the file"), "volume"));
    bundle =
        bundle.mounts(json!([{ "destination": "/proc", "type": "bind", "source": "/proc", "options": ["rbind"] }]));
    bundle.run(|| assert!(Path::new("/proc/self/status").exists()));
}

#[test]
fn a_mask_holds_although_the_directory_of_the_procfs_is_swapped() {
    let bundle = Bundle::new().mounts(json!([proc()])).with("linux", json!({ "maskedPaths": ["/proc/kallsyms"] }));
    fs::create_dir(bundle.image("fake")).expect("a directory");
    in_child(|| {
        let namespace = || fs::File::open("/proc/self/ns/mnt").expect("a namespace");
        let outside = namespace();
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
        let inside = namespace();
        let root = bundle.make(&Options::default()).expect("a root");
        // By one who shares the image's files and has none of these mounts.
        setns(outside, CloneFlags::CLONE_NEWNS).expect("to leave");
        fs::rename(bundle.image("proc"), bundle.image("elsewhere")).expect("to swap");
        symlink("fake", bundle.image("proc")).expect("a link");
        setns(inside, CloneFlags::CLONE_NEWNS).expect("to come back");
        root.enter(&bundle.spec(), Way::Pivot).expect("to enter it");
        assert!(Path::new("/elsewhere/self/status").exists());
        assert_eq!(fs::read("/elsewhere/kallsyms").expect("nothing"), b"");
    });
}

#[test]
fn the_working_directory_does_not_lead_out() {
    let process = json!({ "cwd": "/proc/self/fd/3", "user": { "uid": 0, "gid": 0 } });
    let bundle = Bundle::new().mounts(json!([proc()])).with("process", process);
    in_child(|| {
        let _host = fs::File::open("/").expect("the host's root");
        bundle.make(&Options::default()).expect_err("a failure");
    });
}

#[test]
fn copying_up_follows_no_link_and_opens_no_device() {
    let bundle = Bundle::new();
    let bundle = bundle.mounts(json!([{ "destination": "/etc", "type": "tmpfs", "options": ["tmpcopyup"] }]));
    symlink("/root", bundle.image("etc/link")).expect("a link");
    nix::unistd::mkfifo(&bundle.image("etc/fifo"), nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
    bundle.run(|| {
        assert!(fs::symlink_metadata("/etc/link").expect("metadata").is_symlink());
        assert!(Path::new("/etc/fifo").exists());
    });
    let mut deep = bundle.image("etc");
    for _ in 0..200 {
        deep.push("d");
    }
    fs::create_dir_all(deep).expect("directories");
    bundle.fails_with("directories lie in each other");
}
