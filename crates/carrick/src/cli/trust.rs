//! `carrick trust`: whom this domain trusts.
//!
//! Works on the state directory, so a bundle can be exchanged before the first start; a running daemon is told.

mod rotate;

use std::{io::Read, path::PathBuf, time::SystemTime};

use anyhow::Context;
use carrick_config::{BundleSource, Config};
use carrick_identity::{Bundle, EmbeddedCa, bundle::MAX_BUNDLE};
use carrick_model::{Domain, SpiffeId, TrustDomain};
use clap::Subcommand;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde::Serialize;
use x509_parser::{extensions::GeneralName, prelude::FromDer};

use crate::{
    admin::{
        api::{Timestamp, TrustList, TrustRow},
        client::{Client, ClientError},
    },
    cli::{
        Advice, Exit, Global, Mark, Output, Style,
        output::{note, print},
        quantity::until,
        table::{Cell, Table},
    },
    state_dir::StateDir,
    trust_file,
};

pub(crate) const EXAMPLES: &str = "\
EXAMPLES
  carrick trust export -c carrick.yaml > cloud.json            here; carry it to the other side
  carrick trust import cloud.json --domain cloud.example.com   there
  carrick trust show                                           compare the fingerprints by phone";

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Trust {
    /// Show the bundles in force with the fingerprints of their roots
    #[command(after_help = "\
EXAMPLES
  carrick trust show
  carrick trust show -o json | jq -r '.bundles[] | select(.own) | .fingerprints[]'")]
    Show,
    /// Print the own bundle, in SPIFFE's JSON, for the other side to import
    ///
    /// Works without a daemon. With -c, and before the first start, it makes the domain's root.
    #[command(after_help = "\
EXAMPLES
  carrick trust export > cloud.json
  carrick trust export -c carrick.yaml | ssh gw.onprem carrick trust import - --domain cloud.example.com")]
    Export,
    /// Trust another domain's bundle: SPIFFE JSON or PEM
    #[command(after_help = "\
EXAMPLES
  carrick trust import onprem.json --domain onprem.example.com
  carrick trust import - --domain onprem.example.com < onprem.pem
  carrick trust import spire.json --domain onprem.example.com --trust-domain prod.example.org")]
    Import {
        /// The bundle; `-` reads standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// The domain whose names it vouches for
        #[arg(long, value_name = "DOMAIN")]
        domain: Domain,
        /// Its SPIFFE trust domain [default: the domain]
        #[arg(long, value_name = "NAME", value_parser = parse_trust_domain)]
        trust_domain: Option<TrustDomain>,
    },
    /// Stop trusting a domain whose bundle was imported
    #[command(after_help = "\
EXAMPLES
  carrick trust remove --domain onprem.example.com")]
    Remove {
        /// The domain
        #[arg(long, value_name = "DOMAIN")]
        domain: Domain,
    },
    /// Replace the own root, in three steps that cut nobody off
    #[command(subcommand, after_help = rotate::EXAMPLES)]
    Rotate(rotate::Step),
}

fn parse_trust_domain(text: &str) -> Result<TrustDomain, String> {
    TrustDomain::new(text).map_err(|err| err.to_string())
}

/// Does what the subcommand says.
pub(super) async fn run(command: Trust, global: &Global, output: Output) -> anyhow::Result<Exit> {
    let state = global.state_dir()?;
    let config = global.load_config()?;
    let client = Client::new(state.clone());
    match command {
        Trust::Show => {
            let list = match client.trust().await {
                Err(ClientError::NotRunning { .. }) => {
                    note("no daemon is running: this is what a start would find");
                    offline(&state, config.as_ref())?
                }
                answered => answered?,
            };
            output.show(&list, |list, style| human(list, style, SystemTime::now()))?;
            Ok(Exit::Ok)
        }
        Trust::Export => export(&state, config.as_ref()),
        Trust::Import { file, domain, trust_domain } => {
            let trust_domain = match trust_domain {
                Some(trust_domain) => trust_domain,
                None => TrustDomain::new(domain.as_str())?,
            };
            let bundle = read_bundle(&file, &trust_domain)?;
            import(&state, &client, config.as_ref(), &domain, &bundle, output).await
        }
        Trust::Remove { domain } => remove(&state, &client, &domain).await,
        Trust::Rotate(step) => rotate::run(step, &state, &client, output).await,
    }
}

fn export(state: &StateDir, config: Option<&Config>) -> anyhow::Result<Exit> {
    let bundle = match config {
        Some(config) => create_own(state, &config.trust_domain)?.bundle(),
        None => read_own(state)?.ok_or_else(|| no_root(state))?.bundle(),
    };
    print(&(bundle.to_spiffe_json().trim_end().to_owned() + "\n"))?;
    Ok(Exit::Ok)
}

/// What is said where no domain has been started.
pub(super) fn no_root(state: &StateDir) -> Advice {
    let message =
        format!("no domain has been started with state_dir {}: it has no root", state.path().display());
    let hint = "start `carrick up -c FILE`, or make the root now with `carrick trust export -c FILE`";
    Advice::new(message, hint)
}

/// The own root, made if this is the first time.
pub(super) fn create_own(state: &StateDir, trust_domain: &TrustDomain) -> anyhow::Result<EmbeddedCa> {
    state.create()?;
    let ca = EmbeddedCa::open_or_create(state.path(), trust_domain, SystemTime::now())?;
    adopt_ca(state)?;
    Ok(ca)
}

/// Gives the files of the CA to the daemon's user.
fn adopt_ca(state: &StateDir) -> anyhow::Result<()> {
    for path in state.ca_files()? {
        state
            .adopt(&path)
            .with_context(|| format!("{}: cannot give it to the daemon's user", path.display()))?;
    }
    Ok(())
}

/// The own root as an earlier start left it: its certificate says the trust domain.
pub(super) fn read_own(state: &StateDir) -> anyhow::Result<Option<EmbeddedCa>> {
    let path = state.ca_root();
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(err) => {
            let message = format!("the domain's root {} cannot be read", path.display());
            return Err(Advice::new(message, "run this as the user of the daemon").because(err).into());
        }
    };
    let trust_domain = trust_domain_of(&text)
        .with_context(|| format!("{} holds no root certificate of a SPIFFE trust domain", path.display()))?;
    Ok(Some(EmbeddedCa::open_or_create(state.path(), &trust_domain, SystemTime::now())?))
}

fn trust_domain_of(pem: &[u8]) -> Option<TrustDomain> {
    let der = CertificateDer::pem_slice_iter(pem).next()?.ok()?;
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(&der).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => SpiffeId::new(uri).ok().map(|id| id.trust_domain().clone()),
        _ => None,
    })
}

/// What the daemon would trust, as far as the files say it.
fn offline(state: &StateDir, config: Option<&Config>) -> anyhow::Result<TrustList> {
    let mut bundles = Vec::new();
    if let Some(ca) = read_own(state)? {
        let domain = match config {
            Some(config) => Some(config.domain.clone()),
            // A trust domain may be a name that no domain has; then there is none to show.
            None => ca.trust_domain().to_string().parse().ok(),
        };
        let row = |domain| TrustRow::new(domain, &ca.bundle(), "embedded", Some(&ca.authorities()));
        bundles.extend(domain.map(row));
    }
    let configured = config.map(|c| c.trust.as_slice()).unwrap_or_default();
    for trust in configured {
        let BundleSource::File(path) = &trust.bundle;
        let bundle = Bundle::read(&trust.trust_domain, path)?;
        bundles.push(TrustRow::new(trust.domain.clone(), &bundle, "config", None));
    }
    let (imported, faults) = trust_file::read_all(state);
    for fault in faults {
        note(format!("{:#}", anyhow::Error::from(fault)));
    }
    for trust in imported.iter().filter(|t| configured.iter().all(|c| c.domain != t.domain)) {
        bundles.push(TrustRow::new(trust.domain.clone(), &trust.bundle, "imported", None));
    }
    Ok(TrustList { bundles })
}

fn human(list: &TrustList, style: Style, now: SystemTime) -> String {
    let mut table = Table::new(&["DOMAIN", "TRUST DOMAIN", "SOURCE", "ENDS", "SHA-256 OF THE ROOT"]);
    for bundle in &list.bundles {
        for (i, fingerprint) in bundle.fingerprints.iter().enumerate() {
            let first = |text: &str| if i == 0 { Cell::from(text) } else { Cell::from(" ") };
            let ends = until(bundle.not_after, now);
            let source = match bundle.states.get(i).map(String::as_str) {
                // The one root that there is usually.
                Some("active") if bundle.states.len() == 1 => Cell::from("own"),
                Some(state) => Cell::from(format!("own, {state}")),
                None => first(&bundle.source),
            };
            table.row([
                first(bundle.domain.as_str()),
                first(&bundle.trust_domain),
                source,
                first(&ends),
                fingerprint.as_str().into(),
            ]);
        }
    }
    if table.is_empty() {
        return "no root yet, and nobody trusted: start `carrick up`, then `carrick trust import`\n".into();
    }
    table.render(style)
}

fn read_bundle(file: &std::path::Path, trust_domain: &TrustDomain) -> anyhow::Result<Bundle> {
    if file.as_os_str() != "-" {
        return Ok(Bundle::read(trust_domain, file)?);
    }
    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_BUNDLE).unwrap_or(u64::MAX).saturating_add(1);
    std::io::stdin().lock().take(limit).read_to_end(&mut bytes).context("standard input cannot be read")?;
    Ok(Bundle::parse(trust_domain, &bytes)?)
}

/// What an import did.
#[derive(Debug, Serialize)]
struct Imported {
    domain: Domain,
    trust_domain: String,
    fingerprints: Vec<String>,
    not_after: Timestamp,
    /// Fingerprints of the bundle that was in its place.
    replaced: Option<Vec<String>>,
    path: PathBuf,
    /// Whether a running daemon has it already.
    in_force: bool,
}

async fn import(
    state: &StateDir,
    client: &Client,
    config: Option<&Config>,
    domain: &Domain,
    bundle: &Bundle,
    output: Output,
) -> anyhow::Result<Exit> {
    let now = SystemTime::now();
    let not_after = Timestamp(bundle.not_after());
    if not_after.0 <= now {
        let message =
            format!("the bundle of {domain} ended on {not_after}: none of its roots is valid any more");
        return Err(Advice::new(message, format!("ask {domain}'s operator for a new one")).into());
    }
    let own = match config {
        Some(config) => Some(config.domain.clone()),
        None => client.status().await.ok().map(|status| status.domain),
    };
    if own.as_ref() == Some(domain) {
        let hint = "import the other domain's bundle here, and this one's (`carrick trust export`) there";
        return Err(Advice::usage(format!("{domain} is this daemon's own domain"), hint).into());
    }
    if config.is_some_and(|c| c.trust.iter().any(|t| t.domain == *domain)) {
        note(format!("warning: the config's `trust:` entry for {domain} wins over this import"));
    }
    // A damaged earlier import is what this one may be meant to mend.
    let earlier = trust_file::read_one(state, domain).ok().flatten().map(|t| t.bundle.fingerprints());
    let replaced = earlier.filter(|old| *old != bundle.fingerprints());
    let path = trust_file::write(state, domain, bundle, now)?;
    let in_force = tell(client).await?;
    let imported = Imported {
        domain: domain.clone(),
        trust_domain: bundle.trust_domain().to_string(),
        fingerprints: bundle.fingerprints(),
        not_after,
        replaced,
        path,
        in_force,
    };
    output.show(&imported, human_import)?;
    Ok(Exit::Ok)
}

fn human_import(imported: &Imported, style: Style) -> String {
    let when = if imported.in_force { "now" } else { "from the next start on" };
    let mut text = format!(
        "{} is trusted {when}: trust domain {}, roots until {}\n",
        style.paint(Mark::Good, &imported.domain),
        imported.trust_domain,
        imported.not_after
    );
    for fingerprint in &imported.fingerprints {
        text.push_str(&format!("  sha256 {fingerprint}\n"));
    }
    // While the domain takes another root, the one that we know is in both bundles.
    let gone = |root: &&String| !imported.fingerprints.contains(root);
    for fingerprint in imported.replaced.iter().flatten().filter(gone) {
        text.push_str(&format!("  {} {fingerprint}\n", style.paint(Mark::Warning, "replaced")));
    }
    text.push_str("Compare them with what `carrick trust show` says there.\n");
    text
}

async fn remove(state: &StateDir, client: &Client, domain: &Domain) -> anyhow::Result<Exit> {
    if !trust_file::remove(state, domain)? {
        let message = format!("no bundle of {domain} was imported");
        let hint = "`carrick trust show` lists them; one from the config goes with its `trust:` entry";
        return Err(Advice::new(message, hint).into());
    }
    tell(client).await?;
    note(format!("{domain} is no longer trusted"));
    Ok(Exit::Ok)
}

/// Has a running daemon take over what changed; false when there is none.
async fn tell(client: &Client) -> anyhow::Result<bool> {
    match client.reload().await {
        Ok(_) => Ok(true),
        Err(ClientError::NotRunning { .. }) => Ok(false),
        Err(err) => {
            Err(anyhow::Error::from(err)
                .context("the change is saved, but the daemon could not take it over"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::status::tests::now;

    #[test]
    fn bundles_are_listed_root_by_root() {
        let row = |domain: &str, own, fingerprints: &[&str]| TrustRow {
            domain: domain.parse().unwrap(),
            trust_domain: domain.into(),
            own,
            source: if own { "embedded" } else { "imported" }.into(),
            fingerprints: fingerprints.iter().map(ToString::to_string).collect(),
            states: if own { vec!["active".into()] } else { Vec::new() },
            not_after: Timestamp(now() + std::time::Duration::from_secs(86_400 * 30)),
        };
        let list = TrustList {
            bundles: vec![row("cloud.test", true, &["aa"]), row("onprem.test", false, &["bb", "cc"])],
        };
        assert_eq!(
            human(&list, Style::default(), now()),
            "\
DOMAIN       TRUST DOMAIN  SOURCE    ENDS       SHA-256 OF THE ROOT
cloud.test   cloud.test    own       in 30d 0h  aa
onprem.test  onprem.test   imported  in 30d 0h  bb
                                                cc
"
        );

        let mut rotating = TrustList { bundles: vec![row("cloud.test", true, &["aa", "dd"])] };
        rotating.bundles[0].states.push("prepared".into());
        assert_eq!(
            human(&rotating, Style::default(), now()),
            "\
DOMAIN      TRUST DOMAIN  SOURCE         ENDS       SHA-256 OF THE ROOT
cloud.test  cloud.test    own, active    in 30d 0h  aa
                          own, prepared             dd
"
        );
    }

    #[test]
    fn an_import_tells_which_roots_are_gone() {
        let roots = |names: &[&str]| -> Vec<String> { names.iter().map(ToString::to_string).collect() };
        let imported = Imported {
            domain: "onprem.test".parse().unwrap(),
            trust_domain: "onprem.test".into(),
            fingerprints: roots(&["bb", "cc"]),
            not_after: Timestamp(now()),
            replaced: Some(roots(&["aa", "bb"])),
            path: PathBuf::new(),
            in_force: true,
        };
        let text = human_import(&imported, Style::default());
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("  ")).collect();
        assert_eq!(lines, ["  sha256 bb", "  sha256 cc", "  replaced aa"], "{text}");
    }

    #[test]
    fn the_own_root_is_found_without_a_config() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path().join("state"));
        assert!(read_own(&state).unwrap().is_none());
        let made = create_own(&state, &TrustDomain::new("cloud.test").unwrap()).unwrap();
        let read = read_own(&state).unwrap().unwrap();
        assert_eq!(read.trust_domain(), made.trust_domain());
        assert_eq!(read.bundle().fingerprints(), made.bundle().fingerprints());
    }

    #[test]
    fn what_is_not_a_root_is_not_taken_for_one() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path());
        std::fs::create_dir(dir.path().join("ca")).unwrap();
        std::fs::write(state.ca_root(), "nonsense").unwrap();
        let err = read_own(&state).unwrap_err();
        assert!(err.to_string().contains("ca/root.pem holds no root certificate"), "{err}");
    }
}
