//! Signals as people write them, and as a program expects them at its start.

use std::io;

use nix::{
    libc,
    sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask},
};

use crate::sys;

/// `SIGTERM`, `term`, `15`, `RTMIN+3`; `None` for what is none.
pub fn parse(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=libc::SIGRTMAX()).contains(&number).then_some(number);
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let realtime = |offset: &str| if offset.is_empty() { Some(0) } else { offset.parse::<i32>().ok() };
    let number = if let Some(offset) = name.strip_prefix("RTMIN") {
        libc::SIGRTMIN() + realtime(offset)?
    } else if let Some(offset) = name.strip_prefix("RTMAX") {
        libc::SIGRTMAX() + realtime(offset)?
    } else {
        return format!("SIG{name}").parse::<Signal>().ok().map(|signal| signal as i32);
    };
    (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&number).then_some(number)
}

/// An ignored signal and a blocked one would stay so in the program, whoever along the way to us ignored it.
pub fn reset() -> io::Result<()> {
    for signal in 1..=libc::SIGRTMAX() {
        sys::set_default_disposition(signal)?;
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_read_as_docker_reads_them() {
        let term = Some(libc::SIGTERM);
        assert_eq!([parse("SIGTERM"), parse("term"), parse("15")], [term, term, term]);
        assert_eq!(parse("RTMIN+3"), Some(libc::SIGRTMIN() + 3));
        assert_eq!(parse("SIGRTMAX-1"), Some(libc::SIGRTMAX() - 1));
        assert_eq!([parse("0"), parse("99"), parse("SIGFOO"), parse("RTMIN-1"), parse("")], [None; 5]);
    }
}
