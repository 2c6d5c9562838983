//! OpenSSL reads what our CA writes, and speaks TLS with what our configurations make.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::Arc,
    time::{Duration, SystemTime},
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use carrick_identity::{
    Bundle, EmbeddedCa, Identity, PeerError, TrustStore, peer_id, server_config,
    token::{self, MAX_LIFETIME, TokenError},
};
use carrick_model::{SpiffeId, TrustDomain};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

/// A domain's files as OpenSSL wants them.
struct Files {
    dir: TempDir,
    identity: Identity,
    bundle: Bundle,
}

impl Files {
    fn new(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let ca = EmbeddedCa::open_or_create(dir.path(), &TrustDomain::new(name).unwrap(), now).unwrap();
        let bundle = ca.bundle();
        let id = SpiffeId::new(format!("spiffe://{name}/carrick/gateway")).unwrap();
        let identity = Identity::embedded(ca, id, Duration::from_secs(3_600), now).unwrap();
        fs::write(dir.path().join("root.der"), bundle.roots().next().unwrap()).unwrap();
        fs::write(dir.path().join("leaf.der"), &identity.current().chain()[0]).unwrap();
        fs::write(dir.path().join("key.der"), identity.current().private_key().secret_pkcs8_der()).unwrap();
        let files = Self { dir, identity, bundle };
        for cert in ["root", "leaf"] {
            let (der, pem) = (files.path(&format!("{cert}.der")), files.path(&format!("{cert}.pem")));
            openssl(&["x509", "-inform", "DER", "-in", arg(&der), "-out", arg(&pem)]);
        }
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

fn arg(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// `false`, and a line that says so, where there is no OpenSSL.
fn installed(test: &str) -> bool {
    let found =
        Command::new("openssl").arg("version").stdout(Stdio::null()).status().is_ok_and(|s| s.success());
    if !found {
        println!("SKIPPED {test}: openssl is not installed");
    }
    found
}

#[track_caller]
fn openssl(args: &[&str]) -> String {
    let Output { status, stdout, stderr } = Command::new("openssl").args(args).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "openssl {args:?}: {text}");
    text
}

#[test]
fn openssl_verifies_our_leaf_against_our_root() {
    if !installed("openssl_verifies_our_leaf_against_our_root") {
        return;
    }
    let files = Files::new("a.test");
    let (root, leaf) = (files.path("root.pem"), files.path("leaf.pem"));
    for purpose in ["sslserver", "sslclient"] {
        let verdict =
            openssl(&["verify", "-x509_strict", "-purpose", purpose, "-CAfile", arg(&root), arg(&leaf)]);
        assert!(verdict.contains(": OK"), "{verdict}");
    }
    let names =
        openssl(&["x509", "-in", arg(&leaf), "-noout", "-ext", "subjectAltName,basicConstraints,keyUsage"]);
    for expected in ["URI:spiffe://a.test/carrick/gateway", "CA:FALSE", "Digital Signature"] {
        assert!(names.contains(expected), "{names}");
    }
    let root = openssl(&["x509", "-in", arg(&root), "-noout", "-fingerprint", "-sha256"]);
    let print = root.trim().rsplit('=').next().unwrap().replace(':', "").to_lowercase();
    assert_eq!(files.bundle.fingerprints(), [print]);

    let other = Files::new("b.test");
    let stranger = ["verify", "-CAfile", arg(&other.path("root.pem")), arg(&leaf)].map(str::to_owned);
    assert!(!Command::new("openssl").args(stranger).output().unwrap().status.success());
}

/// An ASN.1 SEQUENCE of two INTEGERs: an ECDSA signature as OpenSSL wants it (RFC 3279 section 2.2.3).
fn der(signature: &[u8]) -> Vec<u8> {
    let integer = |octets: &[u8]| {
        let zeros = octets.iter().take_while(|octet| **octet == 0).count();
        let mut value = octets[zeros..].to_vec();
        if value.first().is_none_or(|octet| octet & 0x80 != 0) {
            value.insert(0, 0);
        }
        [vec![2, value.len() as u8], value].concat()
    };
    let (r, s) = signature.split_at(32);
    let both = [integer(r), integer(s)].concat();
    [vec![0x30, both.len() as u8], both].concat()
}

/// The r and s of an ECDSA signature of OpenSSL's, 32 octets each.
fn raw(der: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = &der[2..];
    for _ in 0..2 {
        let (value, after) = rest[2..].split_at(rest[1].into());
        let value: Vec<u8> = value.iter().copied().skip_while(|octet| *octet == 0).collect();
        out.extend(std::iter::repeat_n(0, 32 - value.len()).chain(value));
        rest = after;
    }
    out
}

#[test]
fn openssl_verifies_our_tokens_and_we_verify_its() {
    if !installed("openssl_verifies_our_tokens_and_we_verify_its") {
        return;
    }
    let files = Files::new("a.test");
    let peer = SpiffeId::new("spiffe://b.test/carrick/gateway").unwrap();
    let jwt = files.identity.mint_token(&peer, MAX_LIFETIME).unwrap().jwt;
    let (signed, signature) = jwt.rsplit_once('.').unwrap();
    let [key, text, sig] = ["public.pem", "signed", "signature"].map(|name| files.path(name));
    fs::write(&key, openssl(&["x509", "-in", arg(&files.path("leaf.pem")), "-noout", "-pubkey"])).unwrap();
    fs::write(&sig, der(&BASE64.decode(signature).unwrap())).unwrap();
    fs::write(&text, signed).unwrap();
    let verify = ["dgst", "-sha256", "-verify", arg(&key), "-signature", arg(&sig), arg(&text)];
    assert!(openssl(&verify).contains("Verified OK"));
    fs::write(&text, format!("{signed}x")).unwrap();
    assert!(!Command::new("openssl").args(verify).output().unwrap().status.success());

    // The other way: a token that OpenSSL signed with our key.
    let claims = BASE64.encode(r#"{"sub":"spiffe://a.test/x","aud":["spiffe://b.test/y"],"exp":4000000000}"#);
    let signed = format!("{}.{claims}", BASE64.encode(r#"{"alg":"ES256","typ":"JWT"}"#));
    fs::write(&text, &signed).unwrap();
    let pkcs8 = files.path("key.der");
    openssl(&["dgst", "-sha256", "-keyform", "DER", "-sign", arg(&pkcs8), "-out", arg(&sig), arg(&text)]);
    let jwt = format!("{signed}.{}", BASE64.encode(raw(&fs::read(&sig).unwrap())));
    let leaf = &files.identity.current().chain()[0].clone();
    assert_eq!(token::verify(&jwt, leaf).unwrap().sub, "spiffe://a.test/x");
    let stranger = Files::new("a.test").identity.current().chain()[0].clone();
    assert_eq!(token::verify(&jwt, &stranger), Err(TokenError::Signature));
}

#[tokio::test]
async fn openssl_talks_to_our_server_with_an_svid_and_is_refused_without_trust() {
    if !installed("openssl_talks_to_our_server_with_an_svid_and_is_refused_without_trust") {
        return;
    }
    let (server, client) = (Files::new("b.test"), Files::new("a.test"));
    let trust = TrustStore::new();
    trust.set(client.bundle.clone()).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(server_config(&server.identity, &trust, &[])));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let s_client = || {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-connect", &address, "-tls1_3", "-quiet", "-verify_return_error"]);
        command.args(["-keyform", "DER", "-key", arg(&client.path("key.der"))]);
        command.args(["-cert", arg(&client.path("leaf.pem")), "-CAfile", arg(&server.path("root.pem"))]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };

    let mut child = s_client();
    let (tcp, _) = listener.accept().await.unwrap();
    let mut stream = acceptor.accept(tcp).await.unwrap();
    assert_eq!(peer_id(stream.get_ref().1.peer_certificates().unwrap()).unwrap(), client.identity.id());
    let mut stdin = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, b"ping\n").unwrap();
    let mut heard = [0; 5];
    stream.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"ping\n");
    stream.write_all(b"pong\n").await.unwrap();
    stream.shutdown().await.unwrap();
    drop((stream, stdin));
    let output = tokio::task::spawn_blocking(|| child.wait_with_output().unwrap()).await.unwrap();
    assert_eq!(output.stdout, b"pong\n", "{}", String::from_utf8_lossy(&output.stderr));

    trust.remove(client.identity.id().trust_domain());
    let child = s_client();
    let (tcp, _) = listener.accept().await.unwrap();
    let err = acceptor.accept(tcp).await.unwrap_err();
    assert!(matches!(PeerError::find_in(&err), Some(PeerError::UnknownTrustDomain { .. })), "{err}");
    let output = tokio::task::spawn_blocking(|| child.wait_with_output().unwrap()).await.unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("alert certificate unknown"), "{text}");
}
