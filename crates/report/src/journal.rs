//! The journals of a stage: one JSON object a line, written while the run goes on.

use crate::thin::Point;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The lines of one journal that could be read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Journal {
    rows: Vec<Map<String, Value>>,
    unreadable: Vec<usize>,
}

impl Journal {
    /// Every whole line. The last one is left out where it ends without a line break and is no object: it is being
    /// written, or a power cut tore it.
    pub(crate) fn read(bytes: &[u8]) -> Journal {
        let mut journal = Journal::default();
        let lines: Vec<&[u8]> = bytes.split(|&byte| byte == b'\n').collect();
        for (number, line) in (1..).zip(&lines).filter(|(_, line)| !line.is_empty()) {
            match serde_json::from_slice(line) {
                Ok(row) => journal.rows.push(row),
                Err(_) if number == lines.len() => {}
                Err(_) => journal.unreadable.push(number),
            }
        }
        journal
    }

    /// Numbers of the lines that are no objects, counted from 1.
    pub(crate) fn unreadable(&self) -> &[usize] {
        &self.unreadable
    }

    /// A metric over the steps; lines without it, or with something that is no number, count for nothing.
    pub(crate) fn curve(&self, metric: &str) -> Vec<Point> {
        self.rows.iter().filter_map(|row| Some((row.get("step")?.as_f64()?, row.get(metric)?.as_f64()?))).collect()
    }

    /// The last step; none of an empty journal.
    pub(crate) fn last_step(&self) -> Option<f64> {
        self.rows.last()?.get("step")?.as_f64()
    }

    /// Of a journal of timings, seconds by phase.
    pub(crate) fn phases(&self) -> BTreeMap<String, f64> {
        let mut sums = BTreeMap::new();
        for row in &self.rows {
            if let (Some(phase), Some(seconds)) = (word(row, "phase"), row.get("seconds").and_then(Value::as_f64)) {
                *sums.entry(phase.to_owned()).or_insert(0.0) += seconds;
            }
        }
        sums
    }
}

fn word<'a>(row: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    row.get(key)?.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_last_line_is_left_out_and_another_is_named() {
        #[track_caller]
        fn check(text: &str, curve: &[Point], unreadable: &[usize]) {
            let journal = Journal::read(text.as_bytes());
            assert_eq!((journal.curve("a").as_slice(), journal.unreadable()), (curve, unreadable), "{text:?}");
        }
        check("", &[], &[]);
        check("{\"step\":1,\"a\":2.5}\n{\"step\":2,\"a\":3", &[(1.0, 2.5)], &[]);
        // A line that is whole counts, although its line break is not there yet.
        check("{\"step\":1,\"a\":2.5}", &[(1.0, 2.5)], &[]);
        check("{\"step\":1\n{\"step\":2,\"a\":0}\n7\n", &[(2.0, 0.0)], &[1, 3]);
        check("{\"step\":1,\"a\":null}\n{\"a\":1}\n{\"step\":3,\"b\":1}\n", &[], &[]);
        check("{\"step\":1}\n\u{0}\u{0}", &[], &[]);
    }

    #[test]
    fn phases_add_up() {
        let text = "{\"phase\":\"x\",\"seconds\":1}\n{\"phase\":\"x\",\"seconds\":2}\n{\"phase\":\"y\"}\n";
        assert_eq!(Journal::read(text.as_bytes()).phases(), [("x".to_owned(), 3.0)].into());
    }
}
