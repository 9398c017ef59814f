//! A simple filter for personal data: e-mail addresses and telephone numbers.

use crate::record::Record;
use std::ops::Range;

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PersonalKind {
    /// `name@host.tld`.
    Email,
    /// `+` and 8 to 15 digits, or ten digits grouped 3-3-4, as telephones are written.
    Phone,
}

/// Counts of [`remove_personal`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PersonalReport {
    /// Records kept.
    pub kept: usize,
    /// Records removed.
    pub removed: usize,
    /// E-mail addresses found in them.
    pub emails: usize,
    /// Telephone numbers found in them.
    pub phones: usize,
}

/// Removes each record if [`find_personal`] finds something in its prompt or answers (\[IG\] appendix A
/// filters its training split). It sees two kinds of personal data and no names: a first sieve, not
/// anonymisation.
pub fn remove_personal<T: Record>(records: Vec<T>) -> (Vec<T>, PersonalReport) {
    let mut report = PersonalReport::default();
    let mut kept = Vec::new();
    for record in records {
        let found: Vec<PersonalKind> =
            record.texts().into_iter().flat_map(find_personal).map(|(kind, _)| kind).collect();
        if found.is_empty() {
            kept.push(record);
            continue;
        }
        report.removed += 1;
        report.emails += found.iter().filter(|&&kind| kind == PersonalKind::Email).count();
        report.phones += found.iter().filter(|&&kind| kind == PersonalKind::Phone).count();
    }
    report.kept = kept.len();
    (kept, report)
}

/// The personal data in `text`, as byte ranges in order.
pub fn find_personal(text: &str) -> Vec<(PersonalKind, Range<usize>)> {
    let emails = emails(text).into_iter().map(|range| (PersonalKind::Email, range));
    let phones = phones(text).into_iter().map(|range| (PersonalKind::Phone, range));
    let mut found: Vec<_> = emails.chain(phones).collect();
    found.sort_by_key(|(_, range)| range.start);
    found
}

/// Around each `@`: a local part, and a host with a dot and a last label of two or more letters.
fn emails(text: &str) -> Vec<Range<usize>> {
    let bytes = text.as_bytes();
    let local = |b: &u8| b.is_ascii_alphanumeric() || b"._%+-".contains(b);
    let host = |b: &u8| b.is_ascii_alphanumeric() || b".-".contains(b);
    let around = |at: usize| {
        let start = at - bytes[..at].iter().rev().take_while(|b| local(b)).count();
        let length = bytes[at + 1..].iter().take_while(|b| host(b)).count();
        let name = text[at + 1..at + 1 + length].trim_end_matches(['.', '-']);
        let (first, last) = name.rsplit_once('.')?;
        let valid = !first.is_empty() && last.len() >= 2 && last.bytes().all(|b| b.is_ascii_alphabetic());
        (start < at && valid).then(|| start..at + 1 + name.len())
    };
    text.match_indices('@').filter_map(|(at, _)| around(at)).collect()
}

/// Telephone numbers: runs of digits, and of the marks that group them, for which [`is_phone`] holds.
fn phones(text: &str) -> Vec<Range<usize>> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let starts = bytes[at].is_ascii_digit() || bytes[at] == b'+' || bytes[at] == b'(';
        let inside_word = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || b".-/".contains(&bytes[at - 1]));
        if !starts || inside_word {
            at += 1;
            continue;
        }
        let length = 1 + bytes[at + 1..].iter().take_while(|b| b.is_ascii_digit() || b" -.()".contains(b)).count();
        let run = text[at..at + length].trim_end_matches([' ', '-', '.', '(', ')']);
        let end = at + run.len();
        let word_follows = bytes.get(end).is_some_and(u8::is_ascii_alphanumeric);
        if !word_follows && is_phone(run) {
            found.push(at..end);
        }
        at += length;
    }
    found
}

/// Whether a run is grouped as telephone numbers are. Decimal numbers, dates, years and plain integers have
/// other groups.
fn is_phone(run: &str) -> bool {
    let groups: Vec<usize> =
        run.split(|c: char| !c.is_ascii_digit()).map(str::len).filter(|&digits| digits > 0).collect();
    let digits: usize = groups.iter().sum();
    if run.starts_with('+') {
        return (8..=15).contains(&digits);
    }
    groups == [3, 3, 4] || groups == [1, 3, 3, 4]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, want: &[&str]) {
        let found: Vec<&str> = find_personal(text).into_iter().map(|(_, range)| &text[range]).collect();
        assert_eq!(found, want, "{text}");
    }

    #[test]
    fn addresses_and_numbers_are_found_and_arithmetic_is_not() {
        check("write to jo.doe+x@mail.example.org.", &["jo.doe+x@mail.example.org"]);
        check("a@b is no address, nor is @example.org or x@y.z1", &[]);
        check("call (555) 010-9999 or 555-010-1234 now", &["(555) 010-9999", "555-010-1234"]);
        check("+49 30 1234 5678, 1-800-555-0199", &["+49 30 1234 5678", "1-800-555-0199"]);
        check("in 2020-01-31, 3.14159265, 1234567890, 10 000 000, 192.168.100.1000", &[]);
        check("ünïcode ☎ +1 202 555 0123 ümlaut@exämple.com", &["+1 202 555 0123"]);
        check("2+3", &[]);
        check("", &[]);
    }
}
