//! The seam to the network: what carries raft's messages, and what carries a snapshot beside them.

use std::{
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use ::raft::eraftpb::Message;
use bytes::Bytes;

/// Takes the driver's messages to the peers they name in `to`. Raft copes with what is lost, doubled or late.
pub trait Transport: Send + 'static {
    /// Never blocks: what cannot be queued is dropped. Never holds a MsgSnapshot.
    fn send(&mut self, messages: Vec<Message>);

    /// A MsgSnapshot without its data, which `machine` has. Never blocks. Whatever becomes of it is to be reported
    /// ([`super::Store::report_snapshot`]): raft sends that peer nothing else meanwhile.
    ///
    /// After a failure the same snapshot is sent again as long as the log goes on from it, so that a transfer can be
    /// resumed: the same index and the same bytes.
    fn send_snapshot(&mut self, message: Message, machine: Arc<EncodedMachine>);
}

/// For a peer that is alone: there is nobody to send to.
#[derive(Clone, Copy, Debug)]
pub struct Alone;

impl Transport for Alone {
    fn send(&mut self, _: Vec<Message>) {}

    fn send_snapshot(&mut self, _: Message, _: Arc<EncodedMachine>) {}
}

type Encode = Box<dyn FnOnce() -> Vec<u8> + Send>;

/// A machine as of one index, to be sent to any number of peers; encoded when the first of them needs it.
pub struct EncodedMachine {
    encode: Mutex<Option<Encode>>,
    bytes: OnceLock<Bytes>,
}

impl EncodedMachine {
    pub(super) fn new(encode: impl FnOnce() -> Vec<u8> + Send + 'static) -> Self {
        Self { encode: Mutex::new(Some(Box::new(encode))), bytes: OnceLock::new() }
    }

    /// The first call encodes, which takes as long as the machine is large: not for a runtime's thread.
    pub fn bytes(&self) -> Bytes {
        let encode = || {
            let encode = self.encode.lock().unwrap_or_else(PoisonError::into_inner).take();
            Bytes::from(encode.expect("the bytes are asked for once")())
        };
        self.bytes.get_or_init(encode).clone()
    }
}

impl fmt::Debug for EncodedMachine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EncodedMachine").field("bytes", &self.bytes.get().map(Bytes::len)).finish_non_exhaustive()
    }
}
