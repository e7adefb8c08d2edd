//! Provider tokens as text: ES256 over a header and two claims (RFC 7515, RFC 7518 §3.4).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use messages::{Bearer, SigningKeyId, UnixSeconds};
use ring::digest::{SHA256, digest};
use ring::error::Unspecified;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair,
    UnparsedPublicKey,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::{self, PemObject};
use serde::Deserialize;

/// What stands before the token in `authorization` (RFC 6750 §2.1).
const SCHEME: &str = "bearer ";

#[derive(Deserialize)]
struct Claims {
    iat: u64,
}

/// One signing key of a team.
pub(crate) struct Signer {
    id: SigningKeyId,
    key: EcdsaKeyPair,
    random: SystemRandom,
}

impl Signer {
    /// Reads a `.p8` file: PKCS#8 in PEM, an EC key on P-256 together with its public key.
    ///
    /// # Errors
    /// What is wrong with the key and what to do, without anything of the key.
    pub(crate) fn from_pem(id: SigningKeyId, text: &[u8]) -> Result<Self, String> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(text).map_err(|error| match error {
            pem::Error::NoItemsFound => {
                "holds no PKCS#8 private key in PEM: use the .p8 file as Apple gives it out"
                    .to_owned()
            }
            _ => "is no readable PEM: use the .p8 file as Apple gives it out".to_owned(),
        })?;
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            der.secret_pkcs8_der(),
            &random,
        )
        .map_err(|rejected| {
            if lacks_public_key(der.secret_pkcs8_der()) {
                "the key has no public part, which is needed; `openssl ec -in FILE | openssl pkcs8 \
                 -topk8 -nocrypt -out NEW` writes it with one"
                    .to_owned()
            } else {
                format!("{rejected}: no P-256 key; use the .p8 file as Apple gives it out")
            }
        })?;
        Ok(Self { id, key, random })
    }

    /// Whose key this is.
    pub(crate) const fn id(&self) -> &SigningKeyId {
        &self.id
    }

    /// The public key, an uncompressed point.
    pub(crate) fn public_key(&self) -> &[u8] {
        self.key.public_key().as_ref()
    }

    /// What tells this key from others in the name of a file: 16 hexadecimal digits of a digest of the
    /// public key.
    pub(crate) fn fingerprint(&self) -> String {
        let digest = digest(&SHA256, self.public_key());
        let digits = digest.as_ref().iter().take(8);
        digits.map(|byte| format!("{byte:02x}")).collect()
    }

    /// Signs a token with `issued_at` as its `iat`.
    ///
    /// # Errors
    /// The system gave no random bytes.
    pub(crate) fn sign(&self, issued_at: UnixSeconds) -> Result<Bearer, Unspecified> {
        let signed = self.signed(issued_at);
        let signature = self.key.sign(&self.random, signed.as_bytes())?;
        let mut token = format!("{SCHEME}{signed}.");
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Ok(Bearer::new(&token))
    }

    /// The `iat` of a token, if it is one that this key signed.
    pub(crate) fn verify(&self, bearer: &Bearer) -> Option<UnixSeconds> {
        let token = bearer.as_str().strip_prefix(SCHEME)?;
        let (signed, signature) = token.rsplit_once('.')?;
        let (_, claims) = signed.split_once('.')?;
        let claims: Claims = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
        let issued_at = UnixSeconds(claims.iat);
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        let genuine = signed == self.signed(issued_at)
            && UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.public_key())
                .verify(signed.as_bytes(), &signature)
                .is_ok();
        genuine.then_some(issued_at)
    }

    /// Header and claims, which are what is signed.
    fn signed(&self, issued_at: UnixSeconds) -> String {
        let mut signed = String::with_capacity(256);
        let header = format!(r#"{{"alg":"ES256","kid":"{}"}}"#, self.id.key_id);
        URL_SAFE_NO_PAD.encode_string(header, &mut signed);
        signed.push('.');
        let claims = format!(r#"{{"iss":"{}","iat":{}}}"#, self.id.team_id, issued_at.0);
        URL_SAFE_NO_PAD.encode_string(claims, &mut signed);
        signed
    }
}

/// Whether this is a P-256 key without the optional public part (RFC 5915 §3): it is only as long as its
/// fixed parts and the 32 private bytes, and ring calls it no more than badly encoded.
fn lacks_public_key(der: &[u8]) -> bool {
    const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
    const WITH_POINT_BYTES_MIN: usize = 32 + 65;
    der.len() < WITH_POINT_BYTES_MIN && der.windows(P256.len()).any(|part| part == P256)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> SigningKeyId {
        SigningKeyId {
            team_id: "DEF123GHIJ".into(),
            key_id: "ABC123DEFG".into(),
        }
    }

    fn pem(label: &str, der: &[u8]) -> String {
        let body = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
    }

    #[test]
    fn a_token_has_apples_bytes_and_verifies() {
        let pair = rcgen::KeyPair::generate().unwrap();
        let signer = Signer::from_pem(id(), pair.serialize_pem().as_bytes()).unwrap();
        let bearer = signer.sign(UnixSeconds(1_767_225_600)).unwrap();
        let (signed, signature) = bearer
            .as_str()
            .strip_prefix("bearer ")
            .and_then(|token| token.rsplit_once('.'))
            .unwrap();
        assert_eq!(
            signed,
            "eyJhbGciOiJFUzI1NiIsImtpZCI6IkFCQzEyM0RFRkcifQ.\
             eyJpc3MiOiJERUYxMjNHSElKIiwiaWF0IjoxNzY3MjI1NjAwfQ"
        );
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        assert_eq!(signature.len(), 64, "r and s, not DER");
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, signer.public_key())
            .verify(signed.as_bytes(), &signature)
            .unwrap();
        assert_eq!(signer.verify(&bearer), Some(UnixSeconds(1_767_225_600)));
        let other = rcgen::KeyPair::generate().unwrap();
        let other = Signer::from_pem(id(), other.serialize_pem().as_bytes()).unwrap();
        assert_eq!(other.verify(&bearer), None);
    }

    #[track_caller]
    fn check_refused(file: &str, expected: &str) {
        let problem = Signer::from_pem(id(), file.as_bytes()).err().unwrap();
        assert!(problem.contains(expected), "{problem}");
    }

    #[test]
    fn unusable_keys_are_told_by_name() {
        check_refused("", "no PKCS#8 private key");
        check_refused(&pem("CERTIFICATE", b"x"), "no PKCS#8 private key");
        check_refused("-----BEGIN PRIVATE KEY-----\n", "no readable PEM");
        check_refused(&pem("PRIVATE KEY", b"not DER"), "InvalidEncoding");
        let other_curve = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        check_refused(&other_curve.serialize_pem(), "no P-256 key");

        // RFC 5208 with an RFC 5915 key that leaves out the optional public key.
        let mut bare = vec![
            0x30, 0x41, 0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d,
            0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x04, 0x27,
            0x30, 0x25, 0x02, 0x01, 0x01, 0x04, 0x20,
        ];
        bare.extend([7; 32]);
        check_refused(&pem("PRIVATE KEY", &bare), "no public part");
    }
}
