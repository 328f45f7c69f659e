//! Start-up and authentication of every session.
//!
//! Owns: the StartupMessage, trust, password, md5, SCRAM-SHA-256 with and without channel binding. Does not own: which methods may be used
//! (`options`), what runs in a session. Invariants: there is no other log-in in this program; the password leaves it, in clear text or as an
//! md5 hash, only to a verified server or where the URL asks for that by name; a SCRAM server has to prove that it knows the password, and
//! gets no cheap guess at it; where the server offers channel binding over TLS it is used; `channel_binding=require` accepts nothing else.

use super::error::{DbError, protocol};
use super::options::{ChannelBinding, ConnectOptions, Method};
use super::sql::{pins, version_number};
use super::transport::Transport;
use super::wire::{Backend, Wire};
use crate::error::{Error, Result};
use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{self, ScramSha256};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;
use std::collections::HashMap;

/// A logged-in session, ready for commands.
pub(super) struct Session {
    pub(super) wire: Wire,
    /// What the server reported (`server_version`, `server_encoding`…).
    pub(super) parameters: HashMap<String, String>,
    /// Process and key for a cancel request.
    pub(super) cancel_key: Option<(i32, i32)>,
}

impl Session {
    /// The server's version as a number: 150018 is 15.18.
    pub(super) fn version(&self) -> Result<u32> {
        let version = self.parameters.get("server_version").and_then(|text| version_number(text));
        version.ok_or_else(|| protocol("no server_version"))
    }

    /// The settings that every session runs with.
    pub(super) fn pins(&self) -> Result<String> {
        Ok(pins(self.version()?, self.parameters.get("server_encoding").map(String::as_str)))
    }
}

/// Fewer rounds than this, PostgreSQL's default of old, make a captured exchange cheap to guess at.
const SCRAM_ITERATIONS_MIN: u32 = 4096;

/// What a session takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    /// SQL alone.
    Sql,
    /// Replication commands too (`replication=database`).
    Replication,
}

/// Logs in.
pub(super) async fn log_in(transport: Transport, options: &ConnectOptions, takes: Takes) -> Result<Session> {
    let mut wire = Wire::new(transport);
    let mut parameters = vec![
        ("user", options.user()),
        ("database", options.database()),
        ("client_encoding", "UTF8"),
        ("application_name", options.application_name.as_str()),
    ];
    parameters.extend((takes == Takes::Replication).then_some(("replication", "database")));
    parameters.extend(options.options.as_deref().map(|o| ("options", o)));
    let mut out = BytesMut::new();
    frontend::startup_message(parameters, &mut out).map_err(|e| Error::config("a connection option cannot be sent").with_source(e))?;
    wire.send(&out).await?;
    authenticate(&mut wire, options).await?;
    await_ready(wire).await
}

/// The next message of the log-in; the server's refusal is an error.
async fn answer(wire: &mut Wire) -> Result<Message> {
    loop {
        match wire.next().await? {
            Backend::Message(Message::ErrorResponse(body)) => {
                return Err(DbError::read(body.fields()).map_err(protocol)?.into_error("logging in"));
            }
            Backend::Message(Message::NoticeResponse(_)) => {}
            Backend::Message(message) => return Ok(message),
            Backend::CopyBoth => return Err(protocol("a copy began during log-in")),
        }
    }
}

async fn authenticate(wire: &mut Wire, options: &ConnectOptions) -> Result<()> {
    match answer(wire).await? {
        Message::AuthenticationOk => {
            accept(wire, options, Method::Trust)?;
            return binding_may_be_missing(options);
        }
        Message::AuthenticationCleartextPassword => {
            accept(wire, options, Method::Password)?;
            binding_may_be_missing(options)?;
            send_password(wire, password(options)?.as_bytes()).await?;
        }
        Message::AuthenticationMd5Password(body) => {
            accept(wire, options, Method::Md5)?;
            binding_may_be_missing(options)?;
            let hash = md5_hash(options.user().as_bytes(), password(options)?.as_bytes(), body.salt());
            send_password(wire, hash.as_bytes()).await?;
        }
        Message::AuthenticationSasl(body) => {
            accept(wire, options, Method::Scram)?;
            scram(wire, &body, options).await?;
        }
        Message::AuthenticationGss | Message::AuthenticationSspi | Message::AuthenticationKerberosV5 => {
            return Err(Error::source_refused("the server demands Kerberos, which is not supported: allow scram-sha-256 in pg_hba.conf"));
        }
        _ => return Err(protocol("an unexpected answer to the start-up message")),
    }
    match answer(wire).await? {
        Message::AuthenticationOk => Ok(()),
        _ => Err(protocol("an unexpected answer to the password")),
    }
}

/// Whether the server may log us in so.
fn accept(wire: &Wire, options: &ConnectOptions, method: Method) -> Result<()> {
    if options.require_auth.allows(method, wire.transport.is_verified()) {
        return Ok(());
    }
    if !options.require_auth.is_default() {
        return Err(Error::source_refused(format!("the server asks for {method} and require_auth in the source URL does not list that")));
    }
    Err(Error::source_refused(format!(
        "the server asks for {method} on a connection that does not prove who it is, and was not given it: set sslmode=verify-full (and \
         source.tls_ca), or let the server ask for scram-sha-256; where the network itself is trusted, put require_auth={method} into the \
         source URL"
    )))
}

fn password(options: &ConnectOptions) -> Result<&str> {
    options.password.as_deref().ok_or_else(|| {
        Error::config("the server asks for a password and none is given: put it in PGPASSWORD, the password file or the source URL")
    })
}

fn binding_may_be_missing(options: &ConnectOptions) -> Result<()> {
    match options.channel_binding {
        ChannelBinding::Require => Err(Error::source_refused("channel_binding=require, but the server did not use channel binding")),
        ChannelBinding::Disable | ChannelBinding::Prefer => Ok(()),
    }
}

async fn send_password(wire: &mut Wire, password: &[u8]) -> Result<()> {
    let mut out = BytesMut::new();
    frontend::password_message(password, &mut out).map_err(unsendable)?;
    wire.send(&out).await
}

fn unsendable(error: std::io::Error) -> Error {
    Error::config("the password cannot be sent").with_source(error)
}

async fn scram(wire: &mut Wire, body: &AuthenticationSaslBody, options: &ConnectOptions) -> Result<()> {
    let (mut plain, mut plus) = (false, false);
    let mut mechanisms = body.mechanisms();
    while let Some(mechanism) = mechanisms.next().map_err(protocol)? {
        plain |= mechanism == sasl::SCRAM_SHA_256;
        plus |= mechanism == sasl::SCRAM_SHA_256_PLUS;
    }
    let end_point = wire.transport.end_point.clone().filter(|_| options.channel_binding != ChannelBinding::Disable);
    let (mechanism, binding) = match end_point {
        Some(hash) if plus => (sasl::SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(hash)),
        // "We could have, the server did not offer": a server that did offer sees that somebody stood between.
        Some(_) if plain => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unrequested()),
        None if plain => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unsupported()),
        _ => return Err(Error::source_refused("the server offers no password exchange that is known here (SCRAM-SHA-256)")),
    };
    if mechanism != sasl::SCRAM_SHA_256_PLUS {
        binding_may_be_missing(options)?;
    }
    tracing::debug!(mechanism, "password exchange");
    let mut exchange = ScramSha256::new(password(options)?.as_bytes(), binding);
    let mut out = BytesMut::new();
    frontend::sasl_initial_response(mechanism, exchange.message(), &mut out).map_err(unsendable)?;
    wire.send(&out).await?;
    let Message::AuthenticationSaslContinue(body) = answer(wire).await? else { return Err(protocol("SCRAM was not continued")) };
    if iterations(body.data()).is_none_or(|rounds| rounds < SCRAM_ITERATIONS_MIN) {
        return Err(Error::source_refused(format!(
            "the server asks for a password exchange of fewer than {SCRAM_ITERATIONS_MIN} iterations, which would make the password easy to \
             guess: set scram_iterations to its default and the role's password again"
        )));
    }
    exchange.update(body.data()).map_err(failed_exchange)?;
    out.clear();
    frontend::sasl_response(exchange.message(), &mut out).map_err(unsendable)?;
    wire.send(&out).await?;
    let Message::AuthenticationSaslFinal(body) = answer(wire).await? else { return Err(protocol("SCRAM was not finished")) };
    exchange.finish(body.data()).map_err(failed_exchange)
}

/// The iterations in a server's first message: `r=…,s=…,i=4096`.
fn iterations(message: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(message).ok()?;
    text.split(',').find_map(|field| field.strip_prefix("i=")?.parse().ok())
}

fn failed_exchange(error: std::io::Error) -> Error {
    Error::source_refused("the server failed the password exchange: it does not know this role's password").with_source(error)
}

async fn await_ready(mut wire: Wire) -> Result<Session> {
    let mut parameters = HashMap::new();
    let mut cancel_key = None;
    loop {
        match answer(&mut wire).await? {
            Message::ParameterStatus(body) => {
                let (name, value) = (body.name().map_err(protocol)?, body.value().map_err(protocol)?);
                parameters.insert(name.to_owned(), value.to_owned());
            }
            Message::BackendKeyData(body) => cancel_key = Some((body.process_id(), body.secret_key())),
            Message::ReadyForQuery(_) => return Ok(Session { wire, parameters, cancel_key }),
            _ => return Err(protocol("an unexpected message after log-in")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_iterations_are_read_from_the_servers_first_message() {
        assert_eq!(iterations(b"r=i=1x,s=aT0x,i=4096"), Some(4096));
        for message in [&b""[..], b"r=x,s=y", b"r=x,s=y,i=", b"r=x,s=y,i=-1", b"r=x,s=y,i=99999999999", b"\xFF,i=4096"] {
            assert_eq!(iterations(message), None);
        }
    }
}
