//! Logs: lines for people, or JSON for machines, on standard error.

use std::{
    error::Error,
    fmt,
    io::{IsTerminal, stderr},
};

use tracing_subscriber::{EnvFilter, filter::ParseError};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One line for a person.
    #[default]
    #[value(alias = "text")]
    Human,
    /// One JSON object a line.
    Json,
}

/// Sets up logging for the whole process; a second call changes nothing.
pub fn init(filter: &str, format: LogFormat) -> Result<(), ParseError> {
    let filter = EnvFilter::try_new(filter)?;
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr).with_ansi(stderr().is_terminal());
    // Fails only where a subscriber is set already, as in tests that start several agents.
    _ = match format {
        LogFormat::Human => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    Ok(())
}

/// An error with everything behind it, on one line; what a link repeats of its source is said once.
#[derive(Clone, Copy)]
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.0.to_string();
        f.write_str(&said)?;
        let mut next = self.0.source();
        while let Some(error) = next {
            let text = error.to_string();
            if !said.contains(&text) {
                write!(f, ": {text}")?;
                said = text;
            }
            next = error.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open the door: {source}")]
    struct Door {
        source: Lock,
    }

    #[derive(Debug, thiserror::Error)]
    #[error("the lock is stuck")]
    struct Lock(#[source] std::io::Error);

    #[test]
    fn a_chain_says_everything_once() {
        let error = Door { source: Lock(std::io::Error::other("rust")) };
        assert_eq!(Chain(&error).to_string(), "cannot open the door: the lock is stuck: rust");
    }
}
