//! A connection that knows whose it is, and ends when it must.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
    time::Sleep,
};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::transport::server::Connected;

use super::{Caller, connections::Place};

/// One that is let in.
pub(crate) struct Door {
    inner: Inner,
    caller: Caller,
    limits: Option<Limits>,
}

enum Inner {
    Unix(UnixStream),
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Of a connection from afar.
struct Limits {
    _place: Place,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
    /// When the certificate runs out, or a stranger's time.
    until: Pin<Box<Sleep>>,
}

impl Door {
    pub(super) fn unix(stream: UnixStream, caller: Caller) -> Self {
        Self { inner: Inner::Unix(stream), caller, limits: None }
    }

    pub(super) fn plain(stream: TcpStream, caller: Caller) -> Self {
        Self { inner: Inner::Plain(stream), caller, limits: None }
    }

    pub(super) fn tls(stream: TlsStream<TcpStream>, caller: Caller, place: Place, until: Sleep) -> Self {
        let ended = Box::pin(place.ended.clone().cancelled_owned());
        let limits = Limits { _place: place, ended, until: Box::pin(until) };
        Self { inner: Inner::Tls(Box::new(stream)), caller, limits: Some(limits) }
    }

    fn stream(&mut self) -> Pin<&mut dyn Stream> {
        let stream: &mut dyn Stream = match &mut self.inner {
            Inner::Unix(stream) => stream,
            Inner::Plain(stream) => stream,
            Inner::Tls(stream) => stream.as_mut(),
        };
        Pin::new(stream)
    }

    /// A server always reads: reading is where the end is noticed.
    fn poll_over(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let Some(limits) = &mut self.limits else { return Poll::Pending };
        if limits.ended.as_mut().poll(context).is_ready() {
            let error = "the connection made way for another, or its holder was removed";
            return Poll::Ready(io::Error::new(io::ErrorKind::ConnectionAborted, error));
        }
        if limits.until.as_mut().poll(context).is_ready() {
            let error = "the certificate ran out, or a stranger stayed too long";
            return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, error));
        }
        Poll::Pending
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Connected for Door {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Door {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Poll::Ready(over) = self.poll_over(context) {
            return Poll::Ready(Err(over));
        }
        self.stream().poll_read(context, buf)
    }
}

impl AsyncWrite for Door {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.stream().poll_write(context, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(context)
    }
}
