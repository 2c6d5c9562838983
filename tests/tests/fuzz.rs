//! The fuzz targets, on the stable compiler and without libFuzzer: each gets valid inputs, damaged ones and noise for a
//! moment, so that none of them rots between the days on which somebody fuzzes for hours (`just fuzz`).
//!
//! An input that fails is printed whole; `CARRICK_FUZZ_SECONDS` makes it a longer moment.
#![allow(clippy::unwrap_used, clippy::expect_used, unreachable_pub, reason = "test code")]

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant, SystemTime},
};

use carrick_gateway_core::{FlowHeader, HeaderKind, TraceContext, control, datagram};
use carrick_identity::{EmbeddedCa, Identity, token::TokenPath};
use carrick_model::{ConnectionId, SpiffeId, TrustDomain};
use carrick_registry::store::StoredRecord;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

#[path = "../fuzz/targets/bundle.rs"]
mod bundle;
#[path = "../fuzz/targets/config.rs"]
mod config;
#[path = "../fuzz/targets/flow_header.rs"]
mod flow_header;
#[path = "../fuzz/targets/stored_record.rs"]
mod stored_record;
#[path = "../fuzz/targets/token.rs"]
mod token;
#[path = "../fuzz/targets/tunnel_messages.rs"]
mod tunnel_messages;

/// For each target, unless the environment says more.
const MOMENT: Duration = Duration::from_secs(2);
/// Longest input of pure noise.
const NOISE: usize = 512;
/// Most changes to one input.
const CHANGES: usize = 8;

/// Feeds the target until the moment is over. Each valid input comes as it is first.
fn feed(target: fn(&[u8]), corpus: &[Vec<u8>]) {
    let seconds = std::env::var("CARRICK_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    let until = Instant::now() + seconds.map_or(MOMENT, Duration::from_secs);
    let mut random = StdRng::from_os_rng();
    for input in corpus {
        check(target, input);
    }
    let mut count = corpus.len();
    while Instant::now() < until {
        let mut input = match corpus.choose(&mut random) {
            Some(valid) if random.random_ratio(7, 8) => valid.clone(),
            _ => (0..random.random_range(0..NOISE)).map(|_| random.random()).collect(),
        };
        for _ in 0..random.random_range(0..CHANGES) {
            damage(&mut input, corpus, &mut random);
        }
        check(target, &input);
        count += 1;
    }
    assert!(count > 100, "only {count} inputs in {MOMENT:?}");
}

/// Changes, removes, repeats, or splices in what comes from another input.
fn damage(input: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut StdRng) {
    let at = random.random_range(0..=input.len());
    let to = (at + random.random_range(0..16)).min(input.len());
    match random.random_range(0..6) {
        0 if at < input.len() => input[at] = random.random(),
        1 if at < input.len() => input[at] ^= 1 << random.random_range(0..8),
        2 => drop(input.drain(at..to)),
        3 => input.truncate(at),
        4 => {
            let again = input[at..to].to_vec();
            drop(input.splice(at..at, again));
        }
        _ => {
            let Some(other) = corpus.choose(random) else { return };
            let from = random.random_range(0..=other.len());
            let part = other[from..].iter().copied().take(32).collect::<Vec<_>>();
            drop(input.splice(at..to, part));
        }
    }
}

fn check(target: fn(&[u8]), input: &[u8]) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(input))) {
        eprintln!("this input fails: {input:?}\nas text: {:?}", String::from_utf8_lossy(input));
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn flow_headers() {
    let caller = SpiffeId::new("spiffe://a.test/ns/x/sa/y").unwrap();
    let trace = TraceContext { trace_id: [7; 16], span_id: [9; 8], flags: 1 };
    let mut corpus = Vec::new();
    for (caller, trace) in
        [(None, None), (Some(caller.clone()), None), (None, Some(trace)), (Some(caller), Some(trace))]
    {
        for kind in [HeaderKind::Stream, HeaderKind::Datagrams] {
            let header =
                FlowHeader { kind, connection: ConnectionId::random(), caller: caller.clone(), trace };
            let mut octets = Vec::new();
            header.encode(&mut octets);
            corpus.push(octets);
        }
    }
    feed(flow_header::run, &corpus);
}

#[test]
fn messages_of_a_tunnel() {
    let mut corpus = Vec::new();
    for flow in [0, 63, 64, 16_383, 16_384, 1 << 30, (1 << 62) - 1] {
        let mut octets = Vec::new();
        datagram::put_flow_number(flow, &mut octets);
        octets.extend(b"payload");
        corpus.push(octets);
    }
    for message in [control::Message::Drain, control::Message::Revoke(ConnectionId::random())] {
        let mut octets = Vec::new();
        message.encode(&mut octets);
        corpus.push(octets);
    }
    feed(tunnel_messages::run, &corpus);
}

#[test]
fn configs() {
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples");
    let corpus: Vec<Vec<u8>> = std::fs::read_dir(examples)
        .unwrap()
        .map(|entry| std::fs::read(entry.unwrap().path()).unwrap())
        .collect();
    assert!(!corpus.is_empty());
    feed(config::run, &corpus);
}

#[test]
fn bundles() {
    let dir = tempfile::tempdir().unwrap();
    let trust_domain = TrustDomain::new("a.test").unwrap();
    let ca = EmbeddedCa::open_or_create(dir.path(), &trust_domain, SystemTime::now()).unwrap();
    feed(bundle::run, &[ca.bundle().to_spiffe_json().into_bytes()]);
}

#[test]
fn tokens_and_path_headers() {
    let dir = tempfile::tempdir().unwrap();
    let trust_domain = TrustDomain::new("a.test").unwrap();
    let now = SystemTime::now();
    let ca = EmbeddedCa::open_or_create(dir.path(), &trust_domain, now).unwrap();
    let id = |path: &str| SpiffeId::new(format!("spiffe://a.test{path}")).unwrap();
    let identity = Identity::embedded(ca, id("/one"), Duration::from_secs(3600), now).unwrap();
    let token = identity.mint_token(&id("/two"), Duration::from_secs(600)).unwrap();
    let header = TokenPath::default().to_header();
    let mut corpus = vec![token.jwt.clone().into_bytes(), header.into_bytes()];
    let path = format!(
        r#"{{"index":0,"path_segments":[{{"name":"one","id":"1","token":"{}","expires":{{"seconds":1}}}}]}}"#,
        token.jwt
    );
    corpus.push(path.into_bytes());
    corpus.push(b"2026-01-02T03:04:05.678Z".to_vec());
    feed(token::run, &corpus);
}

#[test]
fn stored_records() {
    let owner = SpiffeId::new("spiffe://a.test/nse").unwrap();
    let expires = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let records = [
        StoredRecord { object: vec![1, 2, 3], owner: Some(owner.clone()), via: None, expires: Some(expires) },
        StoredRecord { object: Vec::new(), owner: None, via: Some(owner), expires: None },
    ];
    feed(stored_record::run, &records.map(|record| record.encode()));
}
