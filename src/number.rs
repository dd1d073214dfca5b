//! Numbers as people read them.

/// 1234567 as `1,234,567`.
pub(crate) fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// Bytes in GiB.
pub(crate) fn gib(bytes: impl Into<u128>) -> f64 {
    bytes.into() as f64 / (1u64 << 30) as f64
}

/// 14650000 as `14.7 M`.
pub(crate) fn short(n: f64) -> String {
    let (divisor, unit) = match n.abs() {
        m if m >= 999.5e9 => (1e12, " T"),
        m if m >= 999.5e6 => (1e9, " B"),
        m if m >= 999.5e3 => (1e6, " M"),
        m if m >= 9_999.5 => (1e3, " k"),
        _ => (1.0, ""),
    };
    format!("{}{unit}", significant(n / divisor, 3))
}

/// The given number of significant digits, without trailing zeros; powers of ten for the very small and large.
pub(crate) fn significant(x: f64, digits: usize) -> String {
    if !x.is_finite() {
        return "not finite".into();
    }
    if x == 0.0 {
        return "0".into();
    }
    // The exponent after rounding: 9.996 has one more digit before the point than it seems.
    let scientific = format!("{:.*e}", digits - 1, x);
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if !(-4..7).contains(&exponent) {
        return format!("{}e{exponent}", trimmed(mantissa)).replace('-', "−");
    }
    let decimals = (digits as i32 - 1 - exponent).max(0) as usize;
    trimmed(&format!("{x:.decimals$}")).replace('-', "−")
}

fn trimmed(text: &str) -> &str {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text }
}

/// 0.3127 as `31.3 %`.
pub(crate) fn percent(fraction: f64) -> String {
    if !fraction.is_finite() {
        return "–".into();
    }
    format!("{:.1} %", 100.0 * fraction)
}

/// 3725 seconds as `1 h 2 min`.
pub(crate) fn duration(seconds: f64) -> String {
    if !(seconds.is_finite() && seconds >= 0.0) {
        return "–".into();
    }
    let whole = seconds.round() as u64;
    match whole {
        0..10 => format!("{seconds:.1} s"),
        10..60 => format!("{whole} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(
            [thousands(0), thousands(999), thousands(1000), thousands(1234567)],
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!([short(512.0), short(9999.0), short(14_650_000.0)], ["512", "9999", "14.7 M"]);
        assert_eq!([short(999_600.0), short(1.5e9), short(12_345.0)], ["1 M", "1.5 B", "12.3 k"]);
        assert_eq!(
            [significant(9.9996, 4), significant(0.00123, 3), significant(-2.5, 3)],
            ["10", "0.00123", "−2.5"]
        );
        assert_eq!([significant(1.25e-7, 3), significant(f64::NAN, 3)], ["1.25e−7", "not finite"]);
        assert_eq!([percent(0.3127), percent(f64::NAN)], ["31.3 %", "–"]);
        assert_eq!([duration(3.12), duration(75.4), duration(3725.0)], ["3.1 s", "1 min 15 s", "1 h 02 min"]);
    }
}
