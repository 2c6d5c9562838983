//! Whether the members of the registry's etcd can be used.

use carrick_config::{Config, Store};
use carrick_registry::store::etcd::{EtcdFault, MemberFacts, probe};

use super::{Finding, Level};
use crate::{
    app,
    cli::quantity::{bytes, count},
};

/// What the findings are about.
const SUBJECT: &str = "registry.etcd.endpoints";

/// One finding for each member; none for the embedded store, which is a file in the state directory. A store that is not used is
/// told as such and not called.
pub(super) async fn check(config: &Config) -> Vec<Finding> {
    if let Some(unused) = app::store::unused(config) {
        return vec![Finding::new(Level::Warning, app::store::KEY, unused.message).hint(unused.hint)];
    }
    let Store::Etcd(etcd) = &config.registry.store else { return Vec::new() };
    match probe(&app::store::settings(config, etcd)).await {
        Ok(members) => members.into_iter().map(|(member, facts)| of(&member, facts)).collect(),
        Err(fault) => vec![Finding::new(Level::Error, SUBJECT, fault.to_string())],
    }
}

/// A member that cannot be used does not keep the daemon from starting.
fn of(member: &str, facts: Result<MemberFacts, EtcdFault>) -> Finding {
    let facts = match facts {
        Ok(facts) => facts,
        Err(fault) => return Finding::new(Level::Warning, SUBJECT, fault.to_string()).hint(fault.hint()),
    };
    let role = if facts.leads { "leads" } else { "follows" };
    let message = format!(
        "{member} is etcd {}, {role}, holds {} of this domain in a database of {}",
        facts.version,
        count(usize::try_from(facts.keys).unwrap_or(usize::MAX), "key"),
        bytes(facts.database)
    );
    match facts.errors.first() {
        Some(complaint) => {
            Finding::new(Level::Warning, SUBJECT, format!("{message}; it complains: {complaint}"))
                .hint("see `etcdctl alarm list` and the log of that member")
        }
        None => Finding::new(Level::Ok, SUBJECT, message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_store_beside_the_registry_of_nsm_is_told_and_not_called() {
        let nsm = "compat: { nsm: { registry_url: 'registry:5002' } }";
        let etcd = "registry: { store: etcd, etcd: { endpoints: ['127.0.0.1:1'] } }";
        let embedded = "registry: { store: embedded }";
        let variable = [("NSM_REGISTRY_URL".to_owned(), "registry:5002".to_owned())];
        let found = async |keys: &[&str], variables: &[(String, String)]| {
            let text = format!("domain: a.test\n{}", keys.join("\n"));
            let mut config = carrick_config::parse(&text).unwrap();
            config.apply_environment(variables.iter().cloned()).unwrap();
            check(&config).await
        };
        for (store, word) in [(etcd, "the etcd"), (embedded, "the embedded store")] {
            let (by_file, by_variable) = (found(&[store, nsm], &[]).await, found(&[store], &variable).await);
            assert_eq!(by_file, by_variable, "the variable is as good as the key");
            let [finding] = by_file.as_slice() else { panic!("{by_file:?}") };
            assert_eq!((finding.level, finding.subject.as_str()), (Level::Warning, "registry.store"));
            assert!(finding.message.starts_with(word), "{finding:?}");
            assert!(finding.message.contains("`compat.nsm.registry_url`"), "{finding:?}");
            assert!(finding.message.ends_with("tcp://registry:5002"), "{finding:?}");
        }
        assert!(found(&[nsm], &[]).await.is_empty(), "a default is nothing to warn of");
        assert!(found(&[embedded], &[]).await.is_empty());
        let called = found(&[etcd], &[]).await;
        assert!(called.iter().all(|f| f.subject == SUBJECT) && called.len() == 1, "{called:?}");
    }

    #[test]
    fn a_member_is_told_with_what_it_says() {
        let facts = MemberFacts {
            version: "3.4.23".into(),
            leads: true,
            database: 20_480,
            keys: 1,
            errors: Vec::new(),
        };
        let member = "https://etcd-1.test:2379";
        let fine = of(member, Ok(facts.clone()));
        assert_eq!(fine.level, Level::Ok);
        assert!(
            fine.message.starts_with("https://etcd-1.test:2379 is etcd 3.4.23, leads, holds 1 key of"),
            "{fine:?}"
        );
        let full = of(member, Ok(MemberFacts { errors: vec!["NOSPACE".into()], ..facts }));
        assert_eq!(full.level, Level::Warning);
        assert!(full.message.ends_with("it complains: NOSPACE") && full.hint.is_some(), "{full:?}");
    }

    #[tokio::test]
    async fn a_member_that_is_away_is_a_warning_with_a_hint() {
        let text = "domain: own.test\nstate_dir: /tmp/x\nregistry: { store: etcd, etcd: { endpoints: [\"127.0.0.1:1\"] } }";
        let config = carrick_config::parse(text).unwrap();
        let findings = check(&config).await;
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert_eq!(findings[0].level, Level::Warning);
        assert!(findings[0].message.contains("http://127.0.0.1:1 cannot be connected to"), "{findings:?}");
        assert!(
            findings[0].hint.as_deref().is_some_and(|hint| hint.contains("etcd runs there")),
            "{findings:?}"
        );
    }
}
