//! Keyed hashes of private columns: equal values stay equal, and nobody without the key can guess them.
//!
//! Owns: HMAC-SHA-256 and the secrecy of its key. Does not own: where the key comes from (`config`).
//! Invariant: neither key nor value is ever printed.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::fmt;

/// What a key's mark is made of. Its NUL is in no text of PostgreSQL, so that no cell has the mark for its hash.
const MARKED: &[u8] = b"huella: mark of the hash key\0";

/// The key of hashed columns.
#[derive(Clone)]
pub struct HashKey(Hmac<Sha256>);

impl HashKey {
    /// A key of any length; the configuration refuses short ones.
    pub fn new(key: &[u8]) -> Self {
        Self(Hmac::new_from_slice(key).expect("HMAC takes keys of every length"))
    }

    /// A text that tells this key from others and tells nothing of it: the HMAC of a fixed text.
    pub fn mark(&self) -> String {
        String::from_utf8_lossy(&self.hex(MARKED)).into_owned()
    }

    /// HMAC-SHA-256 of `value` in lower-case hex.
    pub fn hex(&self, value: &[u8]) -> [u8; 64] {
        let mut mac = self.0.clone();
        mac.update(value);
        let digest = mac.finalize().into_bytes();
        let mut hex = [0; 64];
        for (pair, byte) in hex.chunks_exact_mut(2).zip(digest) {
            pair.copy_from_slice(&super::text::hex_pair(byte));
        }
        hex
    }
}

/// Prints nothing of the key.
impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashKey")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_rfc_4231() {
        let hex = |key: &[u8], value: &[u8]| String::from_utf8(HashKey::new(key).hex(value).to_vec()).unwrap();
        let case_1 = "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7";
        let case_2 = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        let case_6 = "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54";
        assert_eq!(hex(&[0x0b; 20], b"Hi There"), case_1);
        assert_eq!(hex(b"Jefe", b"what do ya want for nothing?"), case_2);
        assert_eq!(hex(&[0xaa; 131], b"Test Using Larger Than Block-Size Key - Hash Key First"), case_6);
    }

    #[test]
    fn a_mark_is_the_keys_own() {
        let mark = |key: &[u8]| HashKey::new(key).mark();
        assert_eq!((mark(b"a"), mark(b"a").len()), (mark(b"a"), 64));
        assert_ne!(mark(b"a"), mark(b"b"));
    }

    #[test]
    fn the_key_is_never_printed() {
        assert_eq!(format!("{:?}", HashKey::new(b"secret")), "HashKey");
    }
}
