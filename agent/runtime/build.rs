//! Links the unwinder into the programs. It comes as a library of its own otherwise, and to load that one more takes a
//! tenth of what starting them does; the shim starts with each container.

use std::{
    path::Path,
    process::{Command, Stdio},
};

const LIBRARY: &str = "libgcc_eh.a";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Where the compiler is another one, its unwinder is loaded as ever.
    let output = Command::new("cc").arg(format!("-print-file-name={LIBRARY}")).stderr(Stdio::null()).output();
    let Ok(output) = output else { return };
    let path = String::from_utf8_lossy(&output.stdout);
    let Some(dir) = Path::new(path.trim()).parent().filter(|dir| dir.is_absolute()) else { return };
    println!("cargo::rustc-link-search=native={}", dir.display());
    println!("cargo::rustc-link-lib=static:+whole-archive,-bundle=gcc_eh");
}
