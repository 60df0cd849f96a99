//! Waiting for what should come true, not for time to pass.

use std::{
    fmt::Debug,
    time::{Duration, Instant},
};

/// Long enough for a busy machine, short enough to fail a test in a reasonable time.
pub const PATIENCE: Duration = Duration::from_secs(60);

const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Looks again and again until `look` is satisfied; panics with what it last saw when patience ends.
#[track_caller]
pub fn until<T, E: Debug>(what: &str, mut look: impl FnMut() -> Result<T, E>) -> T {
    within(PATIENCE, what, &mut look)
}

#[track_caller]
pub fn within<T, E: Debug>(patience: Duration, what: &str, mut look: impl FnMut() -> Result<T, E>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        match look() {
            Ok(found) => return found,
            Err(last) if Instant::now() >= deadline => {
                panic!("waited {patience:?} for {what}; last seen: {last:#?}")
            }
            Err(_) => std::thread::sleep(LOOK_EVERY),
        }
    }
}
