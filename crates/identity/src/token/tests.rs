use proptest::prelude::*;

use super::{policy, *};
use crate::{Caller, EmbeddedCa, Identity, PeerCertificate, Svid, token::policy::Policy};

struct Mesh {
    _dir: tempfile::TempDir,
    ca: EmbeddedCa,
    now: SystemTime,
}

impl Mesh {
    fn new() -> Self {
        let (dir, now) = (tempfile::tempdir().unwrap(), SystemTime::now());
        let td = carrick_model::TrustDomain::new("a.test").unwrap();
        let ca = EmbeddedCa::open_or_create(dir.path(), &td, now).unwrap();
        Self { _dir: dir, ca, now }
    }

    fn svid(&self, name: &str) -> Svid {
        self.ca.issue(&id(name), Duration::from_secs(3_600), self.now).unwrap()
    }

    fn token(&self, from: &Svid, to: &str) -> String {
        from.mint_token(&id(to), MAX_LIFETIME, self.now).unwrap().jwt
    }
}

fn id(name: &str) -> SpiffeId {
    SpiffeId::new(format!("spiffe://a.test/{name}")).unwrap()
}

fn certificate(svid: &Svid) -> PeerCertificate {
    PeerCertificate::of(svid.chain()).unwrap()
}

fn unsigned(header: &str, claims: &str) -> String {
    format!("{}.{}.{}", BASE64.encode(header), BASE64.encode(claims), BASE64.encode([0; 64]))
}

#[test]
fn a_token_says_who_for_whom_and_until_when_and_verifies_against_the_leaf_only() {
    let mesh = Mesh::new();
    let (a, b) = (mesh.svid("a"), mesh.svid("b"));
    let token = a.mint_token(b.id(), MAX_LIFETIME, mesh.now).unwrap();
    let end = mesh.now + MAX_LIFETIME;
    assert_eq!(token.expires, end);
    let seconds = end.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let exp = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
    let claims = Claims { sub: "spiffe://a.test/a".into(), aud: vec!["spiffe://a.test/b".into()], exp };
    assert_eq!(decode(&token.jwt), Ok(claims.clone()));
    assert_eq!(verify(&token.jwt, &a.chain()[0]), Ok(claims));
    assert_eq!(verify(&token.jwt, &b.chain()[0]), Err(TokenError::Signature));

    let header = BASE64.decode(token.jwt.split('.').next().unwrap()).unwrap();
    assert_eq!(header, br#"{"alg":"ES256","typ":"JWT"}"#, "no key id, nothing else");
    let claims = BASE64.decode(token.jwt.split('.').nth(1).unwrap()).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    assert_eq!(
        claims,
        json!({"sub": "spiffe://a.test/a", "aud": ["spiffe://a.test/b"], "exp": seconds}),
        "these three claims, `aud` an array and `exp` whole"
    );
}

#[test]
fn a_token_ends_with_the_svid_and_is_told_to_end_with_the_peers_certificate() {
    let mesh = Mesh::new();
    let soon = mesh.ca.issue(&id("soon"), Duration::from_secs(60), mesh.now).unwrap();
    let token = soon.mint_token(&id("b"), MAX_LIFETIME, mesh.now).unwrap();
    assert_eq!(token.expires, soon.not_after(), "an hour's token of a minute's SVID lasts a minute");

    let long = std::sync::Arc::new(mesh.svid("long"));
    let caller = Caller::new(certificate(&soon), long.clone());
    let identity = Identity::embedded(mesh.ca, id("long"), Duration::from_secs(3_600), mesh.now).unwrap();
    let token = caller.mint_token(&identity, MAX_LIFETIME, mesh.now).unwrap();
    let whole = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    assert_eq!(whole(token.expires), whole(soon.not_after()));
    let claims = verify(&token.jwt, &long.chain()[0]).expect("signed by the SVID that the caller saw");
    assert_eq!(whole(claims.exp.unwrap()), whole(mesh.now + MAX_LIFETIME), "the claim is not capped");

    let later = long.not_after() + Duration::from_secs(1);
    identity.rotate(later).unwrap();
    let token = caller.mint_token(&identity, MAX_LIFETIME, later).unwrap();
    assert!(verify(&token.jwt, &identity.current().chain()[0]).is_ok(), "a dead SVID signs nothing");
}

#[test]
fn forgeries_have_a_name() {
    let mesh = Mesh::new();
    let a = mesh.svid("a");
    let leaf = &a.chain()[0];
    let jwt = mesh.token(&a, "b");
    let (signed, signature) = jwt.rsplit_once('.').unwrap();
    let (header, _) = signed.split_once('.').unwrap();
    let claims =
        BASE64.encode(r#"{"sub":"spiffe://a.test/root","aud":["spiffe://a.test/b"],"exp":9999999999}"#);
    assert_eq!(verify(&format!("{header}.{claims}.{signature}"), leaf), Err(TokenError::Signature));
    assert_eq!(verify(&format!("{signed}."), leaf), Err(TokenError::Signature));
    assert_eq!(verify(&unsigned(r#"{"alg":"none"}"#, "{}"), leaf), Err(TokenError::Algorithm));
    assert_eq!(verify(&unsigned(r#"{"alg":"HS256"}"#, "{}"), leaf), Err(TokenError::Algorithm));
    assert_eq!(verify(&jwt, &CertificateDer::from(vec![1])), Err(TokenError::CertificateKey));
    assert_eq!(decode(""), Err(TokenError::Missing));
    assert_eq!(decode(&"x".repeat(MAX_TOKEN + 1)), Err(TokenError::TooLong(MAX_TOKEN + 1)));
    for bad in ["a", "a.b", "a.b.c.d", "..", "e30.e30.=", "W10.e30.", "e30.W10.", "é.é.é"] {
        assert!(matches!(decode(bad), Err(TokenError::Malformed(_))), "{bad}");
    }
    for claims in [r#"{"sub":1}"#, r#"{"exp":"9"}"#, r#"{"exp":1e300}"#, r#"{"exp":18446744073709551615}"#] {
        assert!(matches!(decode(&unsigned("{}", claims)), Err(TokenError::Malformed(_))), "{claims}");
    }
}

#[test]
fn what_a_token_does_not_say_is_nothing() {
    let said = decode(&unsigned("{}", "{}")).unwrap();
    assert_eq!(said, Claims { sub: String::new(), aud: vec![], exp: None });
    let said = decode(&unsigned("{}", r#"{"aud":"spiffe://a.test/b","exp":-5.5}"#)).unwrap();
    assert_eq!((said.aud.len(), said.exp), (0, Some(SystemTime::UNIX_EPOCH)), "one text is no array");
}

fn denied<T: std::fmt::Debug>(result: Result<T, policy::Denial>, policy: Policy) -> String {
    let denial = result.expect_err("a denial");
    assert_eq!(denial.policy, policy, "{denial}");
    let text = denial.to_string();
    assert!(text.ends_with("no sufficient privileges"), "{text}");
    text
}

#[test]
fn a_chain_of_fresh_tokens_passes_on_both_sides() {
    let mesh = Mesh::new();
    let (a, b, c) = (mesh.svid("a"), mesh.svid("b"), mesh.svid("c"));
    let path = [mesh.token(&a, "b"), mesh.token(&b, "c"), mesh.token(&c, "b")];
    let (to_b, to_c) = ([path[0].clone(), mesh.token(&b, "a")], &path);
    policy::on_request(&to_b, 1, Some(&certificate(&a)), mesh.now).unwrap();
    policy::on_request(to_c, 2, Some(&certificate(&b)), mesh.now).unwrap();
    policy::on_answer(&path, 0, Some(&certificate(&b)), mesh.now).unwrap();
    policy::on_answer(&path, 1, Some(&certificate(&c)), mesh.now).unwrap();
}

#[test]
fn a_certificate_that_remembers_a_token_believes_no_other() {
    let mesh = Mesh::new();
    let (a, evil) = (mesh.svid("a"), mesh.svid("evil"));
    let leaf = certificate(&a);
    let good = mesh.token(&a, "b");
    for _ in 0..2 {
        assert_eq!(leaf.verify(&good).unwrap().sub, "spiffe://a.test/a");
        assert_eq!(leaf.verify(&mesh.token(&evil, "b")), Err(TokenError::Signature));
        let (body, signature) = good.rsplit_once('.').unwrap();
        let other = format!("{}.{signature}", &body[..body.len() - 2]);
        assert!(leaf.verify(&other).is_err(), "the signature of another token");
    }
    assert_eq!(certificate(&evil).verify(&good), Err(TokenError::Signature), "another certificate");
}

#[test]
fn tokens_of_one_second_are_signed_once() {
    let mesh = Mesh::new();
    let of_a = certificate(&mesh.svid("a"));
    let own = Identity::embedded(mesh.ca, id("own"), Duration::from_secs(3_600), mesh.now).unwrap();
    let caller = Caller::new(of_a, own.current());
    let whole = SystemTime::UNIX_EPOCH
        + Duration::from_secs(mesh.now.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() + 1);
    let mint =
        |after| caller.clone().mint_token(&own, MAX_LIFETIME, whole + Duration::from_millis(after)).unwrap();
    let (first, same, next) = (mint(0), mint(999), mint(1000));
    assert_eq!(first.jwt, same.jwt);
    assert!(same.expires > first.expires, "what is told beside it is exact");
    assert_ne!(first.jwt, next.jwt);
    for token in [&first, &next] {
        let claims = verify(&token.jwt, &own.current().chain()[0]).unwrap();
        assert_eq!(
            (claims.sub.as_str(), claims.aud),
            ("spiffe://a.test/own", vec!["spiffe://a.test/a".to_owned()])
        );
    }
}

#[test]
fn each_policy_denies_what_it_is_for() {
    let mesh = Mesh::new();
    let (a, b, evil) = (mesh.svid("a"), mesh.svid("b"), mesh.svid("evil"));
    let good = [mesh.token(&a, "b"), mesh.token(&b, "a")];
    let from_a = certificate(&a);
    let check = |tokens: &[String], at| policy::on_request(tokens, 1, Some(&from_a), at);

    check(&good, mesh.now).unwrap();
    denied(check(&["".into(), good[1].clone()], mesh.now), Policy::TokensValid);
    let late = denied(check(&good, mesh.now + Duration::from_secs(660)), Policy::TokensExpired);
    assert!(late.contains("segment 0 ended 60 s ago") || late.contains("segment 0 ended 61 s ago"), "{late}");
    check(&good, mesh.now - Duration::from_secs(86_400)).unwrap();
    let endless = unsigned(r#"{"alg":"ES256"}"#, r#"{"sub":"spiffe://a.test/a"}"#);
    denied(check(&[endless, good[1].clone()], mesh.now), Policy::TokensExpired);
    let elsewhere = mesh.token(&a, "other");
    denied(check(&[elsewhere, good[1].clone()], mesh.now), Policy::TokensChained);
    let forged = mesh.token(&evil, "b");
    denied(check(&[forged.clone(), good[1].clone()], mesh.now), Policy::PrevTokenSigned);

    denied(policy::prev_token_signed(&good, 0, Some(&from_a)), Policy::PrevTokenSigned);
    denied(policy::prev_token_signed(&good, usize::MAX, Some(&from_a)), Policy::PrevTokenSigned);
    denied(policy::prev_token_signed(&good, 1, None), Policy::PrevTokenSigned);
    denied(policy::next_token_signed(&good, 1, Some(&from_a)), Policy::NextTokenSigned);
    denied(policy::next_token_signed(&good, usize::MAX, Some(&from_a)), Policy::NextTokenSigned);
    policy::next_token_signed(&good, 0, Some(&certificate(&b))).unwrap();
}

#[test]
fn a_neighbour_speaks_for_itself_only() {
    let mesh = Mesh::new();
    let (a, b) = (mesh.svid("a"), mesh.svid("b"));
    // `a` signs, with its own key, a token that says it is `victim`.
    let key = EcdsaKeyPair::from_pkcs8(
        &aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED_SIGNING,
        a.private_key().secret_pkcs8_der(),
    )
    .unwrap();
    let lie = mint(&key, &id("victim"), &id("b"), mesh.now + MAX_LIFETIME).unwrap().jwt;
    let path = [lie, mesh.token(&b, "a")];
    policy::prev_token_signed(&path, 1, Some(&certificate(&a))).expect("NSM's own policy takes it");
    let text = denied(policy::on_request(&path, 1, Some(&certificate(&a)), mesh.now), Policy::TokenSubject);
    assert!(text.contains("`spiffe://a.test/victim`") && text.contains("`spiffe://a.test/a`"), "{text}");
}

#[test]
fn fewer_than_two_tokens_are_chained_and_no_tokens_are_valid() {
    policy::tokens_chained::<String>(&[]).unwrap();
    policy::tokens_chained(&["garbage"]).unwrap();
    policy::tokens_valid::<String>(&[]).unwrap();
    denied(policy::tokens_chained(&["garbage", "garbage"]), Policy::TokensChained);
    // Tokens that name nobody do not chain, even if both say the empty text.
    let nobody = unsigned("{}", r#"{"sub":"","aud":[""]}"#);
    denied(policy::tokens_chained(&[&nobody, &nobody]), Policy::TokensChained);
}

#[test]
fn a_name_is_its_first_registrants() {
    let ids = |list: &[&str]| list.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
    policy::client_allowed("nse", None, "spiffe://a.test/x").unwrap();
    let held = ids(&["spiffe://a.test/x", "spiffe://a.test/nsmgr"]);
    policy::client_allowed("nse", Some(&held), "spiffe://a.test/x").unwrap();
    let other = policy::client_allowed("nse", Some(&held), "spiffe://a.test/nsmgr");
    assert!(denied(other, Policy::ClientAllowed).contains("`nse` is registered by another identity"));
    denied(policy::client_allowed("nse", Some(&[]), ""), Policy::ClientAllowed);
}

#[test]
fn a_call_carries_one_token_and_one_expiry() {
    let read = |tokens: &[&str], expires: &[&str]| {
        Presented::read(tokens.iter().map(|t| t.as_bytes()), expires.iter().map(|e| e.as_bytes()))
    };
    let at = SystemTime::UNIX_EPOCH + Duration::new(1_800_000_000, 123_456_789);
    assert_eq!(format_expires(at), "2027-01-15T08:00:00.123456789Z");
    let presented = Ok(Presented { jwt: "a.b.c".into(), expires: at });
    assert_eq!(read(&["a.b.c"], &["2027-01-15T08:00:00.123456789Z"]), presented);
    assert_eq!(
        read(&["a.b.c"], &["2027-01-15T10:00:00.123456789+02:00"]),
        presented,
        "Go writes its own zone"
    );
    assert_eq!(read(&[], &[""]), Err(PresentedError::Count { key: TOKEN_KEY, count: 0 }));
    assert_eq!(read(&["a"], &["", "", ""]), Err(PresentedError::Count { key: EXPIRES_KEY, count: 3 }));
    for bad in ["", "soon", "1969-12-31T23:59:59Z", "2027-01-15", "2027-02-30T00:00:00Z", &"2".repeat(1000)] {
        assert_eq!(read(&["a"], &[bad]), Err(PresentedError::Expires), "{bad}");
    }
    assert_eq!(read(&[&"a".repeat(MAX_TOKEN + 1)], &["2027-01-15T08:00:00Z"]), Err(PresentedError::Token));
    assert_eq!(read(&["é"], &["2027-01-15T08:00:00Z"]), Err(PresentedError::Token));
}

fn path(index: u32, tokens: &[&str]) -> TokenPath {
    let segments: Vec<String> = tokens.iter().map(|t| format!(r#"{{"token":"{t}"}}"#)).collect();
    let header = format!(r#"{{"Index":{index},"PathSegments":[{}]}}"#, segments.join(","));
    let path = TokenPath::parse(header.as_bytes()).unwrap();
    assert_eq!(path.to_header(), header, "written as NSM writes it");
    path
}

#[test]
fn a_registration_gathers_a_token_of_each_hop_and_refreshes_them() {
    let mut p = TokenPath::parse(br#"{"Index":0,"PathSegments":null}"#).unwrap();
    assert_eq!(p.advance("nse", "mgr"), Ok(0));
    assert_eq!(p, path(1, &["nse", "mgr"]));
    assert_eq!(p.advance("mgr>reg", "reg"), Ok(1));
    assert_eq!(p, path(2, &["nse", "mgr>reg", "reg"]));
    p.restore(1);
    p.restore(0);
    assert_eq!(p.advance("nse2", "mgr2"), Ok(0), "the client sends back what it was answered");
    assert_eq!(p, path(1, &["nse2", "mgr2", "reg"]));
    assert_eq!(p.left(), ["nse2", "mgr2"]);
}

#[test]
fn headers_are_read_as_go_reads_them() {
    let same = path(1, &["a", "b"]);
    for header in [
        r#"{"index":1,"pathsegments":[{"Token":"a"},{"TOKEN":"b","name":"x"}],"more":{"x":[1]}}"#,
        r#"{"Index":7,"INDEX":1,"PathSegments":[{"token":"z"}],"pathSegments":[{"token":"a"},{"token":"b"}]}"#,
    ] {
        assert_eq!(TokenPath::parse(header.as_bytes()), Ok(same.clone()), "{header}");
    }
    assert_eq!(TokenPath::parse(b"{}"), Ok(TokenPath::default()));
}

#[test]
fn bad_headers_have_a_name() {
    let parse = |header: &str| TokenPath::parse(header.as_bytes()).unwrap_err();
    for bad in
        ["", "[]", "1", "null", r#"{"Index":-1}"#, r#"{"Index":4294967296}"#, r#"{"PathSegments":[null]}"#]
    {
        assert!(matches!(parse(bad), TokenPathError::Json { .. }), "{bad}");
    }
    let bomb = format!(r#"{{"x":{}"#, "[".repeat(10_000));
    assert!(matches!(parse(&bomb), TokenPathError::Json { .. }), "nesting is bounded");
    let many = format!(r#"{{"PathSegments":[{}{{}}]}}"#, "{},".repeat(MAX_TOKENS));
    assert_eq!(parse(&many), TokenPathError::TooManyTokens);
    assert_eq!(parse(&" ".repeat(MAX_PATH_HEADER + 1)), TokenPathError::HeaderTooLong(MAX_PATH_HEADER + 1));
    assert_eq!(parse(r#"{"PathSegments":[{},{"token":"a\nb"}]}"#), TokenPathError::Token(1));
    assert_eq!(parse(r#"{"PathSegments":[{"token":"é"}]}"#), TokenPathError::Token(0));

    let index = |index, length| Err(TokenPathError::Index { index, length });
    assert_eq!(path(2, &["a", "b"]).advance("p", "o"), index(2, 2));
    assert_eq!(path(u32::MAX, &["a"]).advance("p", "o"), index(u32::MAX, 1));
    let full = vec!["a"; MAX_TOKENS];
    assert_eq!(path(63, &full).advance("p", "o"), Err(TokenPathError::TooManyTokens));
}

#[test]
fn path_ids_name_the_caller_and_us() {
    let mut ids = vec![];
    update_path_ids(&mut ids, 1, "nse", "mgr");
    assert_eq!(ids, ["nse", "mgr"]);
    update_path_ids(&mut ids, 2, "mgr", "reg");
    assert_eq!(ids, ["nse", "mgr", "reg"]);
    update_path_ids(&mut ids, 1, "nse", "mgr");
    assert_eq!(ids, ["nse", "mgr", "reg"]);
    let mut ids = vec![];
    update_path_ids(&mut ids, u32::MAX, "x", "y");
    assert_eq!(ids, ["x", "y"]);
}

proptest! {
    /// Whatever comes in: no panic, an error or what was meant.
    #[test]
    fn no_text_makes_decoding_panic(text in "\\PC{0,200}", parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 3)) {
        let _ = decode(&text);
        let jwt = parts.iter().map(|p| BASE64.encode(p)).collect::<Vec<_>>().join(".");
        let _ = decode(&jwt);
        let _ = verify(&jwt, &CertificateDer::from(parts[0].clone()));
    }

    #[test]
    fn no_octets_make_a_header_panic_and_what_is_read_is_written_the_same(octets in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(path) = TokenPath::parse(&octets) {
            prop_assert_eq!(TokenPath::parse(path.to_header().as_bytes()), Ok(path));
        }
    }

    /// One step on and back touches the caller's token and ours only, keeps the length or adds one, and gives the caller
    /// its index again.
    #[test]
    fn a_step_touches_two_tokens(tokens in prop::collection::vec("[a-z]{0,3}", 0..6), index in 0u32..8) {
        let before = path(index, &tokens.iter().map(String::as_str).collect::<Vec<_>>());
        let mut after = before.clone();
        match after.advance("PEER", "OWN") {
            Err(_) => {
                prop_assert_eq!(after, before);
                prop_assert!(index as usize >= tokens.len());
            }
            Ok(caller) => {
                let at = after.index() as usize;
                prop_assert_eq!(at, caller as usize + 1);
                prop_assert_eq!(after.tokens()[at - 1].as_str(), "PEER");
                prop_assert_eq!(after.tokens()[at].as_str(), "OWN");
                prop_assert_eq!(after.left().len(), at + 1);
                for (i, token) in tokens.iter().enumerate().filter(|(i, _)| *i + 1 != at && *i != at) {
                    prop_assert_eq!(&after.tokens()[i], token);
                }
                after.restore(caller);
                let length = after.tokens().len();
                prop_assert!(after.advance("PEER", "OWN").is_ok());
                prop_assert_eq!(after.tokens().len(), length, "a refresh makes it no longer");
            }
        }
    }
}
