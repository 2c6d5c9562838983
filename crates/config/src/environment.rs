//! `NSM_*`: the variables by which deployments of Network Service Mesh set up its parts.
//!
//! A variable that is set and not empty wins over the key of the config it stands for, at the start and at every reload:
//! it belongs to the process, as the manifest of its deployment says. Variables without a counterpart change nothing and
//! are named in a warning, by their names alone.

use std::{collections::HashSet, fmt, time::Duration};

use carrick_model::ServeUrl;

use crate::{
    config::Config,
    convert::compat::{MAX_SOCKETS, TOKEN_LIFETIMES},
    fault::shown,
    structure::nearest,
    text::{PartName, Written},
};

/// What all of them start with.
const PREFIX: &str = "NSM_";

/// What the variables did to a config.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// Variables in force, each with the key it stands for.
    pub applied: Vec<(&'static str, &'static str)>,
    /// Variables that change nothing.
    pub ignored: Vec<Ignored>,
}

/// A variable that changes nothing, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ignored {
    /// Its name.
    pub name: String,
    /// Why, after its name.
    pub why: String,
}

/// Variables whose values cannot be read, all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvironmentFaults(Vec<EnvironmentFault>);

/// One variable whose value cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvironmentFault {
    /// The variable.
    pub name: &'static str,
    /// What is wrong with it.
    pub message: String,
}

/// Sets a key of the config from a value; an error says why it cannot.
type Set = fn(&mut Config, &str) -> Result<(), String>;

/// Variables that stand for a key.
const KNOWN: [(&str, &str, Set); 8] = [
    ("NSM_LISTEN_ON", "compat.nsm.listen", listen_on),
    ("NSM_NAME", "compat.nsm.name", |config, text| {
        config.compat.nsm.name = read::<PartName>(text)?.0;
        Ok(())
    }),
    ("NSM_MAX_TOKEN_LIFETIME", "compat.nsm.max_token_lifetime", |config, text| {
        config.compat.nsm.max_token_lifetime = lifetime(text)?;
        Ok(())
    }),
    ("NSM_MAP_IP_FILE_PATH", "compat.nsm.map_ip_file", |config, text| {
        config.compat.nsm.map_ip_file = Some(read(text)?);
        Ok(())
    }),
    ("NSM_REGISTRY_URL", "compat.nsm.registry_url", |config, text| {
        config.compat.nsm.registry_url = Some(read(text)?);
        Ok(())
    }),
    ("NSM_REGISTRY_PROXY_URL", "compat.nsm.registry_proxy_url", |config, text| {
        let nsm = &mut config.compat.nsm;
        (nsm.registry_proxy_url, nsm.proxy_registry_url) = (Some(read(text)?), None);
        Ok(())
    }),
    ("NSM_PROXY_REGISTRY_URL", "compat.nsm.proxy_registry_url", |config, text| {
        let nsm = &mut config.compat.nsm;
        (nsm.registry_proxy_url, nsm.proxy_registry_url) = (None, Some(read(text)?));
        Ok(())
    }),
    (LOG_LEVEL, "log.level", |config, text| {
        config.log.level = log_level(text)?.to_owned();
        Ok(())
    }),
];

/// The one that says nothing about NSM.
const LOG_LEVEL: &str = "NSM_LOG_LEVEL";

/// Variables of NSM's parts that have no counterpart, and why.
const DEAD: [(&str, &str); 9] = [
    ("NSM_REGISTRY_SERVER_POLICIES", "the policies of NSM's registry are checked by the daemon itself"),
    ("NSM_REGISTRY_CLIENT_POLICIES", "the policies of NSM's registry are checked by the daemon itself"),
    ("NSM_EXPIRE_PERIOD", "endpoints expire when they say they do"),
    ("NSM_OPEN_TELEMETRY_ENDPOINT", "metrics are read from `listen.admin`"),
    ("NSM_METRICS_EXPORT_INTERVAL", "metrics are read from `listen.admin`"),
    ("NSM_PPROF_ENABLED", "there is no Go runtime to profile"),
    ("NSM_PPROF_LISTEN_ON", "there is no Go runtime to profile"),
    ("NSM_IP", "NSM's own parts do not read it either; `advertise:` says where others reach this domain"),
    ("SPIFFE_ENDPOINT_SOCKET", "SVIDs come from the daemon's own CA, see `identity.source`"),
];

impl Config {
    /// Lets `variables` of the process's environment win over the keys they stand for. Others than those of NSM are not
    /// looked at.
    pub fn apply_environment(
        &mut self,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Environment, EnvironmentFaults> {
        let mut variables: Vec<(String, String)> = variables
            .into_iter()
            .filter(|(name, value)| is_ours(name) && !value.is_empty() && !is_service_link(name))
            .collect();
        variables.sort();
        let mut done = Environment::default();
        let mut faults = Vec::new();
        for (name, value) in &variables {
            let Some((name, key, set)) = KNOWN.iter().find(|(known, ..)| known == name) else {
                done.ignored.push(ignored(name));
                continue;
            };
            match set(self, value) {
                Ok(()) => done.applied.push((name, key)),
                Err(message) => faults.push(EnvironmentFault { name, message }),
            }
        }
        let given = |wanted: &str| done.applied.iter().any(|(name, _)| *name == wanted);
        if given("NSM_REGISTRY_PROXY_URL") && given("NSM_PROXY_REGISTRY_URL") {
            let message = "NSM_REGISTRY_PROXY_URL says where these names go: keep one of the two".to_owned();
            faults.push(EnvironmentFault { name: "NSM_PROXY_REGISTRY_URL", message });
        }
        if !faults.is_empty() {
            return Err(EnvironmentFaults(faults));
        }
        self.compat.nsm.on |= done.applied.iter().any(|(name, _)| *name != LOG_LEVEL);
        Ok(done)
    }
}

fn is_ours(name: &str) -> bool {
    name.starts_with(PREFIX) || DEAD.iter().any(|(dead, _)| *dead == name)
}

/// Kubernetes gives every container variables of the services in its namespace: `NSM_ADMISSION_WEBHOOK_SVC_PORT_443_TCP`
/// is one such, and not meant for us.
fn is_service_link(name: &str) -> bool {
    const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];
    let words: Vec<&str> = name.split('_').collect();
    let of_port = words
        .windows(3)
        .any(|w| w[0] == "PORT" && w[1].bytes().all(|b| b.is_ascii_digit()) && PROTOCOLS.contains(&w[2]));
    of_port || name.contains("_SERVICE_HOST") || name.contains("_SERVICE_PORT") || name.ends_with("_PORT")
}

fn ignored(name: &str) -> Ignored {
    let dead = DEAD.iter().find(|(dead, _)| *dead == name).map(|(_, why)| (*why).to_owned());
    let why = dead.unwrap_or_else(|| {
        let known: Vec<String> = KNOWN.iter().map(|(known, ..)| known.to_ascii_lowercase()).collect();
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        match nearest(name, &known).map(str::to_ascii_uppercase) {
            Some(meant) => {
                format!("no part of NSM that this daemon stands in for has it: did you mean {meant}?")
            }
            None => "no part of NSM that this daemon stands in for has it".to_owned(),
        }
    });
    Ignored { name: shown(name), why }
}

fn read<T: Written>(text: &str) -> Result<T, String> {
    T::read(text.trim()).map_err(|why| format!("`{}` is not {}: {why}", shown(text), T::NOUN))
}

fn listen_on(config: &mut Config, text: &str) -> Result<(), String> {
    let urls: Vec<ServeUrl> = text.split(',').map(read).collect::<Result<_, _>>()?;
    let mut seen = HashSet::new();
    if let Some(twice) = urls.iter().find(|url| !seen.insert(*url)) {
        return Err(format!("`{twice}` is in the list twice"));
    }
    if urls.len() > MAX_SOCKETS {
        return Err(format!("at most {MAX_SOCKETS} sockets can be given"));
    }
    config.compat.nsm.listen = urls;
    Ok(())
}

fn lifetime(text: &str) -> Result<Duration, String> {
    let form =
        || format!("`{}` is not a duration as Go writes it: write for example `10m` or `1h30m`", shown(text));
    let duration = go_duration(text.trim()).ok_or_else(form)?;
    let (least, most) = (*TOKEN_LIFETIMES.start(), *TOKEN_LIFETIMES.end());
    if duration < least {
        return Err(format!(
            "`{}` is too short: at least {}",
            shown(text),
            humantime::format_duration(least)
        ));
    }
    // A manifest may allow NSM's parts more than this daemon ever takes.
    Ok(duration.min(most))
}

/// A duration in the form of Go's `time.ParseDuration`: numbers, each with a fraction or not, and their units.
fn go_duration(text: &str) -> Option<Duration> {
    /// Units in nanoseconds; the longer of two that start alike comes first.
    const UNITS: [(&str, u128); 8] = [
        ("ns", 1),
        ("us", 1_000),
        ("µs", 1_000), // U+00B5, the micro sign
        ("μs", 1_000), // U+03BC, the Greek letter
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
    ];
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (whole, fraction) = rest[..number].split_once('.').unwrap_or((&rest[..number], ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || whole.len() > 18 {
            return None;
        }
        let after = &rest[number..];
        let (unit, size) = UNITS.into_iter().find(|(unit, _)| after.starts_with(unit))?;
        let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        // What is under a nanosecond is cut off, as Go does.
        let digits = &fraction[..fraction.len().min(18)];
        let part: u128 = if digits.is_empty() { 0 } else { digits.parse().ok()? };
        let scale = 10_u128.pow(u32::try_from(digits.len()).ok()?);
        total = total.checked_add(whole * size + part * size / scale)?;
        rest = &after[unit.len()..];
    }
    let nanos = u64::try_from(total).ok().filter(|_| !text.is_empty())?;
    Some(Duration::from_nanos(nanos))
}

/// The words of the log library of NSM's parts, in any case.
fn log_level(text: &str) -> Result<&'static str, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "panic" | "fatal" | "error" => Ok("error"),
        "warn" | "warning" => Ok("warn"),
        "info" => Ok("info"),
        "debug" => Ok("debug"),
        "trace" => Ok("trace"),
        _ => {
            Err(format!("`{}` is not a log level: write one of ERROR, WARN, INFO, DEBUG, TRACE", shown(text)))
        }
    }
}

impl EnvironmentFaults {
    /// The faults, by the names of their variables.
    pub fn as_slice(&self) -> &[EnvironmentFault] {
        &self.0
    }

    /// What the operator can do next.
    pub fn hint(&self) -> &'static str {
        "correct the variables or unset them; docs/guides/nsm.md lists them all"
    }
}

impl std::error::Error for EnvironmentFaults {}

impl fmt::Display for EnvironmentFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the environment cannot be read")?;
        self.0.iter().try_for_each(|fault| write!(f, "\n{}: {}", fault.name, fault.message))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn applied(variables: &[(&str, &str)]) -> (Config, Result<Environment, EnvironmentFaults>) {
        let mut config = Config::new("a.test".parse().unwrap());
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let done = config.apply_environment(variables);
        (config, done)
    }

    #[test]
    fn a_manifest_of_nsm_sets_up_the_daemon() {
        let (config, done) = applied(&[
            ("PATH", "/bin"),
            ("NSM_NAME", "nsmgr-proxy-6f9d"),
            ("NSM_LISTEN_ON", "tcp://:5004, unix:///listen.on.socket"),
            ("NSM_MAX_TOKEN_LIFETIME", "10m0s"),
            ("NSM_MAP_IP_FILE_PATH", "map-ip.yaml"),
            ("NSM_REGISTRY_URL", "registry:5002"),
            ("NSM_REGISTRY_PROXY_URL", "tcp://registry-proxy:5005"),
            ("NSM_LOG_LEVEL", "TRACE"),
            ("NSM_IP", "10.0.0.1"),
        ]);
        let done = done.unwrap();
        assert_eq!(done.applied.len(), 7);
        assert!(done.applied.contains(&("NSM_NAME", "compat.nsm.name")));
        assert_eq!(done.ignored.len(), 1);
        assert_eq!(done.ignored[0].name, "NSM_IP");
        let nsm = &config.compat.nsm;
        assert!(nsm.on);
        assert_eq!(nsm.name, "nsmgr-proxy-6f9d");
        let listen: Vec<String> = nsm.listen.iter().map(ToString::to_string).collect();
        assert_eq!(listen, ["tcp://:5004", "unix:///listen.on.socket"]);
        assert_eq!(nsm.max_token_lifetime, Duration::from_secs(600));
        assert_eq!(nsm.map_ip_file, Some("map-ip.yaml".into()));
        assert_eq!(nsm.registry_url.as_ref().unwrap().to_string(), "tcp://registry:5002");
        assert_eq!(nsm.registry_proxy_url.as_ref().unwrap().to_string(), "tcp://registry-proxy:5005");
        assert_eq!(config.log.level, "trace");
    }

    #[test]
    fn a_log_level_alone_is_no_sign_of_nsm() {
        let (config, done) = applied(&[("NSM_LOG_LEVEL", "warning"), ("NSM_NAME", "")]);
        assert_eq!(done.unwrap().applied, [("NSM_LOG_LEVEL", "log.level")]);
        assert!(!config.compat.nsm.on);
        assert_eq!(config.compat.nsm.name, "a.test/gateway", "an empty variable is none");
    }

    #[test]
    fn what_is_dead_or_unknown_is_named_without_its_value() {
        let (config, done) = applied(&[
            ("NSM_EXPIRE_PERIOD", "1s"),
            ("NSM_LISTENON", "s3cret"),
            ("NSM_API_KEY", "s3cret"),
            ("SPIFFE_ENDPOINT_SOCKET", "unix:///run/spire.sock"),
        ]);
        let done = done.unwrap();
        let why = |name: &str| &done.ignored.iter().find(|i| i.name == name).unwrap().why;
        assert!(why("NSM_EXPIRE_PERIOD").contains("endpoints expire when they say"));
        assert!(why("NSM_LISTENON").ends_with("did you mean NSM_LISTEN_ON?"));
        assert!(why("NSM_API_KEY").starts_with("no part of NSM"));
        assert!(why("SPIFFE_ENDPOINT_SOCKET").contains("identity.source"));
        assert!(!format!("{done:?}").contains("s3cret"));
        assert!(!config.compat.nsm.on);
    }

    #[test]
    fn links_to_services_of_the_namespace_are_not_meant() {
        let (_, done) = applied(&[
            ("NSM_ADMISSION_WEBHOOK_SVC_SERVICE_HOST", "10.96.0.1"),
            ("NSM_ADMISSION_WEBHOOK_SVC_SERVICE_PORT_HTTPS", "443"),
            ("NSM_ADMISSION_WEBHOOK_SVC_PORT", "tcp://10.96.0.1:443"),
            ("NSM_ADMISSION_WEBHOOK_SVC_PORT_443_TCP_ADDR", "10.96.0.1"),
        ]);
        assert_eq!(done, Ok(Environment::default()));
    }

    #[test]
    fn all_that_cannot_be_read_is_told_at_once() {
        let (_, done) = applied(&[
            ("NSM_LISTEN_ON", "tcp://registry:5002"),
            ("NSM_NAME", "a b"),
            ("NSM_MAX_TOKEN_LIFETIME", "ten minutes"),
            ("NSM_REGISTRY_URL", "registry"),
            ("NSM_LOG_LEVEL", "loud"),
        ]);
        let faults = done.unwrap_err();
        assert_eq!(faults.as_slice().len(), 5);
        let text = faults.to_string();
        assert!(
            text.starts_with("the environment cannot be read\nNSM_LISTEN_ON: `tcp://registry:5002` is not")
        );
        assert!(text.contains("NSM_MAX_TOKEN_LIFETIME: `ten minutes` is not a duration as Go writes it"));
        let both = [("NSM_REGISTRY_PROXY_URL", "a:1"), ("NSM_PROXY_REGISTRY_URL", "b:1")];
        assert!(applied(&both).1.unwrap_err().to_string().contains("keep one of the two"));
        let twice = [("NSM_LISTEN_ON", "tcp://:5001,:5001")];
        assert!(applied(&twice).1.unwrap_err().to_string().contains("in the list twice"));
        let (config, _) = applied(&[("NSM_MAX_TOKEN_LIFETIME", "24h")]);
        assert_eq!(
            config.compat.nsm.max_token_lifetime,
            Duration::from_secs(600),
            "no longer than the default"
        );
        let short = [("NSM_MAX_TOKEN_LIFETIME", "1s")];
        assert!(applied(&short).1.unwrap_err().to_string().contains("too short: at least 10s"));
    }

    #[test]
    fn durations_are_those_of_go() {
        let ms = |text: &str| go_duration(text).map(|d| d.as_millis());
        assert_eq!(ms("10m"), Some(600_000));
        assert_eq!(ms("1h30m"), Some(5_400_000));
        assert_eq!(ms("1.5h"), Some(5_400_000));
        assert_eq!(ms(".5s"), Some(500));
        assert_eq!(ms("1.s"), Some(1000));
        assert_eq!(ms("+300ms"), Some(300));
        assert_eq!(go_duration("1us1µs1μs5ns"), Some(Duration::from_nanos(3005)));
        assert_eq!(ms("0"), Some(0));
        for bad in ["", "10", "m", "-1s", "1 m", "1.2.3s", ".s", "1d", "999999999999999999h", "1e3s", "s1"] {
            assert_eq!(go_duration(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_value_makes_the_parser_panic(which in 0..KNOWN.len(), value in "\\PC{0,60}") {
            let _either = applied(&[(KNOWN[which].0, &value)]);
            let _either = go_duration(&value);
        }

        #[test]
        fn what_go_prints_is_read(hours in 0_u64..20, minutes in 0_u64..60, millis in 0_u64..60_000) {
            let text = format!("{hours}h{minutes}m{}.{:03}s", millis / 1000, millis % 1000);
            let wanted = Duration::from_millis((hours * 60 + minutes) * 60_000 + millis);
            prop_assert_eq!(go_duration(&text), Some(wanted));
        }
    }
}
