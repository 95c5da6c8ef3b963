//! Sizes, rates and times, read from and printed for people.

use std::time::{Duration, SystemTime};

/// Reads a size in bytes: a number, and K, M or G for the powers of 1024.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return Err("a number of bytes, such as 65536, 64K, 16M or 1G".to_owned()),
    };
    let number: u64 = digits.parse().map_err(|_| "a number of bytes".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "too large".to_owned())
}

/// A size for people, in powers of 1024.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{n} B"),
        _ if value.fract() == 0.0 => format!("{value:.0} {}", UNITS[unit]),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}

/// A count for people: thousands set apart.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// How many a second, rounded; 0 where no time passed.
pub fn per_second(n: u64, elapsed: Duration) -> f64 {
    if elapsed.is_zero() { 0.0 } else { n as f64 / elapsed.as_secs_f64() }
}

/// A moment in RFC 3339 form, UTC, to the nanosecond.
pub fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (days, second) = ((since.as_secs() / 86_400) as i64, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let nanos = since.subsec_nanos();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

/// Reads a moment: RFC 3339 with any offset, a date alone (midnight UTC), or so long ago, such as 90s,
/// 5m, 2h, 3d or 1w.
pub fn parse_time(text: &str) -> Result<SystemTime, String> {
    if let Some(ago) = parse_ago(text) {
        return SystemTime::now().checked_sub(ago).ok_or_else(|| "too long ago".to_owned());
    }
    parse_rfc3339(text).ok_or_else(|| {
        "a time such as 2026-01-31T12:00:00Z or 2026-01-31, or so long ago: 90s, 5m, 2h, 3d, 1w"
            .to_owned()
    })
}

fn parse_ago(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit_s = match &text[digits.len()..] {
        "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 7 * 86_400,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit_s).map(Duration::from_secs)
}

fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    let (date, rest) = text.split_at_checked(10)?;
    let number = |text: &str, digits: usize, max: i64| -> Option<i64> {
        let fits = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|&value| fits && value <= max)
    };
    let mut parts = date.splitn(3, '-');
    let year = number(parts.next()?, 4, 9999)?;
    let month = number(parts.next()?, 2, 12).filter(|&month| month > 0)?;
    let day = number(parts.next()?, 2, 31).filter(|&day| day > 0)?;
    let days = days_since_1970(year, month, day);
    if civil(days) != (year, month, day) {
        return None;
    }
    let mut seconds = days * 86_400;
    let mut nanos = 0;
    if !rest.is_empty() {
        let rest = rest.strip_prefix(['T', 't', ' '])?;
        let (clock, zone) = rest.split_at(rest.find(['Z', 'z', '+', '-'])?);
        let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
        let mut parts = clock.splitn(3, ':');
        seconds += 3600 * number(parts.next()?, 2, 23)? + 60 * number(parts.next()?, 2, 59)?;
        // A leap second is the first of the next minute.
        seconds += parts.next().map_or(Some(0), |part| number(part, 2, 60))?;
        nanos = number(fraction, fraction.len().clamp(1, 9), i64::MAX)?
            * 10_i64.pow(9 - fraction.len() as u32);
        if !matches!(zone, "Z" | "z") {
            let (hours, minutes) = zone[1..].split_once(':')?;
            let offset = 3600 * number(hours, 2, 23)? + 60 * number(minutes, 2, 59)?;
            seconds += if zone.starts_with('-') { offset } else { -offset };
        }
    }
    let since = Duration::new(u64::try_from(seconds).ok()?, nanos as u32);
    SystemTime::UNIX_EPOCH.checked_add(since)
}

/// The inverse of [`civil`].
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// How long ago, for people.
pub fn age(time: SystemTime) -> String {
    let seconds = SystemTime::now().duration_since(time).unwrap_or_default().as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Year, month and day of a number of days since 1970-01-01, counted in 400-year eras that start
/// on 1 March.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_and_print() {
        assert_eq!(parse_bytes("64K"), Ok(65_536));
        assert_eq!(parse_bytes("1GiB"), Ok(1 << 30));
        assert_eq!(parse_bytes("12"), Ok(12));
        assert!(parse_bytes("").is_err() && parse_bytes("K").is_err());
        assert!(parse_bytes("12parsecs").is_err() && parse_bytes("99999999999G").is_err());
        assert_eq!(bytes(64 << 20), "64 MiB");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(count(12), "12");
    }

    #[test]
    fn times_print() {
        let at = |seconds| rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(at(951_782_399), "2000-02-28T23:59:59.000000000Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00.000000000Z");
        assert_eq!(at(1_735_689_599), "2024-12-31T23:59:59.000000000Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00.000000000Z");
    }

    #[test]
    fn times_read() {
        let at = |text| parse_time(text).map(rfc3339);
        for text in ["2000-02-29T23:59:59.000000000Z", "2100-03-01T00:00:00.123456789Z"] {
            assert_eq!(at(text).as_deref(), Ok(text));
        }
        for (text, expected) in [
            ("2026-01-31", "2026-01-31T00:00:00.000000000Z"),
            ("2026-01-31T12:30Z", "2026-01-31T12:30:00.000000000Z"),
            ("2026-01-31t12:30:05.5z", "2026-01-31T12:30:05.500000000Z"),
            ("2026-01-01 00:30:00+02:00", "2025-12-31T22:30:00.000000000Z"),
            ("2025-12-31T23:30:00-00:45", "2026-01-01T00:15:00.000000000Z"),
            ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00.000000000Z"),
        ] {
            assert_eq!(at(text).as_deref(), Ok(expected), "{text}");
        }
        for text in [
            "",
            "now",
            "5",
            "m",
            "-5m",
            "5 m",
            "5x",
            "2026-02-30",
            "2026-13-01",
            "2026-1-1",
            "2026-01-31T",
            "2026-01-31T12",
            "2026-01-31T12:00:00",
            "2026-01-31T24:00:00Z",
            "2026-01-31T12:00:00+2",
            "2026-01-31T12:00:00.Z",
            "2026-01-31T12:00:00.1234567890Z",
            "1969-12-31",
            "99999999999999999999d",
            "2026-01-3\u{e9}",
        ] {
            assert!(at(text).is_err(), "{text}");
        }
        let before = SystemTime::now();
        for (text, seconds) in [("0s", 0), ("90s", 90), ("5m", 300), ("2h", 7200), ("3d", 259_200)]
        {
            let time = parse_time(text).expect("it is a time") + Duration::from_secs(seconds);
            assert!(time >= before && time <= SystemTime::now(), "{text}");
        }
    }
}
