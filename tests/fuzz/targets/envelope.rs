//! Any bytes as CopyData of a replication connection; what it carries goes on to the decoder.

#![no_main]
#![allow(dead_code, unreachable_pub, unused_imports)] // taken in by path, used in part

#[path = "../../../src/lsn.rs"]
mod lsn;
#[path = "../../../src/pgoutput/mod.rs"]
mod pgoutput;

use pgoutput::Envelope;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    match pgoutput::envelope(bytes) {
        Ok(Envelope::Data { payload, .. }) => {
            assert_eq!(payload.len() + 25, bytes.len());
            let _ = pgoutput::decode(payload);
        }
        Ok(Envelope::Keepalive { .. }) => assert_eq!(bytes.len(), 18),
        Err(error) => assert!(error.offset <= bytes.len()),
    }
});
