//! Claims about the reader, against a scripted server at the other end of a socket pair.

use super::super::stream::ReplicationStream;
use super::*;
use crate::error::Kind;
use tokio::net::UnixStream;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(5);

/// A stream and the server's end of its socket.
fn stream_with(setup: StreamSetup, rest: &[u8]) -> (ReplicationStream, UnixStream) {
    let (ours, server) = UnixStream::pair().unwrap();
    (ReplicationStream::begin(Transport::from_unix(ours), BytesMut::from(rest), setup, None), server)
}

fn stream() -> (ReplicationStream, UnixStream) {
    stream_with(StreamSetup::default(), b"")
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    out.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
    out.extend_from_slice(body);
    out
}

fn data(lsn: u64, payload: &[u8]) -> Vec<u8> {
    message(b'd', &[&b"w"[..], &lsn.to_be_bytes(), &lsn.to_be_bytes(), &[0; 8], payload].concat())
}

fn keepalive(lsn: u64, reply: bool) -> Vec<u8> {
    message(b'd', &[&b"k"[..], &lsn.to_be_bytes(), &[0; 8], &[u8::from(reply)]].concat())
}

fn refusal(tag: u8, code: &str, text: &str) -> Vec<u8> {
    message(tag, format!("SFATAL\0VFATAL\0C{code}\0M{text}\0\0").as_bytes())
}

/// Written, flushed, reply requested: the next status update.
async fn update(server: &mut UnixStream) -> (u64, u64, u8) {
    let mut bytes = [0; 39];
    timeout(SOON, server.read_exact(&mut bytes)).await.expect("an update in time").unwrap();
    assert_eq!((bytes[0], bytes[5]), (b'd', b'r'));
    let word = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    (word(6), word(14), bytes[38])
}

async fn next(stream: &mut ReplicationStream) -> Result<Option<Event>> {
    timeout(SOON, stream.next()).await.expect("an event in time")
}

/// The payloads of the next `count` frames, and into how many events they came.
async fn payloads(stream: &mut ReplicationStream, count: usize) -> (Vec<Vec<u8>>, usize) {
    let (mut all, mut events) = (Vec::new(), 0);
    while all.len() < count {
        match next(stream).await.unwrap() {
            Some(Event::Frames(frames)) => {
                assert_eq!(frames.bytes(), frames.iter().map(|f| f.len() + HEADER_BYTES).sum::<usize>());
                all.extend(frames.iter().map(<[u8]>::to_vec));
                events += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    (all, events)
}

#[tokio::test]
async fn frames_arrive_whole_and_in_order_however_they_are_cut() {
    let wire: Vec<u8> = (0..40u64).flat_map(|i| data(i, &vec![i as u8; 7 * i as usize])).collect();
    let expected: Vec<Vec<u8>> = (0..40u64).map(|i| data(i, &vec![i as u8; 7 * i as usize])[HEADER_BYTES..].to_vec()).collect();
    for piece in [1usize, 3, 100, 1 << 20] {
        let (rest, later) = wire.split_at(piece.min(50));
        let (mut stream, mut server) = stream_with(StreamSetup::default(), rest);
        let later = later.to_vec();
        let writer = tokio::spawn(async move {
            for part in later.chunks(piece) {
                server.write_all(part).await.unwrap();
                if piece == 100 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            server
        });
        assert_eq!(payloads(&mut stream, 40).await.0, expected, "pieces of {piece}");
        drop(writer.await.unwrap());
    }
}

#[tokio::test]
async fn a_huge_frame_is_one_event_and_small_ones_go_on_behind_it() {
    let (mut stream, mut server) = stream();
    let huge = data(1, &vec![9; 5 << 20]);
    tokio::spawn(async move {
        for i in 0..3u64 {
            server.write_all(&huge).await.unwrap();
            server.write_all(&data(i + 2, b"small")).await.unwrap();
        }
        std::future::pending::<()>().await;
    });
    let (all, events) = payloads(&mut stream, 6).await;
    let sizes: Vec<usize> = all.iter().map(Vec::len).collect();
    assert_eq!(sizes, [(5 << 20) + 25, 30, (5 << 20) + 25, 30, (5 << 20) + 25, 30]);
    assert!(events >= 3, "a chunk does not gather huge frames: {events}");
}

#[tokio::test]
async fn a_huge_frame_is_read_once_what_came_before_is_done_with() {
    let (mut stream, mut server) = stream();
    let huge = data(1, &vec![9; 8 << 20]);
    server.write_all(&data(1, b"small")).await.unwrap();
    let Some(Event::Frames(small)) = next(&mut stream).await.unwrap() else { panic!("no frames") };
    let writing = tokio::spawn(async move {
        server.write_all(&huge).await.unwrap();
        server
    });
    // Its first chunk is read, for its length; the rest waits for as long as the small one is held.
    assert!(timeout(Duration::from_millis(300), next(&mut stream)).await.is_err());
    assert!(!writing.is_finished());
    // Giving up the bytes alone lets nothing in.
    let room = small.into_room();
    assert!(timeout(Duration::from_millis(100), next(&mut stream)).await.is_err());
    assert!(!writing.is_finished());
    drop(room);
    let Some(Event::Frames(frames)) = next(&mut stream).await.unwrap() else { panic!("no frames") };
    assert_eq!(frames.bytes(), HEADER_BYTES + 25 + (8 << 20));
    writing.await.unwrap();
}

#[tokio::test]
async fn a_consumer_that_holds_all_room_for_long_is_no_silence_of_the_server() {
    let moment = Duration::from_millis(100);
    let (mut stream, mut server) = stream_with(StreamSetup { status_every: moment, ask_after: moment, silence_max: 3 * moment }, b"");
    let huge = data(1, &vec![9; 5 << 20]);
    let writing = tokio::spawn(async move {
        server.write_all(&huge).await.unwrap();
        server
    });
    let Some(Event::Frames(frames)) = next(&mut stream).await.unwrap() else { panic!("no frames") };
    let mut server = writing.await.unwrap();
    tokio::time::sleep(6 * moment).await; // longer than silence may last: that is the claim
    // Something else to do and room again in one moment: the reader is not told of the room, it finds it.
    stream.request_keepalive();
    drop(frames);
    server.write_all(&data(2, b"small")).await.unwrap();
    assert_eq!(payloads(&mut stream, 1).await.0[0].len(), 30);
}

#[tokio::test]
async fn a_question_is_answered_without_the_consumer() {
    let (stream, mut server) = stream();
    server.write_all(&keepalive(77, true)).await.unwrap();
    assert_eq!(update(&mut server).await, (77, 0, 0));
    drop(stream);
}

#[tokio::test]
async fn acknowledgements_go_up_only_and_the_last_one_always_arrives() {
    let (stream, mut server) = stream();
    stream.acknowledge(Lsn(50));
    stream.acknowledge(Lsn(40));
    assert_eq!(update(&mut server).await, (50, 50, 0));
    stream.acknowledge(Lsn(60)); // within the second: waits for its turn, or for the end
    let finish = tokio::spawn(stream.finish());
    assert_eq!(update(&mut server).await, (60, 60, 0));
    let mut goodbye = [0; 10];
    server.read_exact(&mut goodbye).await.unwrap();
    assert_eq!(&goodbye, b"c\0\0\0\x04X\0\0\0\x04");
    drop(server);
    finish.await.unwrap().unwrap();
}

#[tokio::test]
async fn finish_does_not_wait_for_a_dead_server_longer_than_two_seconds() {
    let (stream, server) = stream();
    let started = std::time::Instant::now();
    assert!(stream.finish().await.unwrap_err().is_retry());
    assert!(started.elapsed() < Duration::from_secs(3));
    drop(server);
}

#[tokio::test]
async fn a_wish_for_a_keepalive_asks_the_server() {
    let (stream, mut server) = stream();
    stream.request_keepalive();
    assert_eq!(update(&mut server).await, (0, 0, 1));
}

#[tokio::test]
async fn feedback_goes_on_while_the_consumer_stalls() {
    let setup = StreamSetup { status_every: Duration::from_millis(100), ..StreamSetup::default() };
    let (mut stream, server) = stream_with(setup, b"");
    let (mut from_client, mut to_client) = server.into_split();
    let frame = data(5, &vec![1; 100 << 10]);
    let sent = 200;
    let flood = tokio::spawn(async move {
        for _ in 0..sent {
            to_client.write_all(&frame).await.unwrap();
        }
        to_client
    });
    let mut bytes = [0; 39];
    for _ in 0..8 {
        timeout(SOON, from_client.read_exact(&mut bytes)).await.expect("feedback despite the stall").unwrap();
    }
    assert!(!flood.is_finished(), "nobody takes the data, so it must not be read");
    let drain = tokio::spawn(async move { while from_client.read(&mut bytes).await.is_ok_and(|n| n > 0) {} });
    assert_eq!(payloads(&mut stream, sent).await.0.len(), sent);
    flood.await.unwrap();
    drain.abort();
}

#[tokio::test]
async fn a_server_that_does_not_read_blocks_no_data() {
    let setup = StreamSetup { status_every: Duration::from_micros(1), ..StreamSetup::default() };
    let (mut stream, mut server) = stream_with(setup, b"");
    // Thousands of updates fill the socket towards the server within the time of this flood.
    for i in 0..200u64 {
        server.write_all(&data(i, b"x")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(payloads(&mut stream, 200).await.0.len(), 200);
}

#[tokio::test]
async fn a_frame_that_never_ends_is_silence_however_many_keepalives_fill_it() {
    let moment = Duration::from_millis(100);
    let setup = StreamSetup { ask_after: moment, silence_max: 5 * moment, ..StreamSetup::default() };
    let (mut stream, mut server) = stream_with(setup, b"");
    let dribble = tokio::spawn(async move {
        server.write_all(b"d\x3F\xFF\xFF\xFFw").await.unwrap();
        while server.write_all(&keepalive(7, false)).await.is_ok() {
            tokio::time::sleep(moment / 4).await;
        }
    });
    let error = next(&mut stream).await.unwrap_err();
    assert!(error.is_retry() && error.full().contains("silent"), "{}", error.full());
    drop(stream);
    dribble.await.unwrap();
}

#[tokio::test]
async fn silence_is_asked_about_and_then_ends_the_stream() {
    let setup = StreamSetup { ask_after: Duration::from_millis(100), silence_max: Duration::from_millis(300), ..StreamSetup::default() };
    let (mut stream, mut server) = stream_with(setup, b"");
    let error = next(&mut stream).await.unwrap_err();
    assert!(error.is_retry() && error.full().contains("silent"), "{}", error.full());
    assert_eq!(update(&mut server).await.2, 1);
    assert!(next(&mut stream).await.unwrap().is_none(), "an ended stream stays ended");
}

#[tokio::test]
async fn what_came_before_an_error_is_delivered_first() {
    // The socket is closed at once behind the error, so both may be read in one go.
    let (mut stream, mut server) = stream();
    let notice = message(b'N', b"SWARNING\0VWARNING\0C55000\0Mskipped\0\0");
    server.write_all(&[data(1, b"a"), notice, data(2, b"b"), refusal(b'E', "57P01", "going down")].concat()).await.unwrap();
    drop(server);
    assert_eq!(payloads(&mut stream, 1).await.0[0].last(), Some(&b'a'));
    match next(&mut stream).await.unwrap() {
        Some(Event::Notice(notice)) => assert_eq!((notice.sqlstate.as_str(), notice.message.as_str()), ("55000", "skipped")),
        other => panic!("{other:?}"),
    }
    assert_eq!(payloads(&mut stream, 1).await.0[0].last(), Some(&b'b'));
    let error = next(&mut stream).await.unwrap_err();
    assert_eq!((error.kind(), super::super::sqlstate(&error)), (Kind::Retry, Some("57P01")));
}

#[tokio::test]
async fn every_end_by_the_server_is_retried_and_garbage_never_panics() {
    let cut = data(1, b"abc")[..9].to_vec();
    let cases: [(&str, Vec<u8>); 9] = [
        ("end of file", vec![]),
        ("end of file within a frame", cut),
        ("copy done", message(b'c', b"")),
        ("length below 4", vec![b'd', 0, 0, 0, 3]),
        ("length of 2 GiB", vec![b'd', 0x7F, 0xFF, 0xFF, 0xFF]),
        ("empty payload", message(b'd', b"")),
        ("short data", message(b'd', b"w12345678")),
        ("short keepalive", message(b'd', b"k1234567812345678")),
        ("unknown tag", message(b'?', b"xyz")),
    ];
    for (name, bytes) in cases {
        let (mut stream, mut server) = stream();
        server.write_all(&bytes).await.unwrap();
        drop(server);
        let error = next(&mut stream).await.expect_err(name);
        assert!(error.is_retry(), "{name}: {}", error.full());
    }
}

#[tokio::test]
async fn dropping_the_stream_closes_the_socket() {
    let (stream, mut server) = stream();
    drop(stream);
    let mut byte = [0];
    assert_eq!(timeout(SOON, server.read(&mut byte)).await.unwrap().unwrap(), 0);
}
