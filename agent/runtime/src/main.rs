//! `roster-runtime`: see [`roster_runtime::cli`].

#![no_main]

#[cfg(early_entry)]
mod entry;

#[cfg(not(target_env = "gnu"))]
compile_error!("without std's own main, only with glibc std knows the program's arguments");

use std::{
    ffi::{c_char, c_int},
    io::{self, Write},
};

use nix::libc;

/// In place of what std does before a `main` of its own: for a message about an overflown stack, which is a fault all the
/// same, that reads and parses `/proc/self/maps`, a thirtieth of making a container. The rest of it is done here.
#[unsafe(no_mangle)]
pub extern "C" fn main(_count: c_int, _arguments: *const *const c_char) -> c_int {
    if !open_standard_streams() {
        // Standard error may be the closed one.
        let _ = writeln!(io::stderr(), "roster-runtime: cannot open /dev/null in place of a closed standard stream");
        return c_int::from(roster_runtime::cli::FAILED);
    }
    // A container is removed as well when whoever read its output is gone.
    // SAFETY: no handler is installed.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let code = roster_runtime::cli::main();
    // Nobody can be told that it failed.
    let _ = io::stdout().flush();
    c_int::from(code)
}

/// A file that is opened later must not get one of their numbers and be taken for it, by this program or the container's.
fn open_standard_streams() -> bool {
    [libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO].into_iter().all(|stream| {
        // SAFETY: asks about a number, and opens a file that has no owner yet: the lowest free number is the stream's.
        unsafe { libc::fcntl(stream, libc::F_GETFD) >= 0 || libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) == stream }
    })
}
