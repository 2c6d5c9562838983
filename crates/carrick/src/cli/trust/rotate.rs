//! `carrick trust rotate`: another root for this domain, without a moment in which a peer that does its part is cut off.

use std::time::SystemTime;

use carrick_identity::{Authority, EmbeddedCa};
use clap::Subcommand;
use serde::Serialize;

use super::{adopt_ca, no_root, read_own, tell};
use crate::{
    admin::client::Client,
    cli::{Exit, Mark, Output, Style},
    state_dir::StateDir,
};

pub(super) const EXAMPLES: &str = "\
EXAMPLES
  carrick trust rotate prepare          1. a second root goes into the bundle
  carrick trust export > cloud.json        every peer imports it: carrick trust import cloud.json --domain cloud.example.com
  carrick trust rotate activate         2. it issues from now on
  carrick trust rotate revoke           3. an SVID's lifetime later: the old one leaves the bundle
  carrick trust export > cloud.json        peers import it when they like

  carrick trust show                    says which root is active, prepared, or old";

/// The steps, under the names that SPIRE gives them.
#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum Step {
    /// Make the root that is to issue next, and put it into the bundle
    #[command(after_help = "\
EXAMPLES
  carrick trust rotate prepare && carrick trust export > cloud.json")]
    Prepare,
    /// Have the prepared root issue, and forget the key of the one before
    ///
    /// The daemon takes a new SVID at once. Flows and tunnels that stand are not touched; a peer that has not imported the bundle
    /// since `prepare` refuses new ones.
    #[command(after_help = "\
EXAMPLES
  carrick trust rotate activate && carrick trust show")]
    Activate,
    /// Drop the root that does not issue from the bundle: the old one, or a prepared one
    ///
    /// What the old root has signed is not believed any more: SVIDs of `carrick svid issue` have to be issued again before.
    #[command(after_help = "\
EXAMPLES
  carrick trust rotate revoke
  carrick trust rotate revoke -o json | jq -r '.roots[].sha256'")]
    Revoke,
}

/// What a step left.
#[derive(Debug, Serialize)]
struct Rotated {
    trust_domain: String,
    roots: Vec<Root>,
    /// Whether a running daemon has it already.
    in_force: bool,
    /// What the operator does next.
    next: &'static str,
}

#[derive(Debug, Serialize)]
struct Root {
    sha256: String,
    /// `active`, `prepared` or `old`.
    state: &'static str,
}

pub(super) async fn run(
    step: Step,
    state: &StateDir,
    client: &Client,
    output: Output,
) -> anyhow::Result<Exit> {
    let trust_domain = read_own(state)?.ok_or_else(|| no_root(state))?.trust_domain().clone();
    let change = match step {
        Step::Prepare => EmbeddedCa::prepare,
        Step::Activate => EmbeddedCa::activate,
        Step::Revoke => EmbeddedCa::revoke,
    };
    let ca = change(state.path(), &trust_domain, SystemTime::now())?;
    adopt_ca(state)?;
    let in_force = tell(client).await?;
    let states = ca.authorities().into_iter().map(Authority::as_str);
    let root = |(sha256, state)| Root { sha256, state };
    let rotated = Rotated {
        trust_domain: trust_domain.to_string(),
        roots: ca.bundle().fingerprints().into_iter().zip(states).map(root).collect(),
        in_force,
        next: next(step),
    };
    output.show(&rotated, human)?;
    Ok(Exit::Ok)
}

fn next(step: Step) -> &'static str {
    match step {
        Step::Prepare => {
            "have every peer import the output of `carrick trust export`, then `carrick trust rotate activate`"
        }
        Step::Activate => {
            "once nothing that the old root signed is about any more (the lifetime of an SVID), `carrick trust rotate revoke`"
        }
        Step::Revoke => {
            "have every peer import the output of `carrick trust export`: it drops the other root there too"
        }
    }
}

fn human(rotated: &Rotated, style: Style) -> String {
    let when = if rotated.in_force { "now" } else { "from the next start on" };
    let mut text = format!("the roots of {} {when}:\n", rotated.trust_domain);
    for Root { sha256, state } in &rotated.roots {
        let mark = if *state == "active" { Mark::Good } else { Mark::Warning };
        text.push_str(&format!("  {} sha256 {sha256}\n", style.paint(mark, format!("{state:8}"))));
    }
    text.push_str(&format!("Next: {}.\n", rotated.next));
    text
}
