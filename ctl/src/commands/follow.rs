//! Streams that are followed over the loss of the controller they come from.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tonic::Status;

use crate::{client, error::Error};

/// How long to look for a controller that takes the stream up; an election is over long before.
const GIVE_UP: Duration = Duration::from_secs(60);
const PAUSE: std::ops::RangeInclusive<Duration> = Duration::from_millis(20)..=Duration::from_secs(1);

/// How long a stream has been broken.
#[derive(Debug, Default)]
pub(super) struct Patience {
    since: Option<Instant>,
    pause: Option<Duration>,
}

impl Patience {
    /// Something came.
    pub(super) fn renew(&mut self) {
        *self = Self::default();
    }

    /// A moment, when the stream broke in a way that another controller may mend; else why it ended.
    pub(super) async fn broke(&mut self, status: Status) -> Result<(), Error> {
        let since = *self.since.get_or_insert_with(Instant::now);
        if !client::goes_on(&status) || since.elapsed() > GIVE_UP {
            return Err(status.into());
        }
        let pause = self.pause.unwrap_or(*PAUSE.start());
        sleep(pause).await;
        self.pause = Some((pause * 2).min(*PAUSE.end()));
        Ok(())
    }
}
