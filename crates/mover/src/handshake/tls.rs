//! TLS 1.3 for one pair, through the QUIC interface of rustls: who may answer, with which
//! algorithms, and what comes out.
//!
//! Takes whole streams of TLS messages from the machines and gives them the streams to send, then
//! the secrets of the session. The far side is known by one thing only: that it signs with the
//! public key pinned for it.
//!
//! TLS is the one part of the mover that draws from the operating system's randomness: rustls takes
//! the randoms of its hellos and the key shares (X25519MLKEM768) from aws-lc, and must not take
//! them from a seed. Lengths do not depend on them, so a run with the same seed sends the same
//! datagrams at the same times. The session's secrets do, and with them which side steps its key
//! phase first. TLS reads no clock here (`NoClock`).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::aws_lc_rs::cipher_suite::{
    TLS13_AES_128_GCM_SHA256, TLS13_CHACHA20_POLY1305_SHA256,
};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::quic::{ClientConnection, Connection, KeyChange, Keys, ServerConnection, Version};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::version::TLS13;
use rustls::{
    CertificateError, CipherSuite, ClientConfig, DigitallySignedStruct, DistinguishedName, Error,
    ServerConfig, SignatureScheme,
};
use zeroize::Zeroize;

use crate::crypto::Suite;
use crate::identity::{Identity, PublicKey};

const PROTOCOL: &[u8] = b"tpo/1";
const EXPORT_LABEL: &[u8] = b"tpo session";

/// What every attempt with one peer shares.
pub(super) struct Configs {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

/// One TLS connection, on either side.
pub(super) struct Tls {
    connection: Connection,
    /// Of the handshake level, once known.
    keys: Option<Keys>,
}

/// What TLS wants to send.
#[derive(Default)]
pub(super) struct Output {
    pub(super) initial: Vec<u8>,
    pub(super) handshake: Vec<u8>,
}

/// What a finished handshake leaves behind, in the view of this side.
pub(super) struct Outcome {
    pub(super) suite: Suite,
    pub(super) send_secret: [u8; 32],
    pub(super) recv_secret: [u8; 32],
    pub(super) peer_params: Vec<u8>,
}

impl Configs {
    pub(super) fn new(identity: &Identity, peer: &PublicKey) -> Configs {
        let (provider, prefers_own_order) = provider();
        let provider = Arc::new(provider);
        let spki = identity.public_key().spki();
        let certificate = CertificateDer::from(spki.as_ref().to_vec());
        let own = Arc::new(CertifiedKey::new(vec![certificate], identity.signing_key()));
        let pinned = Arc::new(Pinned {
            spki: peer.spki(),
            algorithms: provider.signature_verification_algorithms,
        });

        let mut client = ClientConfig::builder_with_details(provider.clone(), Arc::new(NoClock))
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has suites for TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(pinned.clone())
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(
                own.clone(),
            )));
        client.alpn_protocols = vec![PROTOCOL.to_vec()];
        client.enable_sni = false;
        client.resumption = Resumption::disabled();

        let mut server = ServerConfig::builder_with_details(provider, Arc::new(NoClock))
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has suites for TLS 1.3")
            .with_client_cert_verifier(pinned)
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(own)));
        server.alpn_protocols = vec![PROTOCOL.to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server.ignore_client_order = prefers_own_order;

        Configs {
            client: Arc::new(client),
            server: Arc::new(server),
        }
    }

    pub(super) fn start(&self, params: Vec<u8>) -> (Tls, Output) {
        let name = ServerName::try_from("tpo").expect("a host name; it is never sent");
        let connection = ClientConnection::new(self.client.clone(), Version::V1, name, params);
        let connection =
            Connection::Client(connection.expect("the configuration is made for QUIC"));
        let mut tls = Tls {
            connection,
            keys: None,
        };
        let output = tls.write();
        (tls, output)
    }

    pub(super) fn answer(&self, params: Vec<u8>) -> Tls {
        let connection = ServerConnection::new(self.server.clone(), Version::V1, params);
        let connection =
            Connection::Server(connection.expect("the configuration is made for QUIC"));
        Tls {
            connection,
            keys: None,
        }
    }
}

impl Tls {
    /// Takes a whole stream of one level and gives what TLS answers.
    pub(super) fn read(&mut self, stream: &[u8]) -> Result<Output, Error> {
        self.connection.read_hs(stream)?;
        Ok(self.write())
    }

    pub(super) fn has_keys(&self) -> bool {
        self.keys.is_some()
    }

    /// Seals a fragment of the handshake level; appends its tag. Once for each offset: the offset
    /// is the nonce.
    pub(super) fn seal(&self, offset: u16, aad: &[u8], fragment: &mut Vec<u8>) {
        let keys = self
            .keys
            .as_ref()
            .expect("TLS gives the keys before anything to seal with them");
        let tag = keys
            .local
            .packet
            .encrypt_in_place(u64::from(offset), aad, fragment);
        fragment.extend_from_slice(
            tag.expect("a fragment is far shorter than an AEAD may seal")
                .as_ref(),
        );
    }

    /// Opens a fragment of the handshake level; None if its tag does not fit.
    pub(super) fn open<'a>(
        &self,
        offset: u16,
        aad: &[u8],
        sealed: &'a mut [u8],
    ) -> Option<&'a [u8]> {
        self.keys
            .as_ref()?
            .remote
            .packet
            .decrypt_in_place(u64::from(offset), aad, sealed)
            .ok()
    }

    /// None until the handshake has ended.
    pub(super) fn outcome(&self) -> Option<Outcome> {
        if self.connection.is_handshaking() || self.connection.alpn_protocol() != Some(PROTOCOL) {
            return None;
        }
        let suite = match self.connection.negotiated_cipher_suite()?.suite() {
            CipherSuite::TLS13_AES_128_GCM_SHA256 => Suite::Aes128Gcm,
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => Suite::ChaCha20Poly1305,
            _ => return None,
        };
        let export = |context| {
            self.connection
                .export_keying_material([0; 32], EXPORT_LABEL, Some(context))
                .ok()
        };
        let (client, server) = (export(b"c")?, export(b"s")?);
        let (send_secret, recv_secret) = match self.connection {
            Connection::Client(_) => (client, server),
            Connection::Server(_) => (server, client),
        };
        let peer_params = self
            .connection
            .quic_transport_parameters()
            .unwrap_or_default()
            .to_vec();
        Some(Outcome {
            suite,
            send_secret,
            recv_secret,
            peer_params,
        })
    }

    fn write(&mut self) -> Output {
        let mut output = Output::default();
        loop {
            let mut bytes = Vec::new();
            let change = self.connection.write_hs(&mut bytes);
            let stream = if self.keys.is_none() {
                &mut output.initial
            } else {
                &mut output.handshake
            };
            stream.append(&mut bytes);
            match change {
                Some(KeyChange::Handshake { keys }) => self.keys = Some(keys),
                // The session has its own keys, from the exporter; nothing more of TLS is sent
                // under these.
                Some(KeyChange::OneRtt { .. }) => {}
                None => return output,
            }
        }
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        self.send_secret.zeroize();
        self.recv_secret.zeroize();
    }
}

/// Our algorithms, and whether as the server we insist on our order. AES is the faster where the
/// processor helps with it; where it does not, on either side, ChaCha20 is, and does not leak keys
/// through the cache.
fn provider() -> (CryptoProvider, bool) {
    let aes = has_aes_instructions();
    let mut cipher_suites = vec![TLS13_AES_128_GCM_SHA256, TLS13_CHACHA20_POLY1305_SHA256];
    if !aes {
        cipher_suites.reverse();
    }
    let kx_groups = vec![aws_lc_rs::kx_group::X25519MLKEM768];
    (
        CryptoProvider {
            cipher_suites,
            kx_groups,
            ..aws_lc_rs::default_provider()
        },
        !aes,
    )
}

fn has_aes_instructions() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// Accepts exactly one raw public key, on either side.
struct Pinned {
    spki: SubjectPublicKeyInfoDer<'static>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Pinned {
    fn check(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Result<(), Error> {
        if end_entity.as_ref() == self.spki.as_ref() && intermediates.is_empty() {
            Ok(())
        } else {
            Err(Error::InvalidCertificate(
                CertificateError::ApplicationVerificationFailure,
            ))
        }
    }

    /// Against the pinned key itself, whatever was presented.
    fn check_signature(
        &self,
        message: &[u8],
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if dss.scheme != SignatureScheme::ED25519 {
            return Err(Error::InvalidCertificate(CertificateError::BadSignature));
        }
        verify_tls13_signature_with_raw_key(message, &self.spki, dss, &self.algorithms)
    }
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pinned").finish_non_exhaustive()
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity, intermediates)
            .map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::InvalidCertificate(CertificateError::BadSignature))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        _cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Pinned {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity, intermediates)
            .map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::InvalidCertificate(CertificateError::BadSignature))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        _cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// Pinned keys do not expire and tickets are not given out, so TLS needs no time; this keeps it
/// from reading the clock.
#[derive(Debug)]
struct NoClock;

impl TimeProvider for NoClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::ZERO))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_pinned_key_is_accepted_and_nothing_beside_it() {
        let [one, two] = [[1; 32], [2; 32]].map(PublicKey::from_bytes);
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        let pinned = Pinned {
            spki: one.spki(),
            algorithms,
        };
        let certificate = |key: &PublicKey| CertificateDer::from(key.spki().as_ref().to_vec());
        assert!(pinned.check(&certificate(&one), &[]).is_ok());
        assert!(pinned.check(&certificate(&two), &[]).is_err());
        assert!(
            pinned
                .check(&certificate(&one), &[certificate(&two)])
                .is_err()
        );
    }

    #[test]
    fn only_the_hybrid_group_and_two_suites_are_offered() {
        let (provider, _) = provider();
        let groups: Vec<_> = provider
            .kx_groups
            .iter()
            .map(|group| group.name())
            .collect();
        assert_eq!(groups, [rustls::NamedGroup::X25519MLKEM768]);
        let mut suites: Vec<_> = provider
            .cipher_suites
            .iter()
            .map(|suite| suite.suite())
            .collect();
        suites.sort_by_key(|suite| u16::from(*suite));
        assert_eq!(
            suites,
            [
                CipherSuite::TLS13_AES_128_GCM_SHA256,
                CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
            ]
        );
    }
}
