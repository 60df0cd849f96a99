//! Calls that are made again: whether they may be, and a request's body that can be sent a second time.

use std::{
    collections::VecDeque,
    error::Error,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use tonic::{Code, Status, body::Body};

use crate::call;

/// How much of a body is kept for sending it again: the largest message there is, and its framing.
pub const KEPT: usize = (4 << 20) + (64 << 10);

/// How a call that failed may be made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// It was answered: another try would be answered alike.
    Never,
    /// Nothing was done, and this controller would never do it.
    Elsewhere,
    /// Nothing was done.
    Safely,
    /// It may have been done.
    Perhaps,
}

impl Again {
    /// From what an answer begins with; with an error, that is all of it.
    pub fn of_answer(headers: &HeaderMap) -> Self {
        match Status::from_header_map(headers) {
            Some(status) => Self::of_status(&status),
            None => Self::Never,
        }
    }

    pub fn of_status(status: &Status) -> Self {
        match status.metadata().get(call::RETRY).map(|value| value.as_bytes()) {
            Some(value) if status.code() == Code::Unavailable && value == call::RETRY_SAFE.as_bytes() => Self::Safely,
            Some(value) if status.code() == Code::Unavailable && value == call::RETRY_SAME_ID.as_bytes() => {
                Self::Perhaps
            }
            Some(value) if status.code() == Code::FailedPrecondition && value == call::RETRY_ELSEWHERE.as_bytes() => {
                Self::Elsewhere
            }
            _ => Self::Never,
        }
    }

    /// Of a connection that failed: it was never made, or it broke.
    pub fn of_transport(error: &(dyn Error + 'static)) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            if error.is::<tonic::ConnectError>() {
                return Self::Safely;
            }
            next = error.source();
        }
        Self::Perhaps
    }

    /// Whether a call of this kind may be made again after this, at the same place.
    pub fn allows(self, kind: call::Kind) -> bool {
        match self {
            Self::Never | Self::Elsewhere => false,
            Self::Safely => true,
            Self::Perhaps => kind.repeats(),
        }
    }
}

/// A body that is kept while it is sent, up to [`KEPT`] bytes, until nobody will need it again.
#[derive(Clone, Debug)]
pub struct Replay(Arc<Mutex<Tape>>);

#[derive(Debug)]
struct Tape {
    source: Body,
    kept: VecDeque<Bytes>,
    bytes: usize,
    /// Of `kept`, what the present reader has had.
    at: usize,
    /// While this holds, `kept` begins where the body does.
    recording: bool,
    /// The present reader; those before it read nothing more.
    reader: u64,
}

impl Replay {
    pub fn new(source: Body) -> Self {
        let tape = Tape { source, kept: VecDeque::new(), bytes: 0, at: 0, recording: true, reader: 0 };
        Self(Arc::new(Mutex::new(tape)))
    }

    /// The body from its beginning, unless that is no longer kept. The one given out before breaks off.
    pub fn body(&self) -> Option<Body> {
        let mut tape = self.tape();
        if !tape.recording {
            return None;
        }
        tape.reader += 1;
        tape.at = 0;
        let reader = Reader { tape: self.0.clone(), number: tape.reader };
        drop(tape);
        Some(Body::new(reader))
    }

    /// The body will not be needed again.
    pub fn forget(&self) {
        self.tape().stop_recording();
    }

    fn tape(&self) -> MutexGuard<'_, Tape> {
        // Nothing between two states of a tape can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tape {
    fn stop_recording(&mut self) {
        if self.recording {
            self.recording = false;
            self.kept.drain(..self.at);
        }
    }

    fn next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.recording {
            if let Some(data) = self.kept.get(self.at) {
                self.at += 1;
                return Poll::Ready(Some(Ok(Frame::data(data.clone()))));
            }
        } else if let Some(data) = self.kept.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let frame = ready!(http_body::Body::poll_frame(Pin::new(&mut self.source), context));
        if let Some(Ok(frame)) = &frame {
            self.record(frame);
        }
        Poll::Ready(frame)
    }

    fn record(&mut self, frame: &Frame<Bytes>) {
        let Some(data) = frame.data_ref().filter(|_| self.recording) else { return };
        self.bytes += data.len();
        if self.bytes > KEPT {
            self.stop_recording();
        } else {
            self.kept.push_back(data.clone());
            self.at += 1;
        }
    }

    fn ended(&self) -> bool {
        let rest = if self.recording { self.kept.len() - self.at } else { self.kept.len() };
        rest == 0 && http_body::Body::is_end_stream(&self.source)
    }
}

struct Reader {
    tape: Arc<Mutex<Tape>>,
    number: u64,
}

impl http_body::Body for Reader {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut tape = self.tape.lock().unwrap_or_else(PoisonError::into_inner);
        if tape.reader != self.number {
            return Poll::Ready(Some(Err(Status::cancelled("the call was made again elsewhere"))));
        }
        tape.next(context)
    }

    fn is_end_stream(&self) -> bool {
        self.tape.lock().unwrap_or_else(PoisonError::into_inner).ended()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    struct Pieces(VecDeque<Bytes>);

    impl http_body::Body for Pieces {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Ready(self.0.pop_front().map(|data| Ok(Frame::data(data))))
        }
    }

    fn pieces(count: usize, size: usize) -> Body {
        let piece = |number: usize| Bytes::from(vec![u8::try_from(number % 251).unwrap(); size]);
        Body::new(Pieces((0..count).map(piece).collect()))
    }

    /// The future is ready at once: nothing here waits.
    fn next(body: &mut Body) -> Option<Result<Bytes, Status>> {
        let mut context = Context::from_waker(std::task::Waker::noop());
        let next = poll_fn(|context| http_body::Body::poll_frame(Pin::new(&mut *body), context));
        match std::pin::pin!(next).poll(&mut context) {
            Poll::Ready(frame) => frame.map(|frame| frame.map(|frame| frame.into_data().expect("data"))),
            Poll::Pending => panic!("a body of pieces never waits"),
        }
    }

    fn first_bytes(body: &mut Body) -> Vec<u8> {
        std::iter::from_fn(|| next(body)).map(|data| data.expect("data")[0]).collect()
    }

    #[test]
    fn a_body_can_be_read_again_from_its_beginning() {
        let replay = Replay::new(pieces(4, 10));
        let mut first = replay.body().expect("nothing is lost yet");
        assert_eq!(next(&mut first).unwrap().unwrap()[0], 0);
        assert_eq!(next(&mut first).unwrap().unwrap()[0], 1);
        let mut second = replay.body().expect("it is kept");
        assert_eq!(next(&mut first).unwrap().unwrap_err().code(), Code::Cancelled, "only one reads");
        assert_eq!(next(&mut second).unwrap().unwrap()[0], 0);
        // Settled in the middle of what was kept: the rest still comes.
        replay.forget();
        assert!(replay.body().is_none());
        assert_eq!(first_bytes(&mut second), [1, 2, 3]);
    }

    #[test]
    fn too_much_is_passed_on_and_not_kept() {
        let size = 1 << 20;
        let replay = Replay::new(pieces(9, size));
        let mut body = replay.body().expect("nothing is lost yet");
        assert_eq!(first_bytes(&mut body), (0..9).collect::<Vec<u8>>());
        assert!(replay.body().is_none(), "more than {KEPT} bytes are not kept");
        assert!(replay.tape().kept.is_empty());

        let replay = Replay::new(pieces(4, size));
        assert_eq!(first_bytes(&mut replay.body().unwrap()).len(), 4);
        assert_eq!(first_bytes(&mut replay.body().expect("a message of the largest size is kept")).len(), 4);
    }

    #[test]
    fn what_a_refusal_says_about_another_try() {
        let refusal = |code, retry: Option<&'static str>| {
            let mut status = Status::new(code, "no");
            if let Some(retry) = retry {
                status.metadata_mut().insert(call::RETRY, tonic::metadata::MetadataValue::from_static(retry));
            }
            Again::of_answer(status.into_http::<()>().headers())
        };
        assert_eq!(refusal(Code::Unavailable, Some(call::RETRY_SAFE)), Again::Safely);
        assert_eq!(refusal(Code::Unavailable, Some(call::RETRY_SAME_ID)), Again::Perhaps);
        assert_eq!(refusal(Code::Unavailable, Some("other")), Again::Never);
        assert_eq!(refusal(Code::Unavailable, None), Again::Never);
        assert_eq!(refusal(Code::FailedPrecondition, Some(call::RETRY_ELSEWHERE)), Again::Elsewhere);
        assert_eq!(refusal(Code::Unavailable, Some(call::RETRY_ELSEWHERE)), Again::Never);
        assert_eq!(refusal(Code::NotFound, Some(call::RETRY_SAFE)), Again::Never);
        assert_eq!(Again::of_answer(&HeaderMap::new()), Again::Never);
        assert!(!Again::Perhaps.allows(call::Kind::Secret) && Again::Safely.allows(call::Kind::Secret));
    }
}
