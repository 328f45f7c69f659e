//! TLS to the server: which certificates are accepted in which sslmode, and the certificate's hash for SCRAM.
//!
//! Owns: the rustls configuration, the verifier, `tls-server-end-point` (RFC 5929).
//! Does not own: the negotiation on the wire (`transport`), the choice of roots (`options`).
//! Invariants: `verify-ca` and `verify-full` never accept an unverified chain; `verify-full` never another name.

use super::options::{ConnectOptions, SslMode};
use crate::error::{Error, Result};
use sha2::{Digest, Sha256, Sha384, Sha512};
use std::path::Path;
use std::sync::Arc;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{self, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

/// The client configuration for the options' sslmode and roots. Errors: `Config`, naming the file.
pub(super) fn client_config(options: &ConnectOptions) -> Result<ClientConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let check = match options.sslmode() {
        SslMode::VerifyFull => Check::ChainAndName,
        SslMode::VerifyCa => Check::Chain,
        SslMode::Disable | SslMode::Prefer | SslMode::Require => Check::Nothing,
    };
    let mut pinned = Vec::new();
    let mut roots = RootCertStore::empty();
    if check != Check::Nothing {
        for file in &options.ca_files {
            pinned.extend(read_certificates(file)?);
        }
        roots.add_parsable_certificates(pinned.iter().cloned());
        if options.system_roots {
            let system = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(system.certs);
        }
        if roots.is_empty() && pinned.is_empty() {
            return Err(Error::config("no root certificate: the system has none, so set source.tls_ca"));
        }
    }
    let verifier = Arc::new(Verifier { check, roots, pinned, provider: provider.clone() });
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::bug("the TLS provider knows no protocol version").with_source(e))?
        .dangerous() // the verifier below does what the sslmode asks for, which rustls' own cannot
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(config)
}

fn read_certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let bad = |why: String| Error::config(format!("CA file {}: {why}", file.display()));
    let bytes = std::fs::read(file).map_err(|e| bad(e.to_string()))?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let certificates = read.map_err(|e| bad(format!("not a PEM file: {e}")))?;
    if certificates.is_empty() {
        return Err(bad("it has no certificate (PEM expected)".to_owned()));
    }
    Ok(certificates)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    Nothing,
    Chain,
    ChainAndName,
}

#[derive(Debug)]
struct Verifier {
    check: Check,
    roots: RootCertStore,
    /// The CA files' certificates; a server certificate that stands there itself (self-signed) is trusted, as in libpq.
    pinned: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.check == Check::Nothing {
            return Ok(ServerCertVerified::assertion());
        }
        let certificate = ParsedCertificate::try_from(end_entity)?;
        if !self.pinned.iter().any(|pin| pin.as_ref() == end_entity.as_ref()) {
            let algorithms = self.provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, algorithms)?;
        }
        if self.check == Check::ChainAndName {
            verify_server_name(&certificate, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// What to do about a failed handshake, for the message.
pub(super) fn mend_of(error: &rustls::Error) -> &'static str {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "its certificate is not signed by a trusted CA: set source.tls_ca to the server's CA certificate"
        }
        rustls::Error::InvalidCertificate(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }) => {
            "its certificate is for another host name: connect by a name that it lists, or use sslmode=verify-ca"
        }
        rustls::Error::InvalidCertificate(_) => "its certificate is refused",
        _ => "the TLS handshake failed",
    }
}

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

#[derive(Debug, PartialEq, Eq)]
enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

const SEQUENCE: u8 = 0x30;
const OBJECT_ID: u8 = 0x06;
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
}
