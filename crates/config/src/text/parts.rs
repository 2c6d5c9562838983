//! Texts that stand for other programs' parts: NSM's, and an etcd's.

use carrick_model::{HostPort, cause::in_one_line};

use super::{Text, Written};

/// A member of an etcd.
pub(crate) struct EtcdEndpoint {
    pub(crate) at: HostPort,
    /// Whether its scheme says so, if it has one.
    pub(crate) https: Option<bool>,
}

impl Written for EtcdEndpoint {
    const FORM: &'static str = "host:port | http(s)://host:port";
    const EXAMPLE: &'static str = "https://etcd-1.example.com:2379";
    const NOUN: &'static str = "the address of an etcd";

    fn read(text: &str) -> Result<Self, String> {
        let (https, rest) = match text.split_once("://") {
            Some(("https", rest)) => (Some(true), rest),
            Some(("http", rest)) => (Some(false), rest),
            Some(_) => return Err("write `host:port`, or a URL with `http` or `https`".to_owned()),
            None => (None, text),
        };
        let at = rest.strip_suffix('/').unwrap_or(rest).parse().map_err(|error| in_one_line(&error))?;
        Ok(Self { at, https })
    }
}

/// What the keys of an etcd start with; ends in `/`.
pub(crate) struct KeyPrefix(pub(crate) String);

/// Longest prefix: it stands in every key.
const MAX_PREFIX: usize = 128;

impl Written for KeyPrefix {
    const FORM: &'static str = "key prefix";
    const EXAMPLE: &'static str = "/carrick/";
    const NOUN: &'static str = "a prefix of keys";

    fn read(text: &str) -> Result<Self, String> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'.' | b'-' | b'_');
        if !text.bytes().all(allowed) || text.trim_matches('/').is_empty() || text.len() > MAX_PREFIX {
            return Err(format!("write 1 to {MAX_PREFIX} letters, digits, `.`, `-`, `_` and `/`"));
        }
        // Without the slash `/a` would hold the keys of `/ab` too.
        Ok(Self(format!("{}/", text.trim_end_matches('/'))))
    }
}

/// The mode of a file, in octal as `chmod` takes it.
pub(crate) struct FileMode(pub(crate) u32);

impl FileMode {
    /// The text of a mode.
    pub(crate) fn text(mode: u32) -> Text<Self> {
        Text::new(format!("{mode:04o}"))
    }
}

impl Written for FileMode {
    const FORM: &'static str = "file mode";
    const EXAMPLE: &'static str = "0660";
    const NOUN: &'static str = "the mode of a file";

    fn read(text: &str) -> Result<Self, String> {
        let octal = matches!(text.len(), 3 | 4) && text.bytes().all(|b| matches!(b, b'0'..=b'7'));
        match u32::from_str_radix(text, 8) {
            Ok(mode) if octal && mode <= 0o777 => Ok(Self(mode)),
            _ => Err("write it in octal and in quotes, for example `\"0660\"`".to_owned()),
        }
    }
}

/// The name of a process in the path of a connection.
pub(crate) struct PartName(pub(crate) String);

/// Longest name: that of a Kubernetes object, which NSM's parts take theirs from.
const MAX_PART_NAME: usize = 253;

impl Written for PartName {
    const FORM: &'static str = "name";
    const EXAMPLE: &'static str = "nsmgr-proxy.cloud.example.com";
    const NOUN: &'static str = "a name for paths";

    fn read(text: &str) -> Result<Self, String> {
        let printable = text.bytes().all(|b| b.is_ascii_graphic());
        if text.is_empty() || text.len() > MAX_PART_NAME || !printable {
            return Err(format!("write 1 to {MAX_PART_NAME} letters, digits and signs, without a space"));
        }
        Ok(Self(text.to_owned()))
    }
}

/// Where others call this domain's endpoints: TCP only, because they stand elsewhere.
pub(crate) struct PublicUrl(pub(crate) HostPort);

impl Written for PublicUrl {
    const FORM: &'static str = "host:port | tcp://host:port";
    const EXAMPLE: &'static str = "tcp://192.0.2.10:5004";
    const NOUN: &'static str = "a URL that others can call";

    fn read(text: &str) -> Result<Self, String> {
        let rest = match text.split_once("://") {
            Some(("tcp", rest)) => rest,
            Some(_) => return Err("others call over TCP: write `tcp://host:port`".to_owned()),
            None => text,
        };
        rest.parse().map(Self).map_err(|error| in_one_line(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_etcd_is_named_as_its_own_tools_name_it() {
        let read = |text| EtcdEndpoint::read(text).map(|e| (e.at.to_string(), e.https));
        assert_eq!(read("etcd-1:2379"), Ok(("etcd-1:2379".into(), None)));
        assert_eq!(read("https://10.0.0.1:2379/"), Ok(("10.0.0.1:2379".into(), Some(true))));
        assert_eq!(read("http://[::1]:2379"), Ok(("[::1]:2379".into(), Some(false))));
        for bad in ["", "etcd", "unix:///etcd", "https://etcd:2379/path"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_prefix_ends_in_a_slash() {
        let read = |text| KeyPrefix::read(text).map(|prefix| prefix.0);
        assert_eq!(read("/carrick"), Ok("/carrick/".into()));
        assert_eq!(read("/carrick//"), Ok("/carrick/".into()));
        assert_eq!(read("a"), Ok("a/".into()));
        for bad in ["", "/", "a b", "ä", &"x".repeat(200)] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_mode_is_octal() {
        let read = |text| FileMode::read(text).map(|mode| mode.0);
        assert_eq!(read("0660"), Ok(0o660));
        assert_eq!(read("777"), Ok(0o777));
        assert_eq!(FileMode::text(0o666).text, "0666");
        for bad in ["", "0", "0888", "4755", "rw", "00660", "+66"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
