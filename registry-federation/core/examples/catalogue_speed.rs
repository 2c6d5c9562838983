//! Prints what the catalogue costs at scale: time per operation and memory per endpoint.
//!
//! `cargo run -p carrick-registry-core --example catalogue_speed [ENDPOINTS]`, 100,000 endpoints unless told otherwise.

#![allow(clippy::unwrap_used, reason = "a fault should end the measurement")]

use std::{
    fs,
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use carrick_model::SpiffeId;
use carrick_proto::registry::{NetworkServiceEndpoint as Endpoint, NetworkServiceLabels};
use carrick_registry_core::{Catalogue, Filter, Holder, Owner, Registration, Step, Viewer};

/// Ten endpoints provide each service.
const PER_SERVICE: usize = 10;
const WATCHERS: usize = 10_000;

fn main() {
    let endpoints: usize = std::env::args().nth(1).map_or(100_000, |n| n.parse().unwrap());
    let services = endpoints.div_ceil(PER_SERVICE);
    let mut catalogue = Catalogue::new();

    let before = resident();
    let took = time(|| (0..endpoints).for_each(|n| register(&mut catalogue, n, services)));
    println!("register                   {}", each(took, endpoints));
    println!("memory per endpoint        {:>8} octets", (resident() - before) / endpoints);

    let name = Endpoint { name: format!("endpoint-{}", endpoints / 2), ..Endpoint::default() };
    let service =
        Endpoint { network_service_names: vec![format!("service-{}", services / 2)], ..Endpoint::default() };
    let label = labelled(&format!("service-{}", services / 2), services / 2);
    let label = Endpoint { network_service_labels: label.network_service_labels, ..Endpoint::default() };
    let url = Endpoint { url: "tcp://10.0.0.7:5001".into(), ..Endpoint::default() };
    let part = Endpoint { url: "10.0.0.7:5001".into(), ..Endpoint::default() };
    for (what, query, times) in [
        ("find by name", name, 10_000),
        ("find by service", service, 10_000),
        ("find by label", label, 10_000),
        ("find by URL", url, 100),
        ("find by part of a URL", part, 100),
    ] {
        let filter = Filter::own(query);
        let found = catalogue.find(&filter).len();
        let took = time(|| (0..times).for_each(|_| drop(black_box(catalogue.find(&filter)))));
        println!("{what:<26} {}  ({found} found)", each(took, times));
    }
    let hidden = Filter {
        query: Endpoint::default(),
        viewer: Viewer::Peer(SpiffeId::new("spiffe://b.test/gw").unwrap()),
    };
    let mut walk = catalogue.walk(hidden);
    let took = time(|| assert_eq!(catalogue.poll_walk(&mut walk), Step::Busy));
    println!("step over what is hidden   {}", each(took, 1));

    let watches: Vec<_> = (0..WATCHERS)
        .map(|n| {
            let services = vec![format!("service-{}", n % services)];
            catalogue
                .subscribe(Filter::own(Endpoint { network_service_names: services, ..Endpoint::default() }))
        })
        .collect();
    for id in &watches {
        while catalogue.poll_update::<Endpoint>(*id) != Step::Idle {}
    }
    let took = time(|| (0..endpoints).for_each(|n| register(&mut catalogue, n, services)));
    println!("refresh, {WATCHERS} watchers    {}", each(took, endpoints));
}

fn register(catalogue: &mut Catalogue, n: usize, services: usize) {
    let object = labelled(&format!("service-{}", n % services), n);
    let id = |text: String| Some(SpiffeId::new(format!("spiffe://own.test/ns/default/pod/{text}")).unwrap());
    let owner = Owner {
        id: id(format!("endpoint-{n}")),
        via: id(format!("nsmgr-{}", n % 1000)).map(Arc::new),
        written: n as u64,
    };
    let (expires, holder) = (Some(Instant::now()), Holder::Owner(owner));
    let registration = Registration { object, audience: std::iter::empty().collect(), expires, holder };
    catalogue.register(registration).unwrap();
}

fn labelled(service: &str, n: usize) -> Endpoint {
    let labels = [("carrick.payload", "TCP"), ("zone", ["a", "b", "c"][n % 3])];
    let labels = labels.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned()));
    let labels = labels.chain([("instance".to_owned(), n.to_string())]).collect();
    Endpoint {
        name: format!("endpoint-{n}"),
        network_service_names: vec![service.to_owned()],
        network_service_labels: [(
            service.to_owned(),
            NetworkServiceLabels { labels, ..NetworkServiceLabels::default() },
        )]
        .into(),
        url: format!("tcp://10.0.{}.{}:5001", n % 1000 / 250, n % 250),
        ..Endpoint::default()
    }
}

fn time(act: impl FnOnce()) -> Duration {
    let start = Instant::now();
    act();
    start.elapsed()
}

fn each(took: Duration, count: usize) -> String {
    format!("{:>8.2} µs", took.as_secs_f64() * 1e6 / count as f64)
}

/// Resident memory of this process in octets (proc(5): the second figure of `statm`, in pages of 4 KiB).
fn resident() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}
