//! How many calls one caller may have under way: each can hold memory for as long as its caller likes, be it a request
//! that stops half-way or an answer that is not read.
//!
//! Guarantees: a caller's calls count until the last byte of their answer is sent, over whichever connections they came.
//! Absent: bounds for agents and controllers, which each have one session with known streams in it.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tonic::{Status, body::Body};

/// Of a connection without a certificate: it enrols or asks after our health.
pub(super) const MAX_CALLS_OF_STRANGER: usize = 4;
/// Of one user, whether for themselves or for a program: many more than anybody follows at once.
pub(super) const MAX_CALLS_OF_PERSON: usize = 256;

/// Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Turns {
    held: Arc<Mutex<HashMap<String, usize>>>,
}

/// One call's, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    held: Arc<Mutex<HashMap<String, usize>>>,
    caller: String,
}

impl Turns {
    /// `None` when the caller has `bound` of them.
    pub(super) fn take(&self, caller: String, bound: usize) -> Option<Turn> {
        let mut held = lock(&self.held);
        let count = held.entry(caller.clone()).or_default();
        if *count >= bound {
            return None;
        }
        *count += 1;
        drop(held);
        Some(Turn { held: self.held.clone(), caller })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut held = lock(&self.held);
        if let Some(count) = held.get_mut(&self.caller) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.caller);
            }
        }
    }
}

fn lock(held: &Mutex<HashMap<String, usize>>) -> MutexGuard<'_, HashMap<String, usize>> {
    // No code that holds the lock can panic half-way through a change.
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The answer, which holds the turn until it is sent.
pub(super) fn until_sent(body: Body, turn: Turn) -> Body {
    Body::new(Held { body, _turn: turn })
}

struct Held {
    body: Body,
    _turn: Turn,
}

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
