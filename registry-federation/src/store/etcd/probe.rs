//! Whether etcd's members can be used, asked once and of each, for `carrick check`.

use std::time::Duration;

use super::{
    fault::EtcdFault,
    keys::Keyspace,
    members::{Members, led},
    settings::{EtcdSettings, EtcdSettingsFault},
    wire::{KvClient, MaintenanceClient, RangeRequest, StatusRequest},
};

/// For each question to each member.
const DEADLINE: Duration = Duration::from_secs(2);

/// What a member says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberFacts {
    /// etcd's version.
    pub version: String,
    /// Whether it leads.
    pub leads: bool,
    /// Octets of its database.
    pub database: u64,
    /// Records of our domain, with the fences of its replicas.
    pub keys: u64,
    /// What it complains of.
    pub errors: Vec<String>,
}

/// Asks each member in the order of the settings: itself, and for one of our keys, which takes a leader and the right to read.
/// Takes a few seconds for each that does not answer.
///
/// # Errors
/// The settings contradict themselves. Faults of a member are in its place.
pub async fn probe(
    settings: &EtcdSettings,
) -> Result<Vec<(String, Result<MemberFacts, EtcdFault>)>, EtcdSettingsFault> {
    let members = Members::new(settings)?;
    let keyspace = Keyspace::new(&settings.prefix, &settings.domain);
    let mut all = Vec::with_capacity(members.len());
    for at in 0..members.len() {
        all.push((members.endpoint(at), ask(&members, &keyspace, at).await));
    }
    Ok(all)
}

async fn ask(members: &Members, keyspace: &Keyspace, at: usize) -> Result<MemberFacts, EtcdFault> {
    let link = members.link_to(at).await?;
    let status = async { MaintenanceClient::new(link.channel.clone()).status(StatusRequest {}).await };
    let status = members.call_over(&link, "Status", DEADLINE, status).await?.into_inner();
    let (key, range_end) = keyspace.range();
    let request = RangeRequest { key, range_end, limit: 1, keys_only: true, revision: 0 };
    let range = async { KvClient::new(link.channel.clone()).range(led(request)).await };
    let range = members.call_over(&link, "Range", DEADLINE, range).await?.into_inner();
    let own = status.header.as_ref().map_or(0, |header| header.member_id);
    Ok(MemberFacts {
        version: status.version,
        leads: own != 0 && status.leader == own,
        database: u64::try_from(status.db_size).unwrap_or_default(),
        keys: u64::try_from(range.count).unwrap_or_default(),
        errors: status.errors,
    })
}
