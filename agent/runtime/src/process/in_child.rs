//! For tests: does something to a process that cannot be undone, in a child, and hands back what it saw.

use std::{
    fs::File,
    io::{Read, Write},
    panic::{AssertUnwindSafe, catch_unwind},
};

use nix::{
    libc,
    sys::wait::{WaitStatus, waitpid},
    unistd::{ForkResult, fork, pipe},
};

/// What `work` answers in a child of its own, where it is the only thread.
pub(crate) fn in_child(work: impl FnOnce() -> String) -> String {
    let (reader, writer) = pipe().expect("a pipe");
    // SAFETY: libc's fork leaves its allocator usable in the child; the child touches no lock of another thread.
    match unsafe { fork() }.expect("a child") {
        ForkResult::Child => {
            drop(reader);
            let answer = catch_unwind(AssertUnwindSafe(work));
            let written = answer.is_ok_and(|answer| File::from(writer).write_all(answer.as_bytes()).is_ok());
            // SAFETY: ends the process; nothing of the tests' own is to be run or flushed in the copy.
            unsafe { libc::_exit(i32::from(!written)) }
        }
        ForkResult::Parent { child } => {
            drop(writer);
            let mut answer = String::new();
            File::from(reader).read_to_string(&mut answer).expect("the child's answer");
            assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)), "{answer}");
            answer
        }
    }
}

/// The value of a field of `/proc/self/status`.
pub(crate) fn status(field: &str) -> String {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc/self/status");
    let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    value.expect("the field").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The error's text; an empty one for none.
pub(crate) fn failure<T>(result: Result<T, impl std::fmt::Display>) -> String {
    result.err().map(|error| error.to_string()).unwrap_or_default()
}
