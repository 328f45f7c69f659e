//! The TCP socket under a connection: readable whenever asked, quiet when told.
//!
//! Owns: reads that ask the kernel instead of the runtime's last news of it; the low-water mark. Does not own: when to
//! be quiet (`reader`). Invariant: a read that is pending will be woken, unless the socket is quiet.
//!
//! A server that streams a backlog sends every row by itself. Each arrival wakes whoever waits on the socket, and an
//! event loop always waits: the wake-ups cost more than the rows, on both sides. With a high low-water mark the kernel
//! tells of nothing until much has come, and the reader looks by itself after a pause.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A TCP connection whose reads do not wait for the runtime to hear of data.
#[derive(Debug)]
pub(super) struct TcpSocket(TcpStream);

impl TcpSocket {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self(stream)
    }

    /// A switch for this socket's wake-ups.
    pub(super) fn quiet(&self) -> Quiet {
        // Without a second handle there is no switch, which costs speed only.
        Quiet { socket: socket2::SockRef::from(&self.0).try_clone().ok(), on: false }
    }

    fn stream(self: Pin<&mut Self>) -> Pin<&mut TcpStream> {
        Pin::new(&mut self.get_mut().0)
    }
}

/// The switch of a socket's wake-ups; without a socket it does nothing.
#[derive(Debug, Default)]
pub(super) struct Quiet {
    socket: Option<socket2::Socket>,
    on: bool,
}

impl Quiet {
    /// From here on fewer than `bytes` wake nobody.
    pub(super) fn begin(&mut self, bytes: usize) {
        if !self.on {
            self.on = self.set(i32::try_from(bytes).unwrap_or(i32::MAX));
        }
    }

    /// Every byte wakes again; whether that is news: then something may have come unheard, and a read is due.
    pub(super) fn end(&mut self) -> bool {
        std::mem::take(&mut self.on) && self.set(1)
    }

    fn set(&self, mark: libc::c_int) -> bool {
        let Some(socket) = &self.socket else { return false };
        let (value, size) = ((&raw const mark).cast(), size_of::<libc::c_int>() as libc::socklen_t);
        // SAFETY: the descriptor is open and `value` points to `size` bytes.
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVLOWAT, value, size) == 0 }
    }
}

impl AsyncRead for TcpSocket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // SAFETY: `recv` only writes initialised bytes to it.
        let room: &mut [MaybeUninit<u8>] = unsafe { buf.unfilled_mut() };
        match socket2::SockRef::from(&self.0).recv(room) {
            Ok(read) => {
                // SAFETY: `recv` has written that many.
                unsafe { buf.assume_init(read) };
                buf.advance(read);
                Poll::Ready(Ok(()))
            }
            // The runtime looks once more, and remembers whom to wake.
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => self.stream().poll_read(cx, buf),
            Err(e) => Poll::Ready(Err(e)),
        }
    }
}

impl AsyncWrite for TcpSocket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.stream().poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    const SOON: Duration = Duration::from_secs(5);

    async fn pair() -> (TcpSocket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (TcpSocket::new(ours), listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn a_quiet_socket_is_read_all_the_same_and_wakes_again_afterwards() {
        let (mut ours, mut server) = pair().await;
        let mut quiet = ours.quiet();
        quiet.begin(1 << 20);
        let mut bytes = [0; 16];
        server.write_all(b"unheard").await.unwrap();
        let mut held = Vec::new();
        while held.len() < 7 {
            // A read by itself finds it, heard of or not.
            let mut room = ReadBuf::new(&mut bytes);
            let polled = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut ours).poll_read(cx, &mut room))).await;
            assert!(!matches!(polled, Poll::Ready(Err(_))));
            held.extend_from_slice(room.filled());
            tokio::task::yield_now().await;
        }
        assert_eq!(held, b"unheard");
        assert!(quiet.end() && !quiet.end(), "the second time is no news");
        let reading = tokio::spawn(async move { (ours.read(&mut bytes).await.unwrap(), bytes[0]) });
        tokio::task::yield_now().await;
        server.write_all(b"x").await.unwrap();
        assert_eq!(timeout(SOON, reading).await.expect("one byte wakes").unwrap(), (1, b'x'));
    }

    #[tokio::test]
    async fn an_end_is_read_as_an_end() {
        let (mut ours, server) = pair().await;
        let mut quiet = ours.quiet();
        quiet.begin(1 << 20);
        drop(server);
        let mut bytes = [0; 16];
        assert_eq!(timeout(SOON, ours.read(&mut bytes)).await.expect("the end wakes a quiet socket too").unwrap(), 0);
    }
}
