//! A peer that is no server: it says what a script tells it, and keeps what it hears.
//!
//! Owns: connections, start-up, framing. Does not own: what is said after it (the tests).

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// What a client begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    Tls,
    Cancel,
    Sql,
    Replication,
}

/// One connection.
pub(crate) struct Peer {
    stream: TcpStream,
    heard: Arc<Mutex<Vec<u8>>>,
    said: Arc<AtomicUsize>,
}

type Said<T = ()> = std::io::Result<T>;

impl Peer {
    fn read(&mut self, bytes: usize) -> Said<Vec<u8>> {
        let mut read = vec![0; bytes];
        self.stream.read_exact(&mut read)?;
        self.heard.lock().unwrap().extend_from_slice(&read);
        Ok(read)
    }

    /// The client's first message.
    pub(crate) fn start(&mut self) -> Said<Start> {
        let length = u32::from_be_bytes(self.read(4)?.try_into().unwrap()) as usize;
        let body = self.read(length - 4)?;
        Ok(match u32::from_be_bytes(body[..4].try_into().unwrap()) {
            80_877_103 => Start::Tls,
            80_877_102 => Start::Cancel,
            _ if body.windows(12).any(|part| part == b"replication\0") => Start::Replication,
            _ => Start::Sql,
        })
    }

    /// The client's next message: its tag and body.
    pub(crate) fn hear(&mut self) -> Said<(u8, Vec<u8>)> {
        let header = self.read(5)?;
        let length = u32::from_be_bytes(header[1..].try_into().unwrap()) as usize;
        Ok((header[0], self.read(length - 4)?))
    }

    pub(crate) fn say(&mut self, bytes: &[u8]) -> Said {
        self.stream.write_all(bytes)?;
        self.said.fetch_add(bytes.len(), Ordering::SeqCst);
        Ok(())
    }

    /// Says the same until nobody listens any more.
    pub(crate) fn flood(&mut self, message: &[u8]) -> Said {
        let block = message.repeat((64 << 10) / message.len() + 1);
        loop {
            self.say(&block)?;
        }
    }

    /// As a server that trusts everybody.
    pub(crate) fn log_in(&mut self) -> Said {
        let settings = [("server_version", "15.18"), ("server_encoding", "UTF8"), ("client_encoding", "UTF8")];
        let mut said = message(b'R', &[0; 4]);
        for (name, value) in settings {
            said.extend(message(b'S', format!("{name}\0{value}\0").as_bytes()));
        }
        said.extend(message(b'K', &[0, 0, 0, 1, 0, 0, 0, 2]));
        said.extend(READY);
        self.say(&said)
    }
}

/// ReadyForQuery.
pub(crate) const READY: &[u8] = b"Z\0\0\0\x05I";

/// A message of a server.
pub(crate) fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
}

/// A row of one text.
pub(crate) fn row(text: &[u8]) -> Vec<u8> {
    message(b'D', &[&[0, 1][..], &(text.len() as u32).to_be_bytes(), text].concat())
}

/// The description of one text column.
pub(crate) fn described() -> Vec<u8> {
    message(b'T', b"\0\x01c\0\0\0\0\0\0\0\0\0\0\x19\xFF\xFF\xFF\xFF\xFF\xFF\0\0")
}

/// A listening fake.
pub(crate) struct Fake {
    pub(crate) port: u16,
    heard: Arc<Mutex<Vec<u8>>>,
    said: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
}

impl Fake {
    /// Runs `script` for every connection, each on a thread of its own; its errors only mean that the client has left.
    pub(crate) fn start(script: impl Fn(&mut Peer) -> Said + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (heard, said, connections) = (Arc::default(), Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let fake = Self { port, heard: Arc::clone(&heard), said: Arc::clone(&said), connections: Arc::clone(&connections) };
        let script = Arc::new(script);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                connections.fetch_add(1, Ordering::SeqCst);
                let mut peer = Peer { stream: stream.unwrap(), heard: Arc::clone(&heard), said: Arc::clone(&said) };
                let script = Arc::clone(&script);
                std::thread::spawn(move || {
                    let _ = script(&mut peer);
                });
            }
        });
        fake
    }

    /// Whether these bytes were heard on any connection.
    pub(crate) fn heard(&self, bytes: &[u8]) -> bool {
        self.heard.lock().unwrap().windows(bytes.len()).any(|part| part == bytes)
    }

    /// Bytes said on all connections.
    pub(crate) fn said(&self) -> usize {
        self.said.load(Ordering::SeqCst)
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}
