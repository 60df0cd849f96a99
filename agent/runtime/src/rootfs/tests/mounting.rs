use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    path::Path,
};

use nix::{
    libc,
    mount::MsFlags,
    sched::{CloneFlags, setns, unshare},
};
use serde_json::json;

use super::containers::{Bundle, dev, has, in_child, mount_flags, mount_info, proc};
use crate::rootfs::{Hierarchy, Options, Way};

fn is_read_only(path: &str) -> bool {
    fs::write(path, "").is_err_and(|error| error.kind() == ErrorKind::ReadOnlyFilesystem)
}

#[test]
fn the_image_is_the_root_and_the_host_is_gone() {
    let bundle = Bundle::new();
    fs::write(bundle.image("etc/os"), "image").expect("a file");
    bundle.run(|| {
        assert_eq!(fs::read_to_string("/etc/os").expect("the file"), "image");
        assert_eq!(std::env::current_dir().expect("a directory"), Path::new("/"));
        assert!(!Path::new("/root").exists());
    });
}

#[test]
fn a_root_may_be_read_only_while_a_mount_in_it_is_not() {
    let bundle = Bundle::new().with("root", json!({ "path": "rootfs", "readonly": true }));
    let bundle = bundle.mounts(json!([{ "destination": "/new/tmp", "type": "tmpfs", "source": "tmpfs" }]));
    bundle.run(|| {
        assert!(is_read_only("/etc/file"));
        fs::write("/new/tmp/file", "").expect("to write");
    });
}

#[test]
fn layers_are_the_root_when_the_first_mount_says_so() {
    let bundle = Bundle::new();
    let (low, high) = (bundle.volume("low"), bundle.volume("high"));
    fs::write(low.join("only"), "low").expect("a file");
    let upper = bundle.volume("upper");
    let work = bundle.path().join("work");
    fs::create_dir(&work).expect("a directory");
    let options = json!([
        format!("lowerdir={}", high.display()),
        format!("lowerdir={}", low.display()),
        format!("upperdir={}", upper.display()),
        format!("workdir={}", work.display()),
        "nodev",
        "nosuid",
    ]);
    fs::remove_file(upper.join("file")).expect("to be removed");
    let bundle = bundle.mounts(json!([
        { "destination": "/", "type": "overlay", "source": "overlay", "options": options },
        proc(),
    ]));
    bundle.run(|| {
        assert_eq!(fs::read_to_string("/file").expect("a file"), "high");
        assert_eq!(fs::read_to_string("/only").expect("a file"), "low");
        assert!(has("/", "nodev") && has("/", "nosuid"));
        fs::write("/written", "").expect("to write");
    });
    assert!(upper.join("written").exists());
    assert!(!bundle.image("written").exists());
}

#[test]
fn files_and_directories_are_bound_from_the_host_and_from_the_bundle() {
    let bundle = Bundle::new();
    let volume = bundle.volume("volume");
    let bundle = bundle.mounts(json!([
        { "destination": "/a/b/volume", "type": "bind", "source": volume, "options": ["ro"] },
        { "destination": "/a/file", "type": "none", "source": "volume/file", "options": ["bind"] },
    ]));
    bundle.run(|| {
        assert_eq!(fs::read_to_string("/a/b/volume/file").expect("the file"), "volume");
        assert!(is_read_only("/a/b/volume/file"));
        fs::write("/a/file", "written").expect("to write");
    });
    assert_eq!(fs::read_to_string(volume.join("file")).expect("the file"), "written");
}

#[test]
fn a_source_that_does_not_exist_is_named() {
    let bundle = Bundle::new().mounts(json!([{ "destination": "/a", "type": "bind", "source": "nowhere" }]));
    bundle.fails_with("nowhere does not exist on this node");
}

#[test]
fn ro_is_of_the_top_and_rro_of_the_whole_tree() {
    let bundle = Bundle::new();
    let volume = bundle.volume("volume");
    fs::create_dir(volume.join("sub")).expect("a directory");
    let of = |to: &str, option: &str| json!({ "destination": to, "type": "bind", "source": volume, "options": ["rbind", option] });
    let bundle = bundle.mounts(json!([proc(), of("/top", "ro"), of("/tree", "rro"), of("/nodev", "rnodev")]));
    in_child(|| {
        nix::mount::mount(Some("tmpfs"), &volume.join("sub"), Some("tmpfs"), MsFlags::empty(), None::<&str>)
            .expect("a tmpfs");
        bundle.enter();
        assert!(is_read_only("/top/file") && is_read_only("/tree/file") && is_read_only("/tree/sub/file"));
        fs::write("/top/sub/file", "").expect("to write");
        assert!(has("/nodev/sub", "nodev") && !has("/top/sub", "nodev"));
    });
}

#[test]
fn a_mount_has_the_attributes_that_its_options_say() {
    let options = ["nosuid", "noexec", "nosymfollow", "noatime", "nodiratime", "dev", "ro"];
    let bundle = Bundle::new();
    bundle.volume("volume");
    let bundle = bundle.mounts(json!([
        proc(),
        { "destination": "/new", "type": "tmpfs", "source": "some", "options": options },
        { "destination": "/bound", "type": "bind", "source": "volume", "options": options },
        { "destination": "/bound", "options": ["remount", "exec", "strictatime", "rw"] },
    ]));
    bundle.run(|| {
        for option in ["ro", "nosuid", "noexec", "nosymfollow", "noatime", "nodiratime"] {
            assert!(has("/new", option), "{option}: {:?}", mount_info("/new"));
        }
        for option in ["rw", "nosuid", "nosymfollow", "nodiratime"] {
            assert!(has("/bound", option), "{option}: {:?}", mount_info("/bound"));
        }
        assert!(!has("/bound", "noexec") && !has("/bound", "noatime") && !has("/bound", "relatime"));
    });
}

#[test]
fn what_the_file_system_does_not_know_is_told_in_its_own_words() {
    let options = json!(["sync", "size=1m", "nonsense=1"]);
    let bundle = Bundle::new();
    let bundle = bundle.mounts(json!([{ "destination": "/a", "type": "tmpfs", "options": options }]));
    bundle.fails_with("nonsense");
}

#[test]
fn file_systems_of_every_kind_are_mounted() {
    let bundle = Bundle::new().mounts(json!([
        proc(),
        dev(&["nosuid", "strictatime", "mode=755", "size=65536k"]),
        { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
          "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
        { "destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["mode=1777", "size=65536k"] },
        { "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid"] },
        { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] },
        { "destination": "/ram", "type": "ramfs", "source": "ramfs" },
    ]));
    bundle.run(|| {
        assert!(Path::new("/dev/pts/ptmx").exists() && Path::new("/dev/ptmx").exists());
        assert!(Path::new("/sys/kernel").exists());
        assert!(has("/dev/mqueue", "nosuid") && has("/sys", "ro"));
        fs::write("/dev/shm/file", "").expect("to write");
        fs::write("/ram/file", "").expect("to write");
    });
}

#[test]
fn a_read_only_tmpfs_is_sealed_when_everything_in_it_is_mounted() {
    let bundle = Bundle::new().mounts(json!([
        proc(),
        dev(&["ro", "mode=755"]),
        { "destination": "/dev/shm", "type": "tmpfs", "source": "shm" },
        { "destination": "/ro", "type": "tmpfs", "source": "tmpfs", "options": ["ro"] },
        { "destination": "/ro/in/it", "type": "tmpfs", "source": "tmpfs" },
    ]));
    bundle.run(|| {
        assert!(is_read_only("/dev/file") && is_read_only("/ro/file"));
        fs::write("/dev/null", "").expect("to write");
        fs::write("/dev/shm/file", "").expect("to write");
        fs::write("/ro/in/it/file", "").expect("to write");
    });
}

#[test]
fn a_tmpfs_keeps_the_mode_of_what_it_covers() {
    let bundle = Bundle::new().mounts(json!([
        { "destination": "/etc", "type": "tmpfs", "source": "tmpfs" },
        { "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"] },
    ]));
    fs::set_permissions(bundle.image("etc"), PermissionsExt::from_mode(0o750)).expect("a mode");
    bundle.run(|| {
        assert_eq!(fs::metadata("/etc").expect("metadata").mode() & 0o7777, 0o750);
        assert_eq!(fs::metadata("/tmp").expect("metadata").mode() & 0o7777, 0o1777);
    });
}

#[test]
fn tmpcopyup_begins_with_what_the_image_has_there() {
    let options = json!(["tmpcopyup", "ro"]);
    let bundle = Bundle::new();
    let bundle = bundle.mounts(json!([{ "destination": "/etc", "type": "tmpfs", "options": options }]));
    fs::create_dir(bundle.image("etc/sub")).expect("a directory");
    fs::write(bundle.image("etc/sub/file"), "content").expect("a file");
    chown(bundle.image("etc/sub/file"), Some(7), Some(8)).expect("an owner");
    fs::set_permissions(bundle.image("etc/sub/file"), PermissionsExt::from_mode(0o4711)).expect("a mode");
    symlink("/proc/self/fd/0", bundle.image("etc/link")).expect("a link");
    bundle.run(|| {
        assert_eq!(fs::read_to_string("/etc/sub/file").expect("the file"), "content");
        let of = fs::metadata("/etc/sub/file").expect("metadata");
        assert_eq!((of.uid(), of.gid(), of.mode() & 0o7777), (7, 8, 0o4711));
        assert_eq!(fs::read_link("/etc/link").expect("a link"), Path::new("/proc/self/fd/0"));
        assert!(is_read_only("/etc/sub/file"));
    });
    assert_eq!(fs::read_to_string(bundle.image("etc/sub/file")).expect("the file"), "content");
}

#[test]
fn owners_are_mapped_as_the_mount_says() {
    let maps = json!([{ "containerID": 0, "hostID": 4000, "size": 10 }]);
    let bundle = Bundle::new();
    let volume = bundle.volume("volume");
    let of = |to: &str| {
        json!({ "destination": to, "type": "bind", "source": volume, "options": ["bind", "idmap"],
                "uidMappings": maps, "gidMappings": maps })
    };
    let bundle = bundle.mounts(json!([of("/a"), of("/b")]));
    bundle.run(|| {
        for path in ["/a/file", "/b/file"] {
            let of = fs::metadata(path).expect("metadata");
            assert_eq!((of.uid(), of.gid()), (4000, 4000));
        }
    });
}

#[test]
fn owners_are_mapped_only_by_a_map_and_only_where_that_is_possible() {
    let bundle = Bundle::new();
    bundle.volume("volume");
    let idmap = json!([{ "destination": "/a", "type": "bind", "source": "volume", "options": ["idmap"] }]);
    let bundle = bundle.mounts(idmap);
    bundle.fails_with("no user namespace to take them from");
    let bundle = bundle.mounts(json!([{ "destination": "/a", "type": "tmpfs", "options": ["idmap"] }]));
    bundle.fails_with("for bind mounts only");
    let map = json!([{ "containerID": 0, "hostID": 1, "size": 1 }]);
    let bundle = bundle.mounts(json!([{ "destination": "/a", "type": "bind", "source": "/sys", "options": ["idmap"],
        "uidMappings": map, "gidMappings": map }]));
    bundle.fails_with("file system cannot do that");
}

#[test]
fn a_bound_mount_is_private_unless_it_asks_for_more() {
    let bundle = Bundle::new();
    let volume = bundle.volume("volume");
    fs::create_dir(volume.join("sub")).expect("a directory");
    let of =
        |to: &str, options: &[&str]| json!({ "destination": to, "type": "bind", "source": volume, "options": options });
    let bundle = bundle.mounts(json!([
        proc(),
        of("/default", &["rbind"]),
        of("/private", &["rbind", "private"]),
        of("/slave", &["rbind", "slave"]),
        of("/rshared", &["rbind", "rshared"]),
        of("/unbindable", &["rbind", "unbindable"]),
    ]));
    in_child(|| {
        for path in [&volume, &volume.join("sub")] {
            nix::mount::mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("a tmpfs");
            fs::create_dir_all(volume.join("sub")).expect("a directory");
            mount_flags(path, MsFlags::MS_SHARED);
        }
        bundle.enter();
        for path in ["/default", "/default/sub", "/private", "/private/sub", "/unbindable/sub"] {
            assert_eq!(mount_info(path).1, "", "{path}");
        }
        assert!(mount_info("/slave").1.starts_with("master:") && mount_info("/slave/sub").1.starts_with("master:"));
        assert!(mount_info("/rshared").1.starts_with("shared:") && mount_info("/rshared/sub").1.starts_with("shared:"));
        assert_eq!(mount_info("/unbindable").1, "unbindable");
    });
}

#[test]
fn nothing_that_is_mounted_for_the_container_appears_on_the_host() {
    let bundle = Bundle::new().mounts(json!([proc(), { "destination": "/tmp", "type": "tmpfs" }]));
    in_child(|| {
        mount_flags("/", MsFlags::MS_REC | MsFlags::MS_SHARED);
        let before = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        let host = fs::File::open("/proc/self/ns/mnt").expect("the namespace");
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
        let root = bundle.make(&Options::default()).expect("a root");
        assert!(mount_info(bundle.image("tmp").to_str().expect("a path")).0.contains(&"rw".to_owned()));
        setns(host, CloneFlags::CLONE_NEWNS).expect("the host's mounts");
        assert_eq!(fs::read_to_string("/proc/self/mountinfo").expect("mountinfo"), before);
        drop(root);
    });
}

#[test]
fn the_root_is_propagated_as_the_spec_says() {
    for (name, expected) in [("shared", "shared:"), ("rshared", "shared:"), ("private", ""), ("slave", "master:")] {
        let bundle = Bundle::new().mounts(json!([proc()])).with("linux", json!({ "rootfsPropagation": name }));
        in_child(|| {
            // Also what the bundle lies on.
            mount_flags("/", MsFlags::MS_REC | MsFlags::MS_SHARED);
            // There is only a slave as long as there is its master.
            let _host = fs::File::open("/proc/self/ns/mnt").expect("the namespace");
            unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
            bundle.enter();
            let fields = mount_info("/").1;
            assert!(fields.starts_with(expected) && fields.is_empty() == expected.is_empty(), "{name}: {fields}");
        });
    }
    let bundle = Bundle::new().with("linux", json!({ "rootfsPropagation": "ro" }));
    bundle.fails_with("there is no such propagation");
}

#[test]
fn a_root_can_be_entered_without_pivoting() {
    let bundle = Bundle::new().mounts(json!([proc()]));
    fs::write(bundle.image("etc/os"), "image").expect("a file");
    in_child(|| {
        let root = bundle.make(&Options::default()).expect("a root");
        root.enter(&bundle.spec(), Way::MoveOver).expect("to enter it");
        assert_eq!(fs::read_to_string("/etc/os").expect("the file"), "image");
        // The way out of a plain chroot(2).
        fs::create_dir("/jail").expect("a directory");
        nix::unistd::chroot("/jail").expect("a root");
        for _ in 0..20 {
            std::env::set_current_dir("..").expect("a directory");
        }
        nix::unistd::chroot(".").expect("a root");
        assert!(Path::new("/etc/os").exists() && !Path::new("/root").exists());
        // No procfs or sysfs but the container's own.
        let text = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        assert_eq!(text.matches(" - proc ").count() + text.matches(" - sysfs ").count(), 1, "{text}");
    });
}

#[test]
fn the_working_directory_is_made() {
    let process = json!({ "cwd": "/some/where", "user": { "uid": 0, "gid": 0 } });
    Bundle::new().with("process", process).run(|| {
        assert!(Path::new("/some/where").is_dir());
    });
}

#[test]
fn cgroups_of_v1_are_bound_side_by_side() {
    let bundle = Bundle::new();
    let hierarchy = |name: &str, directory: &str| {
        let mount_point = bundle.volume(directory);
        let group = mount_point.join("own");
        fs::create_dir(&group).expect("a directory");
        fs::write(group.join("tasks"), directory).expect("a file");
        Hierarchy { name: name.to_owned(), mount_point, group }
    };
    let cgroups = vec![hierarchy("cpu,cpuacct", "cpu,cpuacct"), hierarchy("name=systemd", "systemd")];
    let options = Options { cgroups, ..Options::default() };
    let bundle = bundle.mounts(json!([
        { "destination": "/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "ro"] },
    ]));
    in_child(|| {
        let root = bundle.make(&options).expect("a root");
        root.enter(&bundle.spec(), Way::Pivot).expect("to enter it");
        for (path, content) in
            [("cpu/tasks", "cpu,cpuacct"), ("cpuacct/tasks", "cpu,cpuacct"), ("systemd/tasks", "systemd")]
        {
            let path = Path::new("/cgroup").join(path);
            assert_eq!(fs::read_to_string(&path).expect("the file"), content);
            assert!(is_read_only(path.to_str().expect("a path")));
        }
        assert!(is_read_only("/cgroup/file"));
    });
}

#[test]
fn cgroup_v2_is_one_mount() {
    let bundle = Bundle::new().mounts(json!([
        { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"] },
        { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"] },
    ]));
    bundle.run(|| {
        assert!(Path::new("/sys/fs/cgroup/cgroup.procs").exists());
    });
}

#[test]
fn paths_are_masked_and_made_read_only() {
    let bundle = Bundle::new().mounts(json!([proc()])).with(
        "linux",
        json!({
            "maskedPaths": ["/proc/kallsyms", "/proc/fs", "/proc/bus", "/etc/secret", "/nowhere", "/etc/secret/below"],
            "readonlyPaths": ["/proc/sys", "/etc", "/nowhere"],
        }),
    );
    fs::write(bundle.image("etc/secret"), "secret").expect("a file");
    bundle.run(|| {
        assert_eq!(fs::read("/proc/kallsyms").expect("nothing"), b"");
        assert_eq!(fs::read("/etc/secret").expect("nothing"), b"");
        assert_eq!(fs::read_dir("/proc/fs").expect("a directory").count(), 0);
        assert_eq!(fs::read_dir("/proc/bus").expect("a directory").count(), 0);
        assert!(has("/proc/fs", "ro") && has("/proc/bus", "ro") && has("/proc/sys", "ro"));
        assert!(is_read_only("/proc/sys/kernel/hostname") && is_read_only("/etc/file"));
        // The host's node is not this root's to change.
        let changed = fs::set_permissions("/etc/secret", PermissionsExt::from_mode(0o600));
        assert_eq!(changed.expect_err("a failure").raw_os_error(), Some(libc::EROFS));
    });
}

#[test]
fn a_label_is_refused_where_nobody_would_heed_it() {
    let bundle = Bundle::new().with("linux", json!({ "mountLabel": "system_u:object_r:svirt_sandbox_file_t:s0" }));
    if !Path::new("/sys/fs/selinux/enforce").exists() {
        bundle.fails_with("does not run SELinux");
    }
}
