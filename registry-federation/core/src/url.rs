//! How parts of URLs are found.
//!
//! NSM matches a URL by any part of it, and no index answers that at once. But endpoints share the URLs of their
//! managers, so there are few, and who asks for a URL writes its beginning. A *plain* URL, `tcp://` or `unix://` and no
//! other `://`, contains a plain part only at its beginning, where the order of the URLs finds it. The *odd* rest, and
//! all when the part is not plain, is looked at one by one, up to a bound.

/// URLs that are looked at for one query: comparing so many takes about as long as a step of a walk.
pub(crate) const MOST_LOOKED_AT: usize = 1024;

/// URLs that one walk follows side by side. Each step asks for the next name of all of them.
pub(crate) const MOST_FOLLOWED: usize = 32;

const PLAIN: [&str; 2] = ["tcp://", "unix://"];

/// Whether a URL, or the beginning of one, is plain.
pub(crate) fn is_plain(url: &str) -> bool {
    PLAIN.iter().filter_map(|scheme| url.strip_prefix(scheme)).any(|rest| !rest.contains("://"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]
        #[test]
        fn a_plain_url_contains_a_plain_part_only_at_its_beginning(
            stored in "(tcp|unix|http)?(:/|://)?[a:/]{0,4}((tcp|unix)://)?[ab:/]{0,3}",
            part in "(tcp|unix)?://[a:/]{0,3}",
        ) {
            if is_plain(&stored) && is_plain(&part) {
                prop_assert_eq!(stored.contains(&part), stored.starts_with(&part));
            }
        }
    }
}
