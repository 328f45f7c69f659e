//! A proxy between the program and a real server that tells one lie at a time.
//!
//! Owns: copying both ways, finding the stream's messages, changing or adding one. Does not own: what must come of it (the tests).

pub(crate) mod fake;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// A position that the server did not give.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Position {
    /// This one.
    At(u64),
    /// So far beyond the true one.
    Ahead(u64),
}

impl Position {
    fn of(self, true_one: u64) -> u64 {
        match self {
            Position::At(lsn) => lsn,
            Position::Ahead(bytes) => true_one + bytes,
        }
    }
}

/// One lie.
#[derive(Debug, Clone)]
pub(crate) enum Lie {
    /// These bytes, between transactions.
    Idle(Vec<u8>),
    /// A keepalive between transactions.
    IdleKeepalive(Position),
    /// A keepalive behind a Begin.
    KeepaliveInTransaction(Position),
    /// A Commit whose end lies elsewhere.
    CommitEnd(Position),
    /// A Commit that is not the announced one.
    CommitAlone(Position),
    /// A transaction that lies elsewhere as a whole.
    Transaction(Position),
}

#[derive(Default)]
struct State {
    lie: Option<Lie>,
    /// A transaction is being moved: what its Begin said.
    moving: Option<Position>,
}

/// A running proxy; its threads end with their connections.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    state: Arc<Mutex<State>>,
    told: Arc<AtomicUsize>,
}

impl Proxy {
    pub(crate) fn start(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (state, told) = (Arc::<Mutex<State>>::default(), Arc::<AtomicUsize>::default());
        let (shared, count) = (Arc::clone(&state), Arc::clone(&told));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (client.unwrap(), TcpStream::connect(("127.0.0.1", server)).unwrap());
                let (state, told) = (Arc::clone(&shared), Arc::clone(&count));
                let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Both);
                });
                std::thread::spawn(move || {
                    let _ = answers(server, &client, &state, &told);
                    let _ = client.shutdown(std::net::Shutdown::Both);
                });
            }
        });
        Self { port, state, told }
    }

    /// The next occasion is taken for this lie.
    pub(crate) fn tell(&self, lie: Lie) {
        let mut state = self.state.lock().unwrap();
        (state.lie, state.moving) = (Some(lie), None);
    }

    /// Lies told so far.
    pub(crate) fn told(&self) -> usize {
        self.told.load(Ordering::SeqCst)
    }
}

/// Copies the server's messages; those of a stream are looked at.
fn answers(mut server: TcpStream, mut client: &TcpStream, state: &Mutex<State>, told: &AtomicUsize) -> std::io::Result<()> {
    let (mut streaming, mut in_transaction, mut last) = (false, false, 0);
    loop {
        let mut header = [0; 5];
        server.read_exact(&mut header)?;
        let mut body = vec![0; u32::from_be_bytes(header[1..].try_into().unwrap()) as usize - 4];
        server.read_exact(&mut body)?;
        streaming |= header[0] == b'W';
        let mut added = None;
        if streaming && header[0] == b'd' {
            match (body[0], body.get(25)) {
                (b'k', _) => last = word(&body, 1),
                (b'w', Some(b'B')) => in_transaction = true,
                (b'w', Some(b'C')) => in_transaction = false,
                _ => {}
            }
            let mut state = state.lock().unwrap();
            added = lie(&mut state, &mut body, in_transaction, last, told);
            drop(state);
        }
        client.write_all(&header)?;
        client.write_all(&body)?;
        if let Some(keepalive) = added {
            client.write_all(&keepalive)?;
        }
    }
}

/// Changes the message, or gives one to be added.
fn lie(state: &mut State, body: &mut [u8], in_transaction: bool, last: u64, told: &AtomicUsize) -> Option<Vec<u8>> {
    let kind = if body[0] == b'w' { body.get(25).copied() } else { None };
    // Begin: final LSN. Commit: flags, commit LSN, end LSN.
    let (begin_at, commit_at, end_at) = (26, 27, 35);
    if let (Some(to), Some(b'C')) = (state.moving, kind) {
        for at in [commit_at, end_at] {
            set(body, at, to.of(word(body, at)));
        }
        state.moving = None;
        told.fetch_add(1, Ordering::SeqCst);
        return None;
    }
    match (state.lie.clone()?, kind) {
        (Lie::Idle(bytes), _) if !in_transaction => {
            state.lie = None;
            told.fetch_add(1, Ordering::SeqCst);
            Some(bytes)
        }
        (Lie::IdleKeepalive(to), _) if !in_transaction => {
            state.lie = None;
            told.fetch_add(1, Ordering::SeqCst);
            Some(keepalive(to.of(last)))
        }
        (Lie::KeepaliveInTransaction(to), Some(b'B')) => {
            state.lie = None;
            told.fetch_add(1, Ordering::SeqCst);
            Some(keepalive(to.of(word(body, begin_at))))
        }
        (Lie::CommitEnd(to), Some(b'C')) => {
            set(body, end_at, to.of(word(body, end_at)));
            state.lie = None;
            told.fetch_add(1, Ordering::SeqCst);
            None
        }
        (Lie::CommitAlone(to), Some(b'C')) => {
            set(body, commit_at, to.of(word(body, commit_at)));
            state.lie = None;
            told.fetch_add(1, Ordering::SeqCst);
            None
        }
        (Lie::Transaction(to), Some(b'B')) => {
            set(body, begin_at, to.of(word(body, begin_at)));
            (state.lie, state.moving) = (None, Some(to));
            None
        }
        _ => None,
    }
}

fn keepalive(wal_end: u64) -> Vec<u8> {
    let mut message = vec![b'd', 0, 0, 0, 22, b'k'];
    message.extend_from_slice(&wal_end.to_be_bytes());
    message.extend_from_slice(&[0; 8]);
    message.push(1);
    message
}

/// A CopyData with these bytes.
pub(crate) fn copy_data(bytes: &[u8]) -> Vec<u8> {
    fake::message(b'd', bytes)
}

/// A message of pgoutput within the stream.
pub(crate) fn streamed(payload: &[u8]) -> Vec<u8> {
    copy_data(&[&[b'w'][..], &[0; 24], payload].concat())
}

fn word(body: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(body[at..at + 8].try_into().unwrap())
}

fn set(body: &mut [u8], at: usize, value: u64) {
    body[at..at + 8].copy_from_slice(&value.to_be_bytes());
}
