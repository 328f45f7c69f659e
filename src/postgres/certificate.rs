//! What stands in a server's certificate, as far as rustls does not tell: its hash for SCRAM, its time.
//!
//! Owns: `tls-server-end-point` (RFC 5929), the validity (RFC 5280), reading DER. Does not own: what is accepted (`tls`).
//! Invariant: bytes from the server never panic.

use sha2::{Digest, Sha256, Sha384, Sha512};
use std::ops::Range;

/// The `tls-server-end-point` channel binding of a server certificate: its hash by the hash function of its
/// signature, SHA-256 in place of MD5 and SHA-1 (RFC 5929, 4.1). `None` for a signature that names no hash
/// (Ed25519) or one that SCRAM peers do not agree on; the exchange then goes without channel binding.
pub(super) fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    Some(match signature_hash(certificate)? {
        Hash::Sha256 => Sha256::digest(certificate).to_vec(),
        Hash::Sha384 => Sha384::digest(certificate).to_vec(),
        Hash::Sha512 => Sha512::digest(certificate).to_vec(),
    })
}

/// When a certificate is valid, in seconds since 1970-01-01 UTC, both ends included; `None` if that cannot be read.
pub(super) fn validity(certificate: &[u8]) -> Option<Range<u64>> {
    let (certificate, _) = der(certificate, SEQUENCE)?;
    let (mut tbs, _) = der(certificate, SEQUENCE)?;
    // TBSCertificate: [0] version if not 1, serial number, signature, issuer, validity
    if tbs.first() == Some(&VERSION) {
        tbs = der(tbs, VERSION)?.1;
    }
    for tag in [INTEGER, SEQUENCE, SEQUENCE] {
        tbs = der(tbs, tag)?.1;
    }
    let (validity, _) = der(tbs, SEQUENCE)?;
    let (start, rest) = time(validity)?;
    let (end, _) = time(rest)?;
    Some(start..end)
}

/// UTCTime `YYMMDDHHMMSSZ` (1950 to 2049) or GeneralizedTime `YYYYMMDDHHMMSSZ`, the only forms that certificates may have; what follows it.
fn time(input: &[u8]) -> Option<(u64, &[u8])> {
    let short = input.first() == Some(&UTC_TIME);
    let (content, rest) = der(input, if short { UTC_TIME } else { GENERALIZED_TIME })?;
    let text = std::str::from_utf8(content).ok()?;
    let text = match (short, text.get(..2)?.parse::<u8>().ok()?) {
        (false, _) => text.to_owned(),
        (true, year) => format!("{}{text}", if year < 50 { "20" } else { "19" }),
    };
    let time = chrono::NaiveDateTime::parse_from_str(&text, "%Y%m%d%H%M%SZ").ok()?;
    Some((u64::try_from(time.and_utc().timestamp()).ok()?, rest))
}

#[derive(Debug, PartialEq, Eq)]
enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

const SEQUENCE: u8 = 0x30;
const OBJECT_ID: u8 = 0x06;
const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// Field `[0]` of TBSCertificate.
const VERSION: u8 = 0xA0;
/// Field `[0]` of RSASSA-PSS-params: the hash algorithm, SHA-1 if absent.
const PSS_HASH: u8 = 0xA0;

/// `Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm SEQUENCE { OID, parameters }, signature }`.
fn signature_hash(certificate: &[u8]) -> Option<Hash> {
    let (certificate, _) = der(certificate, SEQUENCE)?;
    let (_tbs, rest) = der(certificate, SEQUENCE)?;
    let (algorithm, _) = der(rest, SEQUENCE)?;
    let (id, parameters) = der(algorithm, OBJECT_ID)?;
    match id {
        // 1.2.840.113549.1.1.x: RSA with MD5, SHA-1, SHA-256, SHA-384, SHA-512; RSASSA-PSS
        [0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 1, 1, last] => match last {
            4 | 5 | 11 => Some(Hash::Sha256),
            12 => Some(Hash::Sha384),
            13 => Some(Hash::Sha512),
            10 => pss_hash(parameters),
            _ => None,
        },
        // 1.2.840.10045.4.1 and .4.3.x: ECDSA with SHA-1, SHA-256, SHA-384, SHA-512
        [0x2A, 0x86, 0x48, 0xCE, 0x3D, 4, 1] => Some(Hash::Sha256),
        [0x2A, 0x86, 0x48, 0xCE, 0x3D, 4, 3, last] => sha2(*last, [2, 3, 4]),
        _ => None,
    }
}

fn pss_hash(parameters: &[u8]) -> Option<Hash> {
    let (parameters, _) = der(parameters, SEQUENCE)?;
    let Some((field, _)) = der(parameters, PSS_HASH) else { return Some(Hash::Sha256) };
    let (algorithm, _) = der(field, SEQUENCE)?;
    match der(algorithm, OBJECT_ID)?.0 {
        // 2.16.840.1.101.3.4.2.x: SHA-256, SHA-384, SHA-512
        [0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, last] => sha2(*last, [1, 2, 3]),
        _ => None,
    }
}

fn sha2(id: u8, [sha256, sha384, sha512]: [u8; 3]) -> Option<Hash> {
    match id {
        _ if id == sha256 => Some(Hash::Sha256),
        _ if id == sha384 => Some(Hash::Sha384),
        _ if id == sha512 => Some(Hash::Sha512),
        _ => None,
    }
}

/// The content of the DER element of type `tag` at the beginning of `input`, and what follows the element.
fn der(input: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[found, first], mut rest) = input.split_first_chunk::<2>()?;
    if found != tag {
        return None;
    }
    let mut len = usize::from(first);
    if first >= 0x80 {
        let digits = usize::from(first & 0x7F);
        if !(1..=4).contains(&digits) {
            return None;
        }
        let (bytes, after) = rest.split_at_checked(digits)?;
        len = bytes.iter().fold(0, |len, byte| len << 8 | usize::from(*byte));
        rest = after;
    }
    rest.split_at_checked(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(tag: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![tag, 0x82, (content.len() >> 8) as u8, content.len() as u8];
        out.extend_from_slice(content);
        out
    }

    fn certificate(algorithm: &[u8]) -> Vec<u8> {
        let body = [element(SEQUENCE, &[7; 300]), element(SEQUENCE, algorithm), element(3, &[0; 64])].concat();
        element(SEQUENCE, &body)
    }

    fn rsa(last: u8, parameters: &[u8]) -> Vec<u8> {
        let id = [0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 1, 1, last];
        certificate(&[&element(OBJECT_ID, &id)[..], parameters].concat())
    }

    #[test]
    fn the_signature_decides_the_hash() {
        for (last, hash) in [(4, Hash::Sha256), (5, Hash::Sha256), (11, Hash::Sha256), (12, Hash::Sha384), (13, Hash::Sha512)] {
            assert_eq!(signature_hash(&rsa(last, &[5, 0])), Some(hash));
        }
        let ecdsa = |last| certificate(&element(OBJECT_ID, &[0x2A, 0x86, 0x48, 0xCE, 0x3D, 4, 3, last]));
        assert_eq!(signature_hash(&ecdsa(3)), Some(Hash::Sha384));
        assert_eq!(signature_hash(&ecdsa(1)), None);
        assert_eq!(end_point(&ecdsa(4)).map(|h| h.len()), Some(64));
        assert_eq!(signature_hash(&certificate(&element(OBJECT_ID, &[0x2B, 0x65, 0x70]))), None, "Ed25519");
    }

    #[test]
    fn pss_names_its_hash_in_the_parameters() {
        let hash = |last| element(SEQUENCE, &element(OBJECT_ID, &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, last]));
        let parameters = element(SEQUENCE, &element(PSS_HASH, &hash(3)));
        assert_eq!(signature_hash(&rsa(10, &parameters)), Some(Hash::Sha512));
        assert_eq!(signature_hash(&rsa(10, &element(SEQUENCE, &[]))), Some(Hash::Sha256));
    }

    #[test]
    fn truncated_and_garbled_certificates_have_no_hash() {
        let whole = rsa(11, &[5, 0]);
        for cut in 0..whole.len() - 68 {
            assert_eq!(signature_hash(&whole[..cut]), None, "{cut}");
        }
        assert_eq!(signature_hash(&[SEQUENCE, 0x85, 1, 1, 1, 1, 1]), None);
        assert_eq!(signature_hash(&[SEQUENCE, 0x80]), None);
    }

    #[test]
    fn the_time_of_a_certificate_is_read_in_both_forms() {
        let times = |tag_and_text: [(u8, &[u8]); 2]| element(SEQUENCE, &tag_and_text.map(|(tag, text)| element(tag, text)).concat());
        let of = |version: &[u8], times: &[u8]| {
            let tbs = [version, &element(INTEGER, &[1]), &element(SEQUENCE, &[]), &element(SEQUENCE, &[]), times].concat();
            validity(&element(SEQUENCE, &element(SEQUENCE, &tbs)))
        };
        let version = element(VERSION, &element(INTEGER, &[2]));
        let both = times([(UTC_TIME, b"700101000001Z"), (GENERALIZED_TIME, b"20500101000000Z")]);
        assert_eq!(of(&version, &both), Some(1..2_524_608_000));
        assert_eq!(of(&[], &both), Some(1..2_524_608_000), "version 1");
        let windows = times([(UTC_TIME, b"991231235959Z"), (UTC_TIME, b"491231235959Z")]);
        assert_eq!(of(&version, &windows), Some(946_684_799..2_524_607_999));
        for garbled in [&b""[..], b"7", b"70010100Z", b"701301000000Z", b"700101000000+0100", b"\xFF\xFF0101000000Z"] {
            assert_eq!(of(&version, &times([(UTC_TIME, garbled), (UTC_TIME, b"700101000001Z")])), None);
        }
    }
}
