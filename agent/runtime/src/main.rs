//! `roster-runtime`: see [`roster_runtime::cli`].

#[cfg(early_entry)]
mod entry;

use std::process::ExitCode;

fn main() -> ExitCode {
    roster_runtime::cli::main()
}
