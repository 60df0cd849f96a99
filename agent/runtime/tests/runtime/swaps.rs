//! Images that change while a container is made of them: another container may share them.

use std::{
    ffi::CString,
    fs, io,
    os::unix::{ffi::OsStrExt, fs::symlink},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use nix::libc;
use serde_json::json;

use crate::harness::{Bundle, Said, until};

/// Enough for a race to be won that can be won at all in this way.
const TRIED: Duration = Duration::from_secs(3);

/// Exchanges two names as fast as it can until `body` returns.
fn swapping<T>(one: PathBuf, other: PathBuf, body: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    let c_path = |path: &Path| CString::new(path.as_os_str().as_bytes()).expect("no NUL");
    let (one, other) = (c_path(&one), c_path(&other));
    let exchange = || {
        let at = libc::AT_FDCWD;
        // SAFETY: both paths are terminated and outlive the call.
        match unsafe { libc::renameat2(at, one.as_ptr(), at, other.as_ptr(), libc::RENAME_EXCHANGE) } {
            0 => {}
            _ => panic!("cannot exchange: {}", io::Error::last_os_error()),
        }
    };
    struct Ends<'a>(&'a AtomicBool);
    impl Drop for Ends<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    std::thread::scope(|scope| {
        let _ends = Ends(&done);
        let swapper = scope.spawn(|| {
            let mut even = true;
            // Ends as it began.
            while !done.load(Ordering::Relaxed) || !even {
                exchange();
                even = !even;
            }
        });
        let result = body();
        done.store(true, Ordering::Relaxed);
        swapper.join().expect("it ends");
        result
    })
}

/// Runs the bundle again and again, at least until a container was made.
fn runs(bundle: &Bundle, mut check: impl FnMut(&Said)) {
    let begin = Instant::now();
    let mut made = false;
    until("a container to be made", || {
        let said = bundle.call(&["run", "one"]);
        check(&said);
        made |= said.code == 0;
        made && begin.elapsed() > TRIED
    });
}

#[test]
fn a_root_that_becomes_a_link_does_not_lead_out() {
    let bundle = Bundle::new(&["/bin/cat", "/secret"]);
    let outside = bundle.file("outside");
    fs::create_dir_all(outside.join("bin")).expect("made");
    for name in ["busybox", "cat"] {
        fs::copy("/bin/busybox", outside.join("bin").join(name)).expect("busybox-static is installed");
    }
    for (folder, text) in [(&outside, "secret"), (&bundle.path().join("rootfs"), "own")] {
        fs::create_dir_all(folder.join("proc")).expect("made");
        fs::write(folder.join("secret"), text).expect("written");
    }
    let link = bundle.path().join("link");
    symlink(&outside, &link).expect("linked");
    swapping(bundle.path().join("rootfs"), link, || {
        runs(&bundle, |said| assert!(!said.out.contains("secret"), "{said:?}"));
    });
}

#[test]
fn a_mount_target_that_becomes_a_link_does_not_lead_out() {
    let mut bundle = Bundle::new(&["/bin/cat", "/place/inner/file"]);
    let (outside, volume) = (bundle.file("outside"), bundle.file("volume"));
    for folder in [&outside, &volume, &bundle.image("place"), &bundle.image("etc/inside")] {
        fs::create_dir_all(folder).expect("made");
    }
    fs::write(volume.join("file"), "volume").expect("written");
    symlink(&outside, bundle.image("link")).expect("linked");
    bundle.mount(json!({ "destination": "/place/inner", "type": "bind", "source": volume, "options": ["bind"] }));
    bundle.mount(json!({ "destination": "/place/memory", "type": "tmpfs", "source": "tmpfs" }));
    swapping(bundle.image("place"), bundle.image("link"), || {
        runs(&bundle, |said| assert!(said.code != 0 || said.out == "volume", "{said:?}"));
    });
    assert_eq!(fs::read_dir(&outside).expect("there").count(), 0, "nothing was made outside");
}

/// What is masked is covered with `/dev/null`, and a terminal is bound on `/dev/console`: the host's, and the
/// container's own, not what the image has there.
#[test]
fn masks_and_the_console_do_not_go_by_the_images_dev() {
    let mut bundle = Bundle::new(&[]);
    bundle.shell("cat /proc/kallsyms /proc/keys; echo end");
    bundle.config["mounts"].as_array_mut().expect("mounts").retain(|mount| mount["destination"] == "/proc");
    bundle.mount(json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts",
        "options": ["newinstance", "ptmxmode=0666", "mode=0620"] }));
    bundle.set("/linux/maskedPaths", json!(["/proc/kallsyms", "/proc/keys"]));
    bundle.set("/process/terminal", json!(true));
    let outside = bundle.file("outside");
    fs::create_dir(&outside).expect("made");
    fs::create_dir_all(bundle.image("dev/pts")).expect("made");
    symlink(&outside, bundle.image("link")).expect("linked");
    let check = |said: &Said| {
        assert!(said.code != 0 || said.out.replace('\r', "") == "end\n", "{said:?}");
        assert_eq!(fs::read_dir(&outside).expect("there").count(), 0, "nothing was made outside");
    };
    swapping(bundle.image("dev"), bundle.image("link"), || {
        runs(&bundle, &check);
    });

    // Standing links, of which each is the image's choice.
    let victim = bundle.file("victim");
    fs::write(&victim, "untouched").expect("written");
    for name in ["null", "console", "zero", "ptmx"] {
        fs::remove_dir_all(bundle.image("dev")).expect("removed");
        fs::create_dir_all(bundle.image("dev/pts")).expect("made");
        symlink(&victim, bundle.image("dev").join(name)).expect("linked");
        check(&bundle.call(&["run", "one"]));
        assert_eq!(fs::read_to_string(&victim).expect("there"), "untouched", "{name}");
    }
}
