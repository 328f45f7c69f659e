//! The byte stream to the server: TCP or Unix socket, with or without TLS.
//!
//! Owns: name resolution, the socket's options, the SSLRequest. Does not own: log-in (`auth`), certificates (`tls`).
//! Invariants: with `require` and above nothing but the SSLRequest leaves unencrypted; every wait is bounded.

use super::error::from_io;
use super::options::{ConnectOptions, Host, SslMode};
use super::socket::{Quiet, TcpSocket};
use super::{certificate, error, tls};
use crate::error::{Error, Kind, Result};
use crate::wait;
use bytes::BytesMut;
use postgres_protocol::message::frontend;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use std::{fmt, io};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::{TlsConnector, rustls};

/// Idle time until the kernel probes the peer, between probes, and probes until the connection is dead: a
/// vanished server (no RST) is noticed within two minutes, far below the kernel's two hours.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;

/// A connection whose TLS is settled.
pub(super) struct Transport {
    io: Io,
    /// The channel binding for SCRAM, where TLS is on and the certificate has one.
    pub(super) end_point: Option<Vec<u8>>,
    /// The other end is proven to be the server that is meant: by its certificate, or by the file system.
    verified: bool,
}

enum Io {
    Tcp(TcpSocket),
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpSocket>>),
}

/// Whether TLS is asked for in this attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tls {
    /// As the sslmode says.
    AsAsked,
    /// Not at all: the second attempt of `prefer`.
    Without,
}

/// The handshake failed; a marker in the chain of causes, so that `prefer` may go on without TLS.
#[derive(Debug)]
struct HandshakeFailed(io::Error);

impl fmt::Display for HandshakeFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl std::error::Error for HandshakeFailed {}

/// Runs one connection attempt, and under `prefer` a second one without TLS where libpq would make it: if the
/// handshake failed, or the server has no pg_hba.conf line for an encrypted connection. All is bounded by the
/// options' connect timeout.
pub(super) async fn attempt<T, F, Fut>(options: &ConnectOptions, connect: F) -> Result<T>
where
    F: Fn(Tls) -> Fut,
    Fut: Future<Output = Result<T>>,
{
    let bound = wait::limit().map_or(options.connect_timeout, |limit| limit.min(options.connect_timeout));
    let both = async {
        let first = match connect(Tls::AsAsked).await {
            Err(error) if may_go_without(options, &error) => error,
            other => return other,
        };
        // A refusal of ours tells more than the first attempt's trouble.
        connect(Tls::Without).await.map_err(|second| if error::sqlstate(&second).is_none() && !second.is_retry() { second } else { first })
    };
    let late = |_| Error::retry(format!("no connection within {} s (connect_timeout)", bound.as_secs()));
    let both = wait::told(format!("a connection to {}", options.describe()), both);
    let result = timeout(bound, both).await.map_err(late).and_then(|result| result);
    result.map_err(|error| error.context(format!("connecting to {}", options.describe())))
}

fn may_go_without(options: &ConnectOptions, error: &Error) -> bool {
    let handshake = std::error::Error::source(error).is_some_and(|cause| cause.is::<HandshakeFailed>());
    options.sslmode() == SslMode::Prefer && (handshake || error::sqlstate(error) == Some("28000"))
}

impl Transport {
    /// Connects and settles TLS.
    pub(super) async fn connect(options: &ConnectOptions, tls: Tls) -> Result<Self> {
        match &options.host {
            Host::Unix(directory) => {
                let path = directory.join(format!(".s.PGSQL.{}", options.port()));
                let connected = UnixStream::connect(&path).await;
                let io = connected.map_err(|e| from_io(e, format!("cannot reach the socket {}", path.display())))?;
                Ok(Self { io: Io::Unix(io), end_point: None, verified: true })
            }
            Host::Tcp(name) => {
                let socket = connect_tcp(options, name).await?;
                if tls == Tls::Without || options.sslmode() == SslMode::Disable {
                    return Ok(Self { io: Io::Tcp(socket), end_point: None, verified: false });
                }
                negotiate(options, name, socket).await
            }
        }
    }

    /// A connection that is there already.
    #[cfg(test)]
    pub(super) fn from_unix(stream: UnixStream) -> Self {
        Self { io: Io::Unix(stream), end_point: None, verified: true }
    }

    /// A switch for the socket's wake-ups. A Unix socket has none: its low-water mark holds nothing back.
    pub(super) fn quiet(&self) -> Quiet {
        match &self.io {
            Io::Tcp(socket) => socket.quiet(),
            Io::Tls(stream) => stream.get_ref().0.quiet(),
            Io::Unix(_) => Quiet::default(),
        }
    }

    /// Whether the other end is proven to be the server that is meant.
    pub(super) fn is_verified(&self) -> bool {
        self.verified
    }

    /// Whether the connection is encrypted.
    pub(super) fn is_encrypted(&self) -> bool {
        matches!(self.io, Io::Tls(_))
    }
}

async fn connect_tcp(options: &ConnectOptions, name: &str) -> Result<TcpSocket> {
    let started = Instant::now();
    let addresses: Vec<SocketAddr> = match options.hostaddr {
        Some(address) => vec![SocketAddr::new(address, options.port())],
        None => match tokio::net::lookup_host((name, options.port())).await {
            Ok(found) => found.collect(),
            Err(e) => return Err(Error::retry(format!("cannot resolve the host name {name:?}")).with_source(e)),
        },
    };
    let mut failures = Vec::new();
    let mut last = None;
    for (tried, address) in addresses.iter().enumerate() {
        // A share of what is left, so that one black hole does not take the other addresses' time.
        let left = options.connect_timeout.saturating_sub(started.elapsed());
        let others = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        let connected = timeout_at(Instant::now() + left / others, TcpStream::connect(address)).await;
        match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(socket) => {
                tune(&socket).map_err(|e| from_io(e, format!("cannot set the options of the socket to {address}")))?;
                return Ok(TcpSocket::new(socket));
            }
            Err(e) => {
                failures.push(format!("{address}: {e}"));
                last = Some(e);
            }
        }
    }
    let error = Error::new(Kind::Retry, format!("cannot reach the server ({})", failures.join("; ")));
    Err(match last {
        Some(cause) => error.with_source(cause),
        None => error,
    })
}

/// No SO_RCVBUF: it would switch the kernel's autotuning off, and is capped by net.core.rmem_max, on most
/// machines far below what autotuning reaches.
fn tune(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_EVERY).with_retries(KEEPALIVE_PROBES);
    socket2::SockRef::from(socket).set_tcp_keepalive(&keepalive)
}

async fn negotiate(options: &ConnectOptions, name: &str, mut socket: TcpSocket) -> Result<Transport> {
    let io_error = |e| from_io(e, "asking the server for TLS");
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    socket.write_all(&request).await.map_err(io_error)?;
    // One byte, no more: bytes that came with it would be unencrypted and must not count as the server's.
    match socket.read_u8().await.map_err(io_error)? {
        b'S' => {}
        b'N' if options.sslmode() == SslMode::Prefer => return Ok(Transport { io: Io::Tcp(socket), end_point: None, verified: false }),
        b'N' => return Err(Error::source_refused("the server has no TLS (ssl = off), which the sslmode demands")),
        b'E' => return Err(Error::retry("the server answered the TLS request with an error: it may be out of connections")),
        _ => return Err(error::protocol("no answer to the TLS request; is this PostgreSQL's port?")),
    }
    let server_name = ServerName::try_from(name.to_owned());
    let server_name = server_name.map_err(|_| Error::config(format!("{name:?} is no host name that TLS can use")))?;
    let connector = TlsConnector::from(Arc::new(tls::client_config(options)?));
    let stream = connector.connect(server_name, socket).await.map_err(handshake_error)?;
    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let end_point = shown.and_then(|shown| certificate::end_point(shown));
    let verified = matches!(options.sslmode(), SslMode::VerifyCa | SslMode::VerifyFull);
    Ok(Transport { io: Io::Tls(Box::new(stream)), end_point, verified })
}

/// A refused certificate is refused again; a broken connection may pass.
fn handshake_error(error: io::Error) -> Error {
    let tls_error = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let error_of = |kind, why| Error::new(kind, format!("TLS to the server: {why}"));
    match tls_error.map(tls::mend_of) {
        Some(mend) => error_of(Kind::Source, mend),
        None => error_of(Kind::Retry, "the connection broke in the handshake"),
    }
    .with_source(HandshakeFailed(error))
}

macro_rules! on_io {
    ($self:ident, $io:ident => $call:expr) => {
        match &mut $self.get_mut().io {
            Io::Tcp($io) => $call,
            Io::Unix($io) => $call,
            Io::Tls($io) => $call,
        }
    };
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        on_io!(self, io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        on_io!(self, io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_io!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_io!(self, io => Pin::new(io).poll_shutdown(cx))
    }
}
