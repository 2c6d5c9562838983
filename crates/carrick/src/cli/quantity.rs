//! Spans, sizes and times as people read them.

use std::time::{Duration, SystemTime};

use crate::admin::api::Timestamp;

/// A span with its two largest units: `3h 12m`, `52s`, `4d 0h`.
pub(crate) fn span(span: Duration) -> String {
    let s = span.as_secs();
    match s {
        0..60 => format!("{s}s"),
        60..3_600 => format!("{}m {}s", s / 60, s % 60),
        3_600..86_400 => format!("{}h {}m", s / 3_600, s % 3_600 / 60),
        _ => format!("{}d {}h", s / 86_400, s % 86_400 / 3_600),
    }
}

/// How long ago `at` was. A time to come, by a clock that was set back, is now.
pub(crate) fn age(at: Timestamp, now: SystemTime) -> String {
    span(now.duration_since(at.0).unwrap_or_default())
}

/// When something ends: `in 52m 10s`, or `3h 2m ago`.
pub(crate) fn until(at: Timestamp, now: SystemTime) -> String {
    match at.0.duration_since(now) {
        Ok(left) => format!("in {}", span(left)),
        Err(_) => format!("{} ago", age(at, now)),
    }
}

/// A short span: `850 µs`, `12.3 ms`, `1.20 s`.
pub(crate) fn micros(micros: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let value = micros as f64;
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..1_000_000 => format!("{:.1} ms", value / 1e3),
        _ => format!("{:.2} s", value / 1e6),
    }
}

/// A size in binary units: `512 B`, `1.5 MiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // What would round to 1024.0 belongs to the next unit.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `1 fault`, `2 faults`.
pub(crate) fn count(n: usize, noun: &str) -> String {
    match n {
        1 => format!("1 {noun}"),
        n => format!("{n} {noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_have_the_unit_that_fits() {
        let s = |n| span(Duration::from_secs(n));
        assert_eq!([s(0), s(59), s(60), s(3_599)], ["0s", "59s", "1m 0s", "59m 59s"]);
        assert_eq!([s(3_600), s(86_399), s(90_000)], ["1h 0m", "23h 59m", "1d 1h"]);
        assert_eq!([micros(7), micros(1_000), micros(2_345_678)], ["7 µs", "1.0 ms", "2.35 s"]);
        assert_eq!([bytes(0), bytes(1023), bytes(1024)], ["0 B", "1023 B", "1.0 KiB"]);
        assert_eq!([bytes(1024 * 1024 - 1), bytes(3 << 29)], ["1.0 MiB", "1.5 GiB"]);
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
        assert_eq!([count(0, "fault"), count(1, "fault")], ["0 faults", "1 fault"]);
    }

    #[test]
    fn times_are_told_from_now() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(10_000);
        let at = |s: i64| {
            Timestamp(if s < 0 {
                now - Duration::from_secs(s.unsigned_abs())
            } else {
                now + Duration::from_secs(s.unsigned_abs())
            })
        };
        assert_eq!(age(at(-5), now), "5s");
        assert_eq!(age(at(5), now), "0s");
        assert_eq!(until(at(65), now), "in 1m 5s");
        assert_eq!(until(at(-65), now), "1m 5s ago");
    }
}
