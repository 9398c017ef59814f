//! The day that chat templates are told.

use std::{fmt, str::FromStr};

/// A day of the Gregorian calendar, from year 1 to 9999.
///
/// Some chat templates write today's date into the prompt. A prompt that differs from day to day is no
/// experiment that can be repeated, so no clock is read: templates are told a day that somebody chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Date {
    year: u16,
    month: u8,
    day: u8,
}

/// A text that names no day.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no day; write one as `2024-07-26`")]
pub struct DateError(String);

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
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

impl Default for Date {
    /// 26 July 2024, the day that the templates of Llama 3.1 and 3.2 write when they are told none.
    fn default() -> Date {
        Date { year: 2024, month: 7, day: 26 }
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}

impl FromStr for Date {
    type Err = DateError;

    /// Reads `YYYY-MM-DD`.
    fn from_str(text: &str) -> Result<Date, DateError> {
        let parse = || {
            let shaped = text.len() == 10 && text.bytes().all(|b| b.is_ascii_digit() || b == b'-');
            let mut parts = text.split('-').filter(|_| shaped);
            let year = parts.next().filter(|year| year.len() == 4)?.parse().ok()?;
            let month = parts.next().filter(|month| month.len() == 2)?.parse().ok()?;
            let day = parts.next()?.parse().ok()?;
            let date = Date { year, month, day };
            let known = year > 0 && (1..=12).contains(&month) && (1..=date.days_of(month)).contains(&day);
            (known && parts.next().is_none()).then_some(date)
        };
        parse().ok_or_else(|| DateError(text.to_owned()))
    }
}

impl Date {
    fn days_of(self, month: u8) -> u8 {
        let leap = self.year.is_multiple_of(4) && (!self.year.is_multiple_of(100) || self.year.is_multiple_of(400));
        match month {
            2 => 28 + u8::from(leap),
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        }
    }

    /// From 1 to 366.
    fn day_of_year(self) -> u16 {
        (1..self.month).map(|month| u16::from(self.days_of(month))).sum::<u16>() + u16::from(self.day)
    }

    /// Days since Sunday. 1 January of year 1 was a Monday.
    fn weekday(self) -> usize {
        let years = usize::from(self.year) - 1;
        (years + years / 4 - years / 100 + years / 400 + usize::from(self.day_of_year())) % 7
    }

    /// What Python's `datetime.strftime` makes of midnight of this day in the C locale. `-` after `%` leaves
    /// zeros and spaces before a number away.
    ///
    /// # Errors
    /// The directive that is not known.
    pub(crate) fn strftime(self, format: &str) -> Result<String, String> {
        let mut out = String::new();
        let mut rest = format;
        while let Some(at) = rest.find('%') {
            out.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            let short = rest.strip_prefix('-');
            let directive = short.unwrap_or(rest).chars().next();
            let text = directive.and_then(|directive| self.directive(directive));
            let Some(text) = text else {
                let shown = format!(
                    "%{}{}",
                    if short.is_some() { "-" } else { "" },
                    directive.map_or(String::new(), String::from)
                );
                return Err(format!("it writes the date with `{shown}`, which is not known here"));
            };
            let cut = text.trim_start_matches(['0', ' ']);
            out.push_str(match short {
                Some(_) if text.bytes().all(|b| b.is_ascii_digit() || b == b' ') => {
                    if cut.is_empty() {
                        "0"
                    } else {
                        cut
                    }
                }
                _ => &text,
            });
            rest = &short.unwrap_or(rest)[1..];
        }
        out.push_str(rest);
        Ok(out)
    }

    fn directive(self, directive: char) -> Option<String> {
        let Date { year, month, day } = self;
        let (month_name, weekday) = (MONTHS[usize::from(month) - 1], WEEKDAYS[self.weekday()]);
        Some(match directive {
            'd' => format!("{day:02}"),
            'e' => format!("{day:2}"),
            'm' => format!("{month:02}"),
            'y' => format!("{:02}", year % 100),
            // The C library of Linux writes years before 1000 without zeros.
            'Y' => year.to_string(),
            'b' | 'h' => month_name[..3].to_owned(),
            'B' => month_name.to_owned(),
            'a' => weekday[..3].to_owned(),
            'A' => weekday.to_owned(),
            'w' => self.weekday().to_string(),
            'j' => format!("{:03}", self.day_of_year()),
            'F' => format!("{year}-{month:02}-{day:02}"),
            'D' | 'x' => format!("{month:02}/{day:02}/{:02}", year % 100),
            'H' | 'M' | 'S' => "00".to_owned(),
            'I' => "12".to_owned(),
            'p' => "AM".to_owned(),
            'T' | 'X' => "00:00:00".to_owned(),
            '%' => "%".to_owned(),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(date: &str, format: &str, want: &str) {
        let date: Date = date.parse().unwrap();
        assert_eq!(date.strftime(format).unwrap_or_else(|why| why), want);
    }

    #[test]
    fn days_are_written_as_python_writes_them() {
        check("2024-07-26", "%d %b %Y", "26 Jul 2024");
        check("2026-01-05", "%-d %e|%m %-m|%y|%B|%a %A|%j %-j|%w", "5  5|01 1|26|January|Mon Monday|005 5|1");
        check("2024-12-31", "%j %F %D %A", "366 2024-12-31 12/31/24 Tuesday");
        check("2000-02-29", "%A %j", "Tuesday 060");
        check("1900-03-01", "%A %j", "Thursday 060");
        check("0001-01-01", "%A", "Monday");
        check("2026-01-05", "%H:%M:%S %I %p %-H %-I %T 100%%", "00:00:00 12 AM 0 12 00:00:00 100%");
        check("2026-01-05", "%Q", "it writes the date with `%Q`, which is not known here");
        check("2026-01-05", "%-", "it writes the date with `%-`, which is not known here");
    }

    #[test]
    fn only_days_are_read() {
        for text in ["2024-07-26", "2024-02-29", "2000-02-29", "0001-01-01", "9999-12-31"] {
            assert_eq!(text.parse::<Date>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "2024-7-26",
            "2024-02-30",
            "2023-02-29",
            "1900-02-29",
            "0000-01-01",
            "2024-00-01",
            "2024-13-01",
            "2024-01-00",
            "+024-01-01",
            "2024-01-01 ",
            "20240-1-01",
            "2024-01-01-",
            "today",
        ] {
            let why = text.parse::<Date>().unwrap_err().to_string();
            assert!(why.starts_with(&format!("`{text}` is no day; write one as ")), "{why}");
        }
        assert_eq!(Date::default().to_string(), "2024-07-26");
    }
}
