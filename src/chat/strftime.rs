//! The date formats that chat templates use.

use std::fmt::Write;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// `seconds` since 1970 (UTC) by the C library's format codes; an unknown code stays as it is.
pub(super) fn strftime(format: &str, seconds: u64) -> String {
    let days = seconds / 86_400;
    let (year, month, day) = civil(days);
    let [hour, minute, second] = [seconds / 3600 % 24, seconds / 60 % 60, seconds % 60];
    let month_name = MONTHS[month as usize - 1];
    // 1970-01-01 was a Thursday.
    let day_name = DAYS[((days + 4) % 7) as usize];
    let hour12 = (hour + 11) % 12 + 1;
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut code = chars.next();
        // %-d: without the leading zero.
        let plain = code == Some('-');
        if plain {
            code = chars.next();
        }
        let width = if plain { 0 } else { 2 };
        let _ = match code {
            Some('Y') => write!(out, "{year}"),
            Some('y') => write!(out, "{:0width$}", year % 100),
            Some('m') => write!(out, "{month:0width$}"),
            Some('d') => write!(out, "{day:0width$}"),
            Some('e') => write!(out, "{day:2}"),
            Some('H') => write!(out, "{hour:0width$}"),
            Some('I') => write!(out, "{hour12:0width$}"),
            Some('M') => write!(out, "{minute:0width$}"),
            Some('S') => write!(out, "{second:0width$}"),
            Some('p') => write!(out, "{}", if hour < 12 { "AM" } else { "PM" }),
            Some('B') => write!(out, "{month_name}"),
            Some('b') => write!(out, "{}", &month_name[..3]),
            Some('A') => write!(out, "{day_name}"),
            Some('a') => write!(out, "{}", &day_name[..3]),
            Some('j') => {
                let of_year = days - days_before(year) + 1;
                write!(out, "{of_year:0w$}", w = if plain { 0 } else { 3 })
            }
            Some('F') => write!(out, "{year}-{month:02}-{day:02}"),
            Some('T') => write!(out, "{hour:02}:{minute:02}:{second:02}"),
            Some('%') => write!(out, "%"),
            Some(other) => write!(out, "%{}{other}", if plain { "-" } else { "" }),
            None => write!(out, "%"),
        };
    }
    out
}

fn leap(year: u64) -> bool {
    (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400)
}

/// Days from 1970 to the start of `year`.
fn days_before(year: u64) -> u64 {
    let leaps = |y: u64| y / 4 - y / 100 + y / 400;
    (year - 1970) * 365 + leaps(year - 1) - leaps(1969)
}

/// Year, month (1 to 12) and day of the month.
fn civil(days: u64) -> (u64, u64, u64) {
    let mut year = 1970 + days / 366;
    while days_before(year + 1) <= days {
        year += 1;
    }
    let mut left = days - days_before(year);
    let february = if leap(year) { 29 } else { 28 };
    for (i, length) in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31].into_iter().enumerate() {
        if left < length {
            return (year, i as u64 + 1, left + 1);
        }
        left -= length;
    }
    unreachable!("a year has no more days")
}

#[cfg(test)]
mod tests {
    use super::strftime;

    /// Expected texts are those of `date -u -d @SECONDS`.
    #[test]
    fn agrees_with_date() {
        assert_eq!(strftime("%Y-%m-%d %H:%M:%S %A", 0), "1970-01-01 00:00:00 Thursday");
        assert_eq!(strftime("%d %b %Y %j", 951_782_400), "29 Feb 2000 060");
        assert_eq!(strftime("%-d %B %Y, %a %I:%M %p", 1_735_689_599), "31 December 2024, Tue 11:59 PM");
        assert_eq!(strftime("%-d/%-m/%y %T", 4_107_542_400), "1/3/00 00:00:00");
        assert_eq!(strftime("%Q %", 0), "%Q %");
    }
}
