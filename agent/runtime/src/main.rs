//! `roster-runtime`: see [`roster_runtime::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    roster_runtime::cli::main()
}
