//! `roster-shim`: see [`roster_agent::runtime::linux::shim`].

use std::process::ExitCode;

fn main() -> ExitCode {
    roster_agent::runtime::linux::shim::main()
}
