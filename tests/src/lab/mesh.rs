//! Two domains that trust each other and find each other through DNS: what most scenarios start from.

use super::{Carrick, Knot, Lab, Settings, Zone, carrick::PORT};

/// Site a and site b with a daemon each, and the DNS server between them.
///
/// Fields are dropped in this order: the daemons first, the lab last.
pub struct Mesh {
    /// `cloud.test`.
    pub a: Carrick,
    /// `onprem.test`.
    pub b: Carrick,
    /// DNS for all three domains.
    pub knot: Knot,
    /// The sites.
    pub lab: Lab,
}

/// The programs a [`Mesh`] needs, for [`needs`](super::needs).
pub const MESH: &[&str] = &["netns", "knotd", "kdig"];

impl Mesh {
    /// Sets everything up and writes both configs; no daemon runs yet. `a` and `b` add to what the two must have anyway.
    pub fn prepare(a: impl FnOnce(Settings) -> Settings, b: impl FnOnce(Settings) -> Settings) -> Self {
        let lab = Lab::new();
        let zones =
            [&lab.a, &lab.b, &lab.c].map(|site| Zone::gateway(site.domain, PORT, site.addr, site.addr6));
        let knot = Knot::start(&lab, zones);
        let near = Carrick::prepare(&lab, &lab.a);
        let far = Carrick::prepare(&lab, &lab.b);
        near.configure(&a(Settings::new(&lab.a, &near).trust(&far)));
        far.configure(&b(Settings::new(&lab.b, &far).trust(&near)));
        Self { a: near, b: far, knot, lab }
    }

    /// The same with both daemons running and ready.
    #[track_caller]
    pub fn start(a: impl FnOnce(Settings) -> Settings, b: impl FnOnce(Settings) -> Settings) -> Self {
        let mut mesh = Self::prepare(a, b);
        mesh.b.up();
        mesh.a.up();
        mesh
    }
}
