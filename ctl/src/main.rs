//! `rctl`: parse, run, print the error, exit with the documented code.

use std::{os::fd::BorrowedFd, process::ExitCode};

use clap::Parser;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{SigHandler, Signal, raise, signal},
};
use rctl::{
    cli::{Cli, Color},
    commands, terminal,
};

fn main() -> ExitCode {
    // SAFETY: the handler makes only calls that are async-signal-safe.
    if let Err(error) = unsafe { signal(Signal::SIGPIPE, SigHandler::Handler(on_broken_pipe)) } {
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

/// A reader that goes away (`rctl ps | head -1`) ends rctl quietly, as it ends every other filter. A controller that goes
/// away does not: that write fails, and the call is made again.
extern "C" fn on_broken_pipe(_signal: std::ffi::c_int) {
    // SAFETY: rctl never closes its standard output and error.
    let streams = [1, 2].map(|number| unsafe { BorrowedFd::borrow_raw(number) });
    let mut streams = streams.map(|stream| PollFd::new(stream, PollFlags::empty()));
    let looked = poll(&mut streams, PollTimeout::ZERO);
    let is_gone = |stream: &PollFd<'_>| stream.revents().is_some_and(|found| found.contains(PollFlags::POLLERR));
    if looked.is_ok() && streams.iter().any(is_gone) {
        terminal::restore();
        // SAFETY: only the default disposition is restored.
        let restored = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
        if restored.is_ok() {
            // Delivered once this handler returns, for it is blocked until then.
            let _ = raise(Signal::SIGPIPE);
        }
    }
}
