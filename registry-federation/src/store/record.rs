//! What a store keeps of a registration, and its form on disk.

use std::time::{Duration, SystemTime};

use carrick_model::SpiffeId;
use prost::Message as _;

/// What is kept of one registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRecord {
    /// The object as it goes over the wire: an encoded `registry.NetworkService` or `registry.NetworkServiceEndpoint`.
    pub object: Vec<u8>,
    /// Who may replace and remove it; `None` for what belongs to the domain itself.
    pub owner: Option<SpiffeId>,
    /// Who brought it here for the owner, as TLS proved it; `None` when the owner came itself.
    pub via: Option<SpiffeId>,
    /// When it lapses; `None` for never. Kept to the microsecond.
    pub expires: Option<SystemTime>,
}

/// Why octets are not a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordFault {
    /// They are not of the form [`StoredRecord::encode`] gives: another program or a damaged disk wrote them.
    #[error("a stored record is damaged: {0}")]
    Damaged(String),
    /// A newer daemon wrote them in a form this one does not know.
    #[error("a stored record has the form {0}, this version knows up to {FORM}")]
    Newer(u32),
}

/// The form of a record. Raise it when an older daemon must not read what a newer one wrote.
const FORM: u32 = 1;

#[derive(Clone, PartialEq, prost::Message)]
struct Form {
    #[prost(uint32, tag = "1")]
    form: u32,
    #[prost(bytes = "vec", tag = "2")]
    object: Vec<u8>,
    #[prost(string, tag = "3")]
    owner: String,
    #[prost(string, tag = "4")]
    via: String,
    /// Microseconds since the epoch; 0 for never.
    #[prost(uint64, tag = "5")]
    expires: u64,
}

impl StoredRecord {
    /// Its form in a store: a protobuf message of its own, in which fields can be added.
    pub fn encode(&self) -> Vec<u8> {
        let id = |id: &Option<SpiffeId>| id.as_ref().map(ToString::to_string).unwrap_or_default();
        let form = Form {
            form: FORM,
            object: self.object.clone(),
            owner: id(&self.owner),
            via: id(&self.via),
            expires: self.expires.map_or(0, micros),
        };
        form.encode_to_vec()
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// The octets are damaged or of a newer form.
    pub fn decode(octets: &[u8]) -> Result<Self, RecordFault> {
        let form = Form::decode(octets).map_err(|fault| RecordFault::Damaged(fault.to_string()))?;
        match form.form {
            FORM => {}
            0 => return Err(RecordFault::Damaged("it has no form".into())),
            newer => return Err(RecordFault::Newer(newer)),
        }
        let id = |text: String| match text.as_str() {
            "" => Ok(None),
            _ => SpiffeId::new(&text).map(Some).map_err(|fault| RecordFault::Damaged(fault.to_string())),
        };
        let expires = (form.expires != 0)
            .then(|| SystemTime::UNIX_EPOCH.checked_add(Duration::from_micros(form.expires)))
            .flatten();
        Ok(Self { object: form.object, owner: id(form.owner)?, via: id(form.via)?, expires })
    }
}

/// Microseconds since the epoch, at least 1.
fn micros(at: SystemTime) -> u64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_as_it_was() {
        let id = |path: &str| Some(SpiffeId::new(format!("spiffe://own.test{path}")).unwrap());
        let at = SystemTime::UNIX_EPOCH + Duration::from_micros(1_234_567_890);
        let records = [
            StoredRecord { object: vec![1, 2, 3], owner: id("/nse"), via: id("/nsmgr"), expires: Some(at) },
            StoredRecord { object: Vec::new(), owner: None, via: None, expires: None },
        ];
        for record in records {
            assert_eq!(StoredRecord::decode(&record.encode()), Ok(record));
        }
    }

    #[test]
    fn what_is_no_record_is_refused() {
        let decode = |form: Form| StoredRecord::decode(&form.encode_to_vec());
        assert!(matches!(StoredRecord::decode(b"\xff\xff"), Err(RecordFault::Damaged(_))));
        assert!(matches!(StoredRecord::decode(b""), Err(RecordFault::Damaged(_))));
        assert_eq!(decode(Form { form: FORM + 1, ..Form::default() }), Err(RecordFault::Newer(FORM + 1)));
        let fault = decode(Form { form: FORM, owner: "nobody".into(), ..Form::default() });
        assert!(matches!(fault, Err(RecordFault::Damaged(_))), "{fault:?}");
        let end = decode(Form { form: FORM, expires: u64::MAX, ..Form::default() });
        assert!(end.is_ok(), "a time beyond what the system can tell does not panic: {end:?}");
    }
}
