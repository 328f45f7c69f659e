//! Sessions for SQL and COPY: tokio-postgres over our transport, with the settings that make text exact.
//!
//! Owns: the session settings ("pins") of every connection. Does not own: any query.
//! Invariants: no session runs without its pins; what a role or database sets by default never changes how a
//! value is printed.

use super::auth::{Takes, log_in};
use super::error::{from_sql, screened};
use super::limits::Watch;
use super::options::ConnectOptions;
use super::transport::{Tls, Transport, attempt};
use crate::error::Result;
use bytes::{Buf, BytesMut};
use std::future::{Ready, poll_fn, ready};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop;
use tokio_postgres::AsyncMessage;
use tokio_postgres::config::SslNegotiation;
use tokio_postgres::tls::{ChannelBinding as Binding, TlsConnect, TlsStream};

/// Opens a SQL session. A task drives it; it ends when the client is dropped or the connection breaks.
///
/// The session prints values in the one form that the contract names (section 5, Types), never times out while
/// idle, and errors instead of filtering rows by a policy. `statement_timeout` and `lock_timeout` are the caller's.
pub async fn connect_sql(options: &ConnectOptions) -> Result<tokio_postgres::Client> {
    attempt(options, |tls| open(options, tls, false)).await
}

/// As [`connect_sql`], for queries whose rows are read one by one: how many they are, or how large, is not bounded.
pub async fn connect_streaming(options: &ConnectOptions) -> Result<tokio_postgres::Client> {
    attempt(options, |tls| open(options, tls, true)).await
}

async fn open(options: &ConnectOptions, tls: Tls, rows_pass: bool) -> Result<tokio_postgres::Client> {
    let mut session = log_in(Transport::connect(options, tls).await?, options, Takes::Sql).await?;
    let pins = session.pins()?;
    session.rows(&pins, "setting up the session").await?;
    let (transport, rest) = session.wire.into_parts();
    let mut config = tokio_postgres::Config::new();
    config.user(options.user());
    // The connection is logged in: "direct" keeps tokio-postgres from asking for TLS, and hands it our stream as it is.
    config.ssl_mode(tokio_postgres::config::SslMode::Require).ssl_negotiation(SslNegotiation::Direct);
    let connected = config.connect_raw(SettledStream::new(transport, &rest, rows_pass), Settled).await;
    let (client, mut connection) = connected.map_err(|e| from_sql(e, "beginning a SQL session"))?;
    tokio::spawn(async move {
        loop {
            match poll_fn(|cx| connection.poll_message(cx)).await {
                Some(Ok(AsyncMessage::Notice(notice))) => {
                    tracing::debug!(severity = notice.severity(), sqlstate = notice.code().code(), "notice of the server");
                }
                Some(Ok(_)) => {}
                // The client's calls report the break themselves.
                Some(Err(error)) => {
                    tracing::debug!(error = %screened(error), "a SQL session broke");
                    return;
                }
                None => return,
            }
        }
    });
    Ok(client)
}

/// The session's settings, as one simple query.
///
/// Queries of the catalog are short, and compiling them takes fifty times as long as running them: hence no JIT.
///
/// A database in SQL_ASCII holds any bytes. Asked for UTF-8 the server would convert nothing, but end a copy, and the stream for
/// good, at the first text that is none; asked for SQL_ASCII it sends what it has, and such a text becomes an exception.
pub(super) fn pins(version: u32, server_encoding: Option<&str>) -> String {
    let encoding = if server_encoding == Some("SQL_ASCII") { "SQL_ASCII" } else { "UTF8" };
    let mut sql = format!(
        "SET client_encoding = '{encoding}'; SET search_path = ''; SET DateStyle = 'ISO'; SET IntervalStyle = 'postgres'; \
         SET TimeZone = 'UTC'; SET extra_float_digits = 3; SET bytea_output = 'hex'; SET lc_monetary = 'C'; \
         SET row_security = off; SET idle_in_transaction_session_timeout = 0; SET jit = off;",
    );
    if version >= 140_000 {
        sql.push_str(" SET idle_session_timeout = 0;");
    }
    if version >= 170_000 {
        sql.push_str(" SET transaction_timeout = 0;");
    }
    sql
}

/// `15.18 (Debian …)` → 150018, `17beta1` → 170000: the number that `server_version_num` would show.
pub(super) fn version_number(text: &str) -> Option<u32> {
    let numbers = text.split(|c: char| c != '.' && !c.is_ascii_digit()).next()?;
    let mut parts = numbers.split('.').map(str::parse::<u32>);
    let major = parts.next()?.ok()?;
    let minor = parts.next().and_then(|minor| minor.ok()).unwrap_or(0);
    major.checked_mul(10_000)?.checked_add(minor)
}

/// The connector of a stream that needs no connecting.
struct Settled;

impl TlsConnect<SettledStream> for Settled {
    type Stream = SettledStream;
    type Error = io::Error;
    type Future = Ready<io::Result<SettledStream>>;

    fn connect(self, stream: SettledStream) -> Self::Future {
        ready(Ok(stream))
    }
}

/// AuthenticationOk, ReadyForQuery.
const LOGGED_IN: &[u8] = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";

/// A connection that is logged in, as tokio-postgres meets it: its start-up message goes nowhere, and is answered at once. So there is one
/// log-in in this program, and tokio-postgres never has the password. What comes later is watched: tokio-postgres keeps answers of any size.
struct SettledStream {
    transport: Transport,
    /// To be read before anything of the server's.
    prelude: BytesMut,
    /// Bytes of the start-up message that are still to be swallowed; `None` before its length is known.
    startup: Option<usize>,
    watch: Watch,
}

impl SettledStream {
    fn new(transport: Transport, rest: &[u8], rows_pass: bool) -> Self {
        let mut prelude = BytesMut::from(LOGGED_IN);
        prelude.extend_from_slice(rest);
        Self { transport, prelude, startup: None, watch: Watch::new(rows_pass) }
    }
}

impl TlsStream for SettledStream {
    fn channel_binding(&self) -> Binding {
        Binding::none()
    }
}

impl AsyncRead for SettledStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // A server that never stops would keep timers from being looked at.
        let progress = ready!(coop::poll_proceed(cx));
        let before = buf.filled().len();
        if self.prelude.is_empty() {
            ready!(Pin::new(&mut self.transport).poll_read(cx, buf))?;
        } else {
            let taken = self.prelude.len().min(buf.remaining());
            buf.put_slice(&self.prelude.split_to(taken));
        }
        progress.made_progress();
        Poll::Ready(self.watch.pass(&buf.filled()[before..]).map_err(io::Error::other))
    }
}

impl AsyncWrite for SettledStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.startup == Some(0) {
            return Pin::new(&mut self.transport).poll_write(cx, buf);
        }
        let left = match self.startup {
            Some(left) => left,
            None if buf.len() < size_of::<u32>() => return Poll::Ready(Err(io::ErrorKind::InvalidInput.into())),
            None => {
                let mut length = buf;
                length.get_u32() as usize
            }
        };
        let swallowed = left.min(buf.len());
        self.startup = Some(left - swallowed);
        Poll::Ready(Ok(swallowed))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_texts_become_numbers() {
        for (text, number) in [("15.18 (Debian 15.18-0+deb12u1)", 150_018), ("17beta1", 170_000), ("14.23", 140_023), ("18", 180_000)] {
            assert_eq!(version_number(text), Some(number), "{text}");
        }
        for text in ["", "x", ".1", "999999999999"] {
            assert_eq!(version_number(text), None, "{text}");
        }
    }

    #[test]
    fn only_settings_that_the_server_knows_are_pinned() {
        assert!(!pins(130_000, None).contains("idle_session_timeout"));
        assert!(
            pins(150_018, Some("UTF8")).contains("idle_session_timeout") && !pins(150_018, Some("UTF8")).contains("transaction_timeout")
        );
        assert!(pins(170_000, None).contains(" transaction_timeout"));
        assert!(
            pins(150_018, Some("SQL_ASCII")).contains("client_encoding = 'SQL_ASCII'") && pins(150_018, Some("LATIN1")).contains("'UTF8'")
        );
    }
}
