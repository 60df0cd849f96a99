//! How the programs are linked, for what loading libraries costs: half of what starting them does.
//!
//! The unwinder is linked into whatever uses this library (the shim starts with each container); it comes as a library
//! of its own otherwise. `roster-runtime`, which executes itself anew for each container, gets all of the C library.
//! It looks up no host or user by the C library, which is what one that is linked in could not do.

use std::{
    env, fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

const UNWINDER: &str = "libgcc_eh.a";
/// The shared libraries that Rust asks the linker for, and those that are linked in when it finds them by these names.
const LIBRARIES: [(&str, &str); 7] = [
    ("libgcc_s.so", UNWINDER),
    ("libc.so", "libc.a"),
    ("libm.so", "libm.a"),
    ("libdl.so", "libdl.a"),
    ("librt.so", "librt.a"),
    ("libpthread.so", "libpthread.a"),
    ("libutil.so", "libutil.a"),
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(early_entry)");
    // Where the compiler is another one, or its libraries cannot be linked in, they are loaded as ever.
    let Some(unwinder) = find(UNWINDER) else { return };
    let folder = lead_to("unwinder", &[(UNWINDER, unwinder)]).expect("links in cargo's own folder");
    println!("cargo::rustc-link-search=native={}", folder.display());
    println!("cargo::rustc-link-lib=static:+whole-archive,-bundle=gcc_eh");
    let found = LIBRARIES.map(|(name, library)| Some((name, find(library)?)));
    if let Some(found) = found.into_iter().collect::<Option<Vec<_>>>() {
        let folder = lead_to("static", &found).expect("links in cargo's own folder");
        println!("cargo::rustc-link-arg-bin=roster-runtime=-L{}", folder.display());
        println!("cargo::rustc-link-arg-bin=roster-runtime=-static-pie");
        // For the C library's own arithmetic.
        println!("cargo::rustc-link-arg-bin=roster-runtime=-lgcc");
        // The relocations are all read at each start: these take a twentieth of the room.
        if glibc().is_some_and(|version| version >= (2, 36)) {
            println!("cargo::rustc-link-arg-bin=roster-runtime=-Wl,-z,pack-relative-relocs");
        }
        // See src/entry.rs: a loader would begin before it.
        if env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|architecture| architecture == "x86_64") {
            println!("cargo::rustc-cfg=early_entry");
            println!("cargo::rustc-link-arg-bin=roster-runtime=-Wl,--entry=roster_entry");
        }
    }
}

/// A folder for the linker to search, in which names lead to libraries.
fn lead_to(folder: &str, libraries: &[(&str, PathBuf)]) -> io::Result<PathBuf> {
    let folder = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join(folder);
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    for (name, path) in libraries {
        symlink(path, folder.join(name))?;
    }
    Ok(folder)
}

/// Where the C compiler has a library.
fn find(library: &str) -> Option<PathBuf> {
    let text = said(Command::new("cc").arg(format!("-print-file-name={library}")))?;
    Path::new(&text).is_absolute().then(|| text.into())
}

/// `glibc 2.36`
fn glibc() -> Option<(u32, u32)> {
    let text = said(Command::new("getconf").arg("GNU_LIBC_VERSION"))?;
    let (major, minor) = text.strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn said(command: &mut Command) -> Option<String> {
    let output = command.stderr(Stdio::null()).output().ok()?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
