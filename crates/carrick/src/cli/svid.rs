//! `carrick svid`: identities of this domain for programs that take them from files, NSM's among them.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::Context;
use carrick_config::BundleSource;
use carrick_identity::{Bundle, CaError, EmbeddedCa};
use carrick_model::SpiffeId;
use clap::Subcommand;
use serde::Serialize;

use super::{
    Advice, Exit, Global, Output, Style,
    output::note,
    quantity::until,
    table::{Cell, Table},
    trust,
};
use crate::{admin::api::Timestamp, app::Signals, state_dir::StateDir, trust_file};

pub(crate) const EXAMPLES: &str = "\
EXAMPLES
  carrick svid issue --id spiffe://cloud.example.com/nsc --out /run/nsc";

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Svid {
    /// Issue an SVID of this domain: certificate, key and the bundles in force, as PEM files
    ///
    /// Writes svid.pem, svid_key.pem, bundle.pem, and federated/TRUST-DOMAIN.pem for every domain that is trusted. All are
    /// readable by their user only, and replace what an earlier call wrote. Works beside a running daemon and without one.
    /// With -c, and before the first start, it makes the domain's root.
    ///
    /// With --keep it stays, writes them anew when half of the lifetime is over and when roots come or go, and ends with
    /// SIGTERM or SIGINT. Without it, call it again before the lifetime is over.
    #[command(after_help = "\
EXAMPLES
  carrick svid issue --id spiffe://cloud.example.com/ns/shop/pod/web-0 --out /run/web
  carrick svid issue -c carrick.yaml --id spiffe://cloud.example.com/nsc --out /run/nsc --lifetime 8h
  carrick svid issue --id spiffe://cloud.example.com/nsc --out /run/nsc -o json | jq -r .not_after
  carrick svid issue --id spiffe://cloud.example.com/nsc --out /run/nsc --keep

EXIT CODES
  0 when the files are written, or --keep was told to stop, 2 when the ID or the lifetime cannot be, 1 when there is no root or no place to write")]
    Issue {
        /// Who it is for: an ID with a path in this domain's trust domain
        #[arg(long, value_name = "SPIFFE-ID", value_parser = parse_id)]
        id: SpiffeId,
        /// Directory for the files; made if it is not there
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// How long it is valid, from 1m to 30days
        #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = parse_lifetime)]
        lifetime: Duration,
        /// Stay, and renew what is written until told to stop
        #[arg(long)]
        keep: bool,
    },
}

/// What is below it is the daemon's own: the gateway speaks as one of these.
const RESERVED: &str = "/carrick/";
/// Below it no renewal by a timer keeps up.
const LEAST: Duration = Duration::from_secs(60);
/// The same bound as `identity.svid_lifetime`: longer is not short-lived.
const MOST: Duration = Duration::from_secs(30 * 86_400);
/// How often `--keep` looks whether roots came or went.
const LOOK: Duration = Duration::from_secs(5);

fn parse_id(text: &str) -> Result<SpiffeId, String> {
    SpiffeId::new(text).map_err(|err| format!("{err}; write for example spiffe://cloud.example.com/nsc"))
}

fn parse_lifetime(text: &str) -> Result<Duration, String> {
    let lifetime = humantime::parse_duration(text).map_err(|err| err.to_string())?;
    if (LEAST..=MOST).contains(&lifetime) {
        return Ok(lifetime);
    }
    Err("from 1m to 30days".to_owned())
}

/// What was written.
#[derive(Debug, Serialize)]
struct Issued {
    id: String,
    not_before: Timestamp,
    not_after: Timestamp,
    /// The certificate and what chains it to the root, PEM.
    certificate: PathBuf,
    /// Its key, PEM (PKCS #8).
    key: PathBuf,
    /// The own domain's roots, PEM.
    bundle: PathBuf,
    /// The roots of the other domains.
    federated: Vec<Federated>,
}

#[derive(Debug, Serialize)]
struct Federated {
    trust_domain: String,
    bundle: PathBuf,
}

/// Does what the subcommand says.
pub(super) fn run(command: Svid, global: &Global, output: Output) -> anyhow::Result<Exit> {
    let Svid::Issue { id, out, lifetime, keep } = command;
    if id.path().starts_with(RESERVED) {
        let message = format!("`{id}` is the daemon's own: what lies under {RESERVED} is never given away");
        return Err(Advice::usage(message, "choose another path").into());
    }
    let (state, config) = (global.state_dir()?, global.load_config()?);
    let mut order = Order { id, out, lifetime, state, config, warned: Vec::new() };
    let roots = order.roots()?;
    let show = |issued: &Issued| output.show(issued, |issued, style| human(issued, style, SystemTime::now()));
    show(&order.issue(&roots)?)?;
    if keep {
        super::block_on(async {
            let mut signals = Signals::new();
            tokio::select! {
                failed = order.keep(roots.text(), LOOK, show) => failed,
                () = signals.stop() => Ok(()),
            }
        })??;
    }
    Ok(Exit::Ok)
}

/// What is to be issued, and from where.
struct Order {
    id: SpiffeId,
    out: PathBuf,
    lifetime: Duration,
    state: StateDir,
    config: Option<carrick_config::Config>,
    /// What was said of bundles that cannot be read.
    warned: Vec<String>,
}

/// What is to be trusted, and the own root that issues.
struct Roots {
    ca: EmbeddedCa,
    others: Vec<Bundle>,
}

impl Roots {
    /// Differs when anything of what is written differs, the SVID apart.
    fn text(&self) -> String {
        let others =
            self.others.iter().map(|bundle| format!("{}\n{}", bundle.trust_domain(), bundle.to_pem()));
        others.fold(self.ca.bundle().to_pem(), |all, one| all + &one)
    }
}

impl Order {
    /// The domain's root, and the bundles of the trusted domains: the config's, then what was imported for others.
    fn roots(&mut self) -> anyhow::Result<Roots> {
        let ca = match &self.config {
            Some(config) => trust::create_own(&self.state, &config.trust_domain)?,
            None => trust::read_own(&self.state)?.ok_or_else(|| trust::no_root(&self.state))?,
        };
        let (mut others, mut faults) = (Vec::new(), Vec::new());
        let mut take = |bundle: Bundle| {
            let known = |other: &Bundle| other.trust_domain() == bundle.trust_domain();
            if !others.iter().any(known) {
                others.push(bundle);
            }
        };
        for trust in self.config.as_ref().map(|config| config.trust.as_slice()).unwrap_or_default() {
            let BundleSource::File(path) = &trust.bundle;
            match Bundle::read(&trust.trust_domain, path) {
                Ok(bundle) => take(bundle),
                Err(err) => faults.push(format!("warning: left out: {:#}", anyhow::Error::from(err))),
            }
        }
        let (imported, unread) = trust_file::read_all(&self.state);
        imported.into_iter().for_each(|trust| take(trust.bundle));
        faults.extend(
            unread.into_iter().map(|fault| format!("warning: left out: {:#}", anyhow::Error::from(fault))),
        );
        if self.warned != faults {
            faults.iter().for_each(note);
            self.warned = faults;
        }
        Ok(Roots { ca, others })
    }

    fn issue(&self, roots: &Roots) -> anyhow::Result<Issued> {
        issue(&roots.ca, &self.id, self.lifetime, &roots.others, &self.out)
    }

    /// Renews for ever. What does not work is said once, and tried again: what was written before may be good for a while.
    async fn keep(
        &mut self,
        mut written: String,
        look: Duration,
        show: impl Fn(&Issued) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut due = SystemTime::now() + self.lifetime / 2;
        let mut said = String::new();
        loop {
            tokio::time::sleep(look).await;
            let renewed = self.roots().and_then(|roots| {
                let text = roots.text();
                if text == written && SystemTime::now() < due {
                    return Ok(None);
                }
                Ok(Some((self.issue(&roots)?, text)))
            });
            match renewed {
                Ok(None) => {}
                Ok(Some((issued, text))) => {
                    (written, due) = (text, SystemTime::now() + self.lifetime / 2);
                    said.clear();
                    show(&issued)?;
                }
                Err(err) => {
                    let text = format!("warning: not renewed, and tried again: {err:#}");
                    if said != text {
                        note(&text);
                        said = text;
                    }
                }
            }
        }
    }
}

fn issue(
    ca: &EmbeddedCa,
    id: &SpiffeId,
    lifetime: Duration,
    others: &[Bundle],
    out: &Path,
) -> anyhow::Result<Issued> {
    let svid = ca.issue(id, lifetime, SystemTime::now()).map_err(|fault| match fault {
        CaError::Foreign { .. } | CaError::NoPath { .. } => {
            Advice::usage(fault.to_string(), fault.hint()).into()
        }
        fault => anyhow::Error::from(fault),
    })?;
    make_directory(out)?;
    let put = |name: &str, text: &str| {
        let path = out.join(name);
        replace(&path, text).with_context(|| format!("{} cannot be written", path.display()))?;
        anyhow::Ok(path)
    };
    let mut federated = Vec::new();
    if !others.is_empty() {
        make_directory(&out.join("federated"))?;
    }
    for bundle in others {
        let trust_domain = bundle.trust_domain().to_string();
        let bundle = put(&format!("federated/{trust_domain}.pem"), &bundle.to_pem())?;
        federated.push(Federated { trust_domain, bundle });
    }
    remove_others(&out.join("federated"), &federated)?;
    let bundle = put("bundle.pem", &ca.bundle().to_pem())?;
    let key = put("svid_key.pem", &svid.key_pem())?;
    let certificate = put("svid.pem", &svid.chain_pem())?;
    let (not_before, not_after) = (svid.not_before().into(), svid.not_after().into());
    Ok(Issued { id: id.to_string(), not_before, not_after, certificate, key, bundle, federated })
}

/// Who reads all files of the directory trusts what is trusted no more.
fn remove_others(directory: &Path, kept: &[Federated]) -> anyhow::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("{} cannot be read", directory.display()))?,
    };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let bundle = path.extension().is_some_and(|extension| extension == "pem");
        if bundle && !kept.iter().any(|kept| kept.bundle == path) {
            fs::remove_file(&path).with_context(|| format!("{} cannot be removed", path.display()))?;
        }
    }
    Ok(())
}

fn make_directory(path: &Path) -> anyhow::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("the directory {} cannot be made", path.display()))
}

/// A reader sees the old text or the new one, never a part; and only the file's user sees it at all.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{}.new", std::process::id()));
    let draft = PathBuf::from(draft);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&draft, path));
    if written.is_err() {
        // The reason is worth more than the rest of the draft.
        let _ = fs::remove_file(&draft);
    }
    written
}

fn human(issued: &Issued, style: Style, now: SystemTime) -> String {
    let mut table = Table::new(&["", ""]).indent(2);
    for (what, path) in
        [("certificate", &issued.certificate), ("key", &issued.key), ("bundle", &issued.bundle)]
    {
        table.row([what.into(), Cell::of(path.display())]);
    }
    for federated in &issued.federated {
        table.row([
            format!("bundle of {}", federated.trust_domain).into(),
            Cell::of(federated.bundle.display()),
        ]);
    }
    let ends = until(issued.not_after, now);
    format!("{}  ends {ends}, on {}\n{}", issued.id, issued.not_after, table.render(style))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use carrick_model::TrustDomain;

    use super::*;

    fn ca(dir: &Path, name: &str) -> EmbeddedCa {
        EmbeddedCa::open_or_create(dir, &TrustDomain::new(name).unwrap(), SystemTime::now()).unwrap()
    }

    #[test]
    fn files_are_private_and_replaced_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (own, other) = (ca(&dir.path().join("a"), "a.test"), ca(&dir.path().join("b"), "b.test"));
        let id = SpiffeId::new("spiffe://a.test/nse").unwrap();
        let out = dir.path().join("out/deep");
        let hour = Duration::from_secs(3600);
        let first = issue(&own, &id, hour, &[other.bundle()], &out).unwrap();
        let key = fs::read_to_string(&first.key).unwrap();
        issue(&own, &id, hour, &[other.bundle()], &out).unwrap();
        assert_ne!(fs::read_to_string(&first.key).unwrap(), key, "a fresh key each time");

        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(&out), mode(&first.key), mode(&first.certificate)), (0o700, 0o600, 0o600));
        let names = |dir: &Path| {
            let mut names: Vec<_> =
                fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        assert_eq!(names(&out), ["bundle.pem", "federated", "svid.pem", "svid_key.pem"]);
        assert_eq!(names(&out.join("federated")), ["b.test.pem"]);
        issue(&own, &id, hour, &[], &out).unwrap();
        assert!(names(&out.join("federated")).is_empty(), "what is trusted no more is gone");
        let text = human(&first, Style::default(), SystemTime::now());
        assert!(text.starts_with("spiffe://a.test/nse  ends in 59m") && text.contains("bundle of b.test"));
        assert!(!text.contains("PRIVATE"), "a key is never shown");
    }

    #[tokio::test]
    async fn what_is_kept_is_renewed_in_time_though_the_root_was_away() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path().join("state"));
        ca(state.path(), "a.test");
        let mut order = Order {
            id: SpiffeId::new("spiffe://a.test/nse").unwrap(),
            out: dir.path().join("out"),
            lifetime: Duration::from_secs(2),
            state,
            config: None,
            warned: Vec::new(),
        };
        let roots = order.roots().unwrap();
        order.issue(&roots).unwrap();
        let renewed = std::cell::Cell::new(0);
        let show = |_: &Issued| {
            renewed.set(renewed.get() + 1);
            Ok(())
        };
        let begin = SystemTime::now();
        // A root that is gone for a while is no reason to end.
        let root = order.state.ca_root();
        let away = root.with_extension("away");
        let disturb = async {
            fs::rename(&root, &away).unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
            fs::rename(&away, &root).unwrap();
            std::future::pending::<()>().await;
        };
        let renewed_twice = async {
            while renewed.get() < 2 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            ended = order.keep(roots.text(), Duration::from_millis(20), show) => panic!("{ended:?}"),
            () = disturb => {}
            () = tokio::time::sleep(Duration::from_secs(10)) => panic!("not renewed"),
            () = renewed_twice => {}
        }
        assert!(begin.elapsed().unwrap() >= Duration::from_secs(2), "each after half of the lifetime");
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let own = ca(&dir.path().join("a"), "a.test");
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let id = SpiffeId::new("spiffe://a.test/nse").unwrap();
        let err = issue(&own, &id, LEAST, &[], &file.join("out")).unwrap_err();
        assert!(err.to_string().contains("file/out cannot be made"), "{err}");
        let foreign = SpiffeId::new("spiffe://b.test/nse").unwrap();
        let err = issue(&own, &foreign, LEAST, &[], dir.path()).unwrap_err();
        assert_eq!(err.to_string(), "the CA of `a.test` does not issue for `spiffe://b.test/nse`");
    }

    #[test]
    fn lifetimes_have_bounds() {
        assert_eq!(parse_lifetime("8h"), Ok(Duration::from_secs(8 * 3600)));
        assert!(parse_lifetime("59s").is_err() && parse_lifetime("31days").is_err());
        assert!(parse_id("cloud.test/nsc").unwrap_err().contains("write for example"));
    }
}
