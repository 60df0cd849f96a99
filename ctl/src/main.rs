//! `rctl`: parse, run, print the error, exit with the documented code.

use std::process::ExitCode;

use clap::Parser;
use nix::sys::signal::{SigHandler, Signal, signal};
use rctl::{
    cli::{Cli, Color},
    commands,
};

fn main() -> ExitCode {
    // A reader that goes away (`rctl ps | head -1`) ends rctl quietly, as it ends every other filter.
    // SAFETY: no thread runs yet and no handler is installed, only the default disposition restored.
    if let Err(error) = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) } {
        eprintln!("rctl: cannot start: {error}");
        return ExitCode::FAILURE;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // clap would exit with 2, which `plan` promises to mean "there are changes".
            let code = u8::from(error.use_stderr());
            // Nothing is left to do when the terminal is gone.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match cli.color {
        Color::Auto => {}
        Color::Always => anstream::ColorChoice::Always.write_global(),
        Color::Never => anstream::ColorChoice::Never.write_global(),
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("rctl: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(commands::run(cli));
    // A read of standard input may still block a thread; it must not hold up the exit.
    runtime.shutdown_background();
    match result {
        Ok(ending) => ExitCode::from(ending.exit_code()),
        Err(error) => {
            anstream::eprintln!("{}", rctl::render::error(&error));
            ExitCode::from(error.exit_code())
        }
    }
}
