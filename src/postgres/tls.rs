//! TLS to the server: which certificates are accepted in which sslmode.
//!
//! Owns: the rustls configuration, the verifier. Does not own: the negotiation on the wire (`transport`), the choice of roots (`options`),
//! what stands in a certificate (`certificate`). Invariants: `verify-ca` and `verify-full` never accept an unverified chain, nor a
//! certificate outside its time, whether a CA signed it or it is trusted itself; `verify-full` never another name.

use super::certificate;
use super::options::{ConnectOptions, SslMode};
use crate::error::{Error, Result};
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
        let parsed = ParsedCertificate::try_from(end_entity)?;
        if self.pinned.iter().any(|pin| pin.as_ref() == end_entity.as_ref()) {
            let valid = certificate::validity(end_entity).ok_or(rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
            if now.as_secs() < valid.start {
                return Err(rustls::Error::InvalidCertificate(CertificateError::NotValidYet));
            }
            if now.as_secs() > valid.end {
                return Err(rustls::Error::InvalidCertificate(CertificateError::Expired));
            }
        } else {
            let algorithms = self.provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        }
        if self.check == Check::ChainAndName {
            verify_server_name(&parsed, server_name)?;
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
        rustls::Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "its certificate has expired: renew it at the server"
        }
        rustls::Error::InvalidCertificate(_) => "its certificate is refused",
        _ => "the TLS handshake failed",
    }
}
