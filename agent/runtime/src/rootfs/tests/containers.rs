//! A bundle on disk, and a child that makes its root and looks around in it.

use std::{
    fs,
    io::{Read, Write},
    os::unix::fs::DirBuilderExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use nix::{
    libc,
    mount::MsFlags,
    sched::{CloneFlags, unshare},
    unistd::ForkResult,
};
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use crate::{
    error::StartError,
    rootfs::{Options, Root, Sources, Way},
};

/// A bundle with an image of a few empty directories.
pub(super) struct Bundle {
    dir: tempfile::TempDir,
    config: Value,
}

impl Bundle {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        // The owner of a user namespace has to pass, too.
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("its mode");
        let bundle = Self { dir, config: json!({ "ociVersion": "1.2.0", "root": { "path": "rootfs" } }) };
        for name in ["etc", "proc", "dev", "sys", "tmp"] {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(bundle.image(name)).expect("a directory");
        }
        bundle
    }

    pub(super) fn with(mut self, key: &str, value: Value) -> Self {
        self.config[key] = value;
        self
    }

    pub(super) fn mounts(self, mounts: Value) -> Self {
        self.with("mounts", mounts)
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A place in the image's files.
    pub(super) fn image(&self, path: &str) -> PathBuf {
        self.dir.path().join("rootfs").join(path)
    }

    /// A directory beside the image, with one file in it.
    pub(super) fn volume(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir(&path).expect("a directory");
        fs::write(path.join("file"), name).expect("a file");
        path
    }

    pub(super) fn spec(&self) -> Spec {
        serde_json::from_value(self.config.clone()).expect("a spec")
    }

    pub(super) fn make(&self, options: &Options) -> Result<Root, StartError> {
        let spec = self.spec();
        let sources = Sources::open(&spec, self.path(), Sources::mapped(&spec, self.path())?)?;
        Root::make(self.path(), &spec, sources, options)
    }

    /// Becomes the container, which the calling process must be ready for.
    pub(super) fn enter(&self) {
        let root = self.make(&Options::default()).expect("a root");
        root.enter(&self.spec(), Way::Pivot).expect("to enter it");
    }

    /// What `inside` finds in the container.
    #[track_caller]
    pub(super) fn run(&self, inside: impl FnOnce()) {
        in_child(|| {
            self.enter();
            inside();
        });
    }

    /// Why the root cannot be made.
    #[track_caller]
    pub(super) fn fails_with(&self, reason: &str) {
        in_child(|| {
            let root = self.make(&Options::default());
            let error = root.and_then(|root| root.enter(&self.spec(), Way::Pivot)).expect_err("a failure").to_string();
            assert!(error.contains(reason), "{error:?} does not say {reason:?}");
        });
    }
}

/// Runs `body` in a child with its own mounts, which the host's do not learn of. What panics there panics here.
#[track_caller]
pub(super) fn in_child(body: impl FnOnce()) {
    let (mut reader, mut writer) = std::io::pipe().expect("a pipe");
    // SAFETY: fork(2) of libc leaves the child a usable allocator, and nothing else of other threads is used in it.
    match unsafe { nix::unistd::fork() }.expect("a child") {
        ForkResult::Child => {
            // A panic could wait for ever for a lock that a thread of the harness had, of which there are none here.
            nix::unistd::alarm::set(20);
            let ran = catch_unwind(AssertUnwindSafe(|| {
                unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
                mount_flags("/", MsFlags::MS_REC | MsFlags::MS_PRIVATE);
                body();
            }));
            if let Err(panic) = &ran {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked");
                writer.write_all(text.as_bytes()).expect("to tell");
            }
            // SAFETY: ends this copy of the test at once, without what the harness would do at its end.
            unsafe { libc::_exit(i32::from(ran.is_err())) };
        }
        ForkResult::Parent { child } => {
            drop(writer);
            let mut text = String::new();
            reader.read_to_string(&mut text).expect("to be told");
            let how = nix::sys::wait::waitpid(child, None).expect("an end");
            assert_eq!(how, nix::sys::wait::WaitStatus::Exited(child, 0), "{text}");
        }
    }
}

pub(super) fn mount_flags(path: impl AsRef<Path>, flags: MsFlags) {
    nix::mount::mount(None::<&str>, path.as_ref(), None::<&str>, flags, None::<&str>).expect("to change a mount");
}

/// What mountinfo says of the uppermost mount on a path: its options, and its optional fields.
pub(super) fn mount_info(path: &str) -> (Vec<String>, String) {
    let text = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let line = text.lines().rfind(|line| line.split(' ').nth(4) == Some(path));
    let line = line.unwrap_or_else(|| panic!("nothing is mounted on {path}: {text}"));
    let fields: Vec<_> = line.split(' ').collect();
    let end = fields.iter().position(|field| *field == "-").expect("an end of the optional fields");
    (fields[5].split(',').map(str::to_owned).collect(), fields[6..end].join(" "))
}

pub(super) fn has(path: &str, option: &str) -> bool {
    mount_info(path).0.iter().any(|present| present == option)
}

/// The usual `/proc`.
pub(super) fn proc() -> Value {
    json!({ "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] })
}

pub(super) fn dev(options: &[&str]) -> Value {
    json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": options })
}
