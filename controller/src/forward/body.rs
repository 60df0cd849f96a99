//! What comes back from the leader. It ends as a call should, with a status, also when the leader goes away in its
//! middle.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::HeaderMap;
use http_body::Frame;
use tonic::{Status, body::Body};

use crate::status::retry_same_id;

/// The leader's answer until `moved`: what an old leader still says may be cut off from the cluster.
pub(super) fn passed_on(body: Body, moved: impl Future<Output = ()> + Send + 'static) -> Body {
    Body::new(PassedOn { body: Some(body), moved: Box::pin(moved) })
}

struct PassedOn {
    /// Until it has ended.
    body: Option<Body>,
    moved: BoxFuture<'static, ()>,
}

impl http_body::Body for PassedOn {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        let lost = match Pin::new(body).poll_frame(context) {
            Poll::Ready(Some(Err(error))) => format!("the leader went away: {}", error.message()),
            Poll::Ready(frame) => return Poll::Ready(frame),
            Poll::Pending => {
                ready!(this.moved.as_mut().poll(context));
                "the leader changed".to_owned()
            }
        };
        this.body = None;
        let status = retry_same_id(format!("{lost}; try again"));
        let mut trailers = HeaderMap::new();
        status.add_header(&mut trailers)?;
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(http_body::Body::is_end_stream)
    }
}
