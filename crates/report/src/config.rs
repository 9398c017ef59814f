//! The configuration of a run, as its folder keeps it: dotted keys and what stands behind them.

use std::collections::BTreeMap;

/// Every key of a TOML text with its value as it is written; strings without their quotation marks.
///
/// This reads what `instruct` writes: tables, and one key a line, whose value may go on over lines. It is no check of
/// the text: a line that it does not understand is left out.
pub(crate) fn keys(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut table = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let line = line.trim();
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            table = format!("{name}.");
        } else if let Some((key, value)) = line.split_once('=').filter(|_| !line.starts_with('#')) {
            let mut value = value.trim().to_owned();
            while is_open(&value) {
                let Some(next) = lines.next() else { break };
                value = format!("{value}\n{next}");
            }
            found.insert(format!("{table}{}", key.trim()), plain(&value));
        }
    }
    found
}

/// Whether a value goes on in the next line.
fn is_open(value: &str) -> bool {
    for quotes in [r#"""""#, "'''"] {
        if let Some(rest) = value.strip_prefix(quotes) {
            return !rest.contains(quotes);
        }
    }
    value.starts_with('[') && !value.trim_end().ends_with(']')
}

/// The value without quotation marks around it.
fn plain(value: &str) -> String {
    for quotes in [r#"""""#, "'''", "\"", "'"] {
        let inner = value.strip_prefix(quotes).and_then(|rest| rest.strip_suffix(quotes));
        if let Some(inner) = inner {
            // A line break right after three quotation marks is not part of the text.
            return inner.strip_prefix('\n').unwrap_or(inner).to_owned();
        }
    }
    value.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_their_table_before_them_and_texts_hold_no_tables() {
        let text = r#"
seed = 3
device = "cpu"
# base = "none"

[model]
template = """
User: {prompt}
[ppo.guards]
max-kl = 7
Assistant:"""
date = ''

[ppo.guards]
max-kl = 100.0
names = [
    "a = b",
    "c",
]
n = [4, 16]
"#;
        let found = keys(text);
        let got: Vec<(&str, &str)> = found.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let want = [
            ("device", "cpu"),
            ("model.date", ""),
            ("model.template", "User: {prompt}\n[ppo.guards]\nmax-kl = 7\nAssistant:"),
            ("ppo.guards.max-kl", "100.0"),
            ("ppo.guards.n", "[4, 16]"),
            ("ppo.guards.names", "[\n    \"a = b\",\n    \"c\",\n]"),
            ("seed", "3"),
        ];
        assert_eq!(got, want);
    }

    #[test]
    fn what_ends_in_the_middle_is_read_as_far_as_it_goes() {
        assert_eq!(keys("a = \"\"\"\nhalf"), [("a".to_owned(), "\"\"\"\nhalf".to_owned())].into());
        assert_eq!(keys("no key\n[half"), BTreeMap::new());
    }
}
