//! What the controllers of this process have warned of.

use std::{
    io,
    sync::{Mutex, Once, PoisonError},
};

use tracing::Level;

use super::look_again;
use crate::harness::within;

static HEARD: Mutex<String> = Mutex::new(String::new());

struct Ear;

impl io::Write for Ear {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        HEARD.lock().unwrap_or_else(PoisonError::into_inner).push_str(&String::from_utf8_lossy(text));
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// From now on. Lines of all tests come together: names tell them apart.
pub(super) fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let log = tracing_subscriber::fmt().with_max_level(Level::WARN).with_ansi(false).with_writer(|| Ear).finish();
        tracing::subscriber::set_global_default(log).expect("nobody else listens");
    });
}

/// Waits for one line with all of the words.
pub(crate) async fn logged(words: &[&str]) {
    let heard = || {
        let heard = HEARD.lock().unwrap_or_else(PoisonError::into_inner);
        heard.lines().any(|line| words.iter().all(|word| line.contains(word)))
    };
    let logged = async {
        while !heard() {
            look_again().await;
        }
    };
    within(&format!("a line of the log with {words:?}"), logged).await;
}
