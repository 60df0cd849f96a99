//! Numbers with units, in Compose's notations.
//!
//! Durations: the specification's "Specifying durations" (`1m30s`, `1.5h`). Bytes: its "Specifying byte values", in
//! which every unit is a power of 1024, `kb` as well as `k`. Everything is computed in integers: no value is rounded
//! but what lies below a nanosecond, a byte or a thousand-millionth of a core.

use std::time::Duration;

/// Longer than anything a service waits for.
const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 3600);
/// More cores than a machine has.
const MAX_CPUS: u64 = 4096;
const NANO: u128 = 1_000_000_000;

const DURATION_UNITS: [(&str, u128); 9] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("ms", 1_000_000),
    ("s", NANO),
    ("m", 60 * NANO),
    ("h", 3600 * NANO),
    ("d", 24 * 3600 * NANO),
    ("w", 7 * 24 * 3600 * NANO),
];

/// What to write instead.
pub(super) type Advice = String;

pub(super) fn duration(text: &str) -> Result<Duration, Advice> {
    const FORM: &str = "write a duration like 1m30s, 500ms or 2h (units: us, ms, s, m, h)";
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if decimal(rest, NANO).is_some_and(|(_, after)| after.is_empty()) {
        return Err(format!("a duration needs a unit: {rest}s for seconds, {rest}m for minutes"));
    }
    let mut total = 0u128;
    while !rest.is_empty() {
        let number = rest.split(|c: char| !c.is_ascii_digit() && c != '.').next().unwrap_or_default();
        let after = &rest[number.len()..];
        let unit = after.split(|c: char| c.is_ascii_digit() || c == '.').next().unwrap_or_default();
        let scale = DURATION_UNITS.iter().find(|(name, _)| *name == unit).ok_or(FORM)?.1;
        let (value, _) = decimal(number, scale).ok_or(FORM)?;
        total = total.saturating_add(value);
        rest = &after[unit.len()..];
    }
    if text.trim().is_empty() {
        return Err(FORM.to_owned());
    }
    let nanos = u64::try_from(total).unwrap_or(u64::MAX);
    let duration = Duration::from_nanos(nanos);
    if duration > MAX_DURATION {
        return Err("write at most a year (8760h)".to_owned());
    }
    Ok(duration)
}

pub(super) fn bytes(text: &str) -> Result<u64, Advice> {
    const FORM: &str = "write a size like 512m, 1.5g or 1048576 (units: b, k, m, g, kb, mb, gb)";
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
    let unit = text[digits..].trim_start().to_ascii_lowercase();
    let scale: u128 = match unit.as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => return Err(FORM.to_owned()),
    };
    let (value, _) = decimal(&text[..digits], scale).ok_or(FORM)?;
    match i64::try_from(value) {
        Ok(value) => Ok(value.unsigned_abs()),
        Err(_) => Err("write a size below 8388608t".to_owned()),
    }
}

/// In thousand-millionths of a core.
pub(super) fn cpus(text: &str) -> Result<u64, Advice> {
    let text = text.trim();
    let value = decimal(text, NANO).filter(|(_, rest)| rest.is_empty()).map(|(value, _)| value);
    let value = value.ok_or("write a number of cores like 0.5 or 2")?;
    match u64::try_from(value) {
        Ok(value) if value <= MAX_CPUS * 1_000_000_000 => Ok(value),
        _ => Err(format!("write at most {MAX_CPUS} cores")),
    }
}

/// A whole number; also `0x1f` and `0o17` as YAML 1.2 has them.
pub(super) fn integer(text: &str) -> Option<i128> {
    let text = text.trim();
    let (digits, radix) = match text.get(..2) {
        Some("0x") => (&text[2..], 16),
        Some("0o") => (&text[2..], 8),
        _ => (text, 10),
    };
    let unsigned = digits.strip_prefix(['-', '+']).filter(|_| radix == 10).unwrap_or(digits);
    if !unsigned.starts_with(|c: char| c.is_ascii_hexdigit()) {
        return None;
    }
    i128::from_str_radix(digits, radix).ok()
}

/// Permission bits, always octal: `0755`, `755`, `0o755`.
pub(super) fn mode(text: &str) -> Result<u32, Advice> {
    const FORM: &str = "write permission bits in octal, like 0755 or 1777";
    let digits = text.trim();
    let digits = digits.strip_prefix("0o").unwrap_or(digits);
    if !digits.starts_with(|c: char| c.is_digit(8)) {
        return Err(FORM.to_owned());
    }
    match u32::from_str_radix(digits, 8) {
        Ok(mode) if mode <= 0o7777 => Ok(mode),
        _ => Err(FORM.to_owned()),
    }
}

/// A decimal number times `scale`, cut to a whole, and what follows it. `None` when it does not begin with one.
fn decimal(text: &str, scale: u128) -> Option<(u128, &str)> {
    let whole_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (whole, rest) = text.split_at(whole_end);
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(after) => after.split_at(after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len())),
        None => ("", rest),
    };
    if (whole.is_empty() && fraction.is_empty()) || whole.len() > 20 || rest.starts_with('.') {
        return None;
    }
    let whole = if whole.is_empty() { 0 } else { whole.parse::<u128>().ok()?.checked_mul(scale)? };
    let digits = &fraction[..fraction.len().min(15)];
    let part = if digits.is_empty() { 0 } else { digits.parse::<u128>().ok()?.checked_mul(scale)? };
    let value = whole.checked_add(part / 10u128.pow(u32::try_from(digits.len()).ok()?))?;
    Some((value, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations() {
        let cases = [
            ("0", 0),
            ("1us", 1_000),
            ("10ms", 10_000_000),
            ("1.5s", 1_500_000_000),
            (".5s", 500_000_000),
            ("1m30s", 90_000_000_000),
            ("1h1m1s1ms", 3_661_001_000_000),
            ("1d", 86_400_000_000_000),
        ];
        for (text, nanos) in cases {
            assert_eq!(duration(text), Ok(Duration::from_nanos(nanos)), "{text}");
        }
        for text in ["", "5", "s", "5x", "-1s", "1s2", "1..5s", "1 s", "999999h", "99999999999999999999999s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes() {
        let cases = [
            ("0", 0),
            ("1048576", 1 << 20),
            ("10b", 10),
            ("1k", 1 << 10),
            ("1KB", 1 << 10),
            ("64m", 64 << 20),
            ("64 mb", 64 << 20),
            ("1.5m", 3 << 19),
            ("2g", 2 << 30),
            ("0.1k", 102),
            ("1GiB", 1 << 30),
        ];
        for (text, want) in cases {
            assert_eq!(bytes(text), Ok(want), "{text}");
        }
        for text in ["", "m", "-1", "1x", "1e3", "9999999999t", "1.2.3m"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn cores_modes_and_integers() {
        assert_eq!(cpus("0.5"), Ok(500_000_000));
        assert_eq!(cpus("2"), Ok(2_000_000_000));
        assert_eq!(cpus("0.000000001"), Ok(1));
        assert!(["", "x", "-1", "1k", "5000", "1e3", "NaN", "inf"].iter().all(|text| cpus(text).is_err()));
        assert_eq!((mode("0755"), mode("755"), mode("0o1777")), (Ok(0o755), Ok(0o755), Ok(0o1777)));
        assert!(["", "8", "99999", "-1", "+7", "rwx"].iter().all(|text| mode(text).is_err()));
        assert_eq!(
            (integer("12"), integer("-3"), integer("0x1f"), integer("0o17")),
            (Some(12), Some(-3), Some(31), Some(15))
        );
        assert!(["", "1.5", "x", "0x-1", "--1", "1 2", "é"].iter().all(|text| integer(text).is_none()));
    }

    proptest! {
        #[test]
        fn whole_units_are_exact(count in 0u64..1_000_000) {
            prop_assert_eq!(bytes(&format!("{count}k")), Ok(count << 10));
            prop_assert_eq!(duration(&format!("{count}ms")), Ok(Duration::from_millis(count)));
        }

        #[test]
        fn no_text_makes_them_panic(text in "([0-9.]|[a-z]|µ| |-){0,50}") {
            let _ = (duration(&text), bytes(&text), cpus(&text), mode(&text), integer(&text));
        }
    }
}
