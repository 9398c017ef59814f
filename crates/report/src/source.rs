//! A JSON file of the run, whose numbers are shown with the place that they come from.

use crate::html::{Element, Html, el, text};
use instruct_eval::Interval;
use serde_json::Value;

/// A file of the run folder and what it holds.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    file: &'static str,
    value: Value,
}

/// How a number is written: as the table of `instruct pipeline` writes it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum As {
    /// With so many digits after the point.
    Fixed(usize),
    /// A share, in percent with one digit after the point.
    Percent,
    /// With a power of ten and one digit after the point.
    Power,
}

impl As {
    pub(crate) fn write(self, value: f64) -> String {
        match self {
            As::Fixed(digits) => format!("{value:.digits$}"),
            As::Percent => format!("{:.1} %", 100.0 * value),
            As::Power => format!("{value:.1e}"),
        }
    }

    /// Its name in the page.
    fn name(self) -> String {
        match self {
            As::Fixed(digits) => format!("fixed-{digits}"),
            As::Percent => "percent".to_owned(),
            As::Power => "power".to_owned(),
        }
    }
}

impl Source {
    pub(crate) fn new(file: &'static str, value: Value) -> Source {
        Source { file, value }
    }

    /// What lies under these keys; in a list the key is a place.
    pub(crate) fn at(&self, path: &[&str]) -> Option<&Value> {
        path.iter().try_fold(&self.value, |value, key| match value {
            Value::Array(list) => list.get(key.parse::<usize>().ok()?),
            other => other.get(key),
        })
    }

    pub(crate) fn number(&self, path: &[&str]) -> Option<f64> {
        self.at(path)?.as_f64()
    }

    pub(crate) fn words(&self, path: &[&str]) -> Option<&str> {
        self.at(path)?.as_str()
    }

    pub(crate) fn interval(&self, path: &[&str]) -> Option<Interval> {
        serde_json::from_value(self.at(path)?.clone()).ok()
    }

    /// The names of the object there, in alphabetical order; of a list its places.
    pub(crate) fn keys(&self, path: &[&str]) -> Vec<String> {
        match self.at(path) {
            Some(Value::Object(map)) => {
                let mut keys: Vec<String> = map.keys().cloned().collect();
                keys.sort();
                keys
            }
            Some(Value::Array(list)) => (0..list.len()).map(|place| place.to_string()).collect(),
            _ => Vec::new(),
        }
    }

    /// The number there, with its place; a dash where there is none.
    pub(crate) fn show(&self, path: &[&str], form: As) -> Html {
        let shown = |value: f64| self.placed(path, &form.name(), value).text(form.write(value));
        self.number(path).map_or_else(dash, |value| shown(value).into())
    }

    /// The interval there in percent, with its place; a dash where there is none.
    pub(crate) fn show_interval(&self, path: &[&str]) -> Html {
        let shown = |of: Interval| self.placed(path, "interval", of.mean).add(in_parts(&percent(&of)));
        self.interval(path).map_or_else(dash, |of| shown(of).into())
    }

    /// The interval there with two decimals, with its place; a dash where there is none.
    pub(crate) fn show_plain_interval(&self, path: &[&str]) -> Html {
        let two = |value| As::Fixed(2).write(value);
        let shown =
            |of: Interval| self.placed(path, "plain-interval", of.mean).add(in_parts(&with_bounds(&of, two, two)));
        self.interval(path).map_or_else(dash, |of| shown(of).into())
    }

    /// An element that says which number of which file it shows: a test reads both and compares.
    fn placed(&self, path: &[&str], form: &str, value: f64) -> Element {
        el("data").attr("data-key", self.place(path)).attr("data-as", form).attr("value", value)
    }

    /// The file and a JSON pointer (RFC 6901) into it.
    fn place(&self, path: &[&str]) -> String {
        let step = |key: &&str| format!("/{}", key.replace('~', "~0").replace('/', "~1"));
        format!("{}#{}", self.file, path.iter().map(step).collect::<String>())
    }
}

/// A path that goes on.
pub(crate) fn under<'a>(path: &[&'a str], keys: &[&'a str]) -> Vec<&'a str> {
    [path, keys].concat()
}

/// What stands where there is no number.
pub(crate) fn dash() -> Html {
    el("span").class("none").text("–").into()
}

/// A share with its interval, or that there were too few outcomes for one.
pub(crate) fn percent(of: &Interval) -> String {
    with_bounds(of, |mean| As::Percent.write(mean), |bound| format!("{:.1}", 100.0 * bound))
}

fn with_bounds(of: &Interval, mean: impl Fn(f64) -> String, bound: impl Fn(f64) -> String) -> String {
    let bounds = match (of.low, of.high) {
        (Some(low), Some(high)) => format!("[{}, {}]", bound(low), bound(high)),
        _ => "[too few]".to_owned(),
    };
    format!("{} {bounds}", mean(of.mean))
}

/// An interval as it was written, in two parts that a narrow page may put on two lines.
fn in_parts(written: &str) -> Html {
    let (mean, bounds) = written.split_once(" [").unwrap_or((written, ""));
    let whole = |part: String| el("span").class("whole").text(part);
    Html::from(whole(mean.to_owned())).followed_by(text(" ")).followed_by(whole(format!("[{bounds}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_number_is_written_as_the_terminal_writes_it_and_says_where_it_stands() {
        #[track_caller]
        fn check(path: &[&str], form: As, want: &str) {
            let source = Source::new("r.json", json!({ "a": [{ "b/c~": 0.69225 }], "none": null }));
            let html = el("p").add(source.show(path, form));
            assert!(Html::from(html).into_page().contains(want));
        }
        check(
            &["a", "0", "b/c~"],
            As::Percent,
            "data-key=\"r.json#/a/0/b~1c~0\" data-as=\"percent\" value=\"0.69225\">69.2 %<",
        );
        check(&["a", "0", "b/c~"], As::Fixed(2), "data-as=\"fixed-2\" value=\"0.69225\">0.69<");
        check(&["a", "0", "b/c~"], As::Power, "data-as=\"power\" value=\"0.69225\">6.9e-1<");
        check(&["none"], As::Percent, ">–<");
        check(&["a", "1"], As::Percent, ">–<");
    }

    #[test]
    fn an_interval_says_where_there_were_too_few() {
        #[track_caller]
        fn check(value: Value, want: Option<(&str, &str)>) {
            let shown = Source::new("r.json", json!({ "i": value })).show_interval(&["i"]);
            let whole = |part: &str| format!("<span class=\"whole\">{part}</span>");
            let want = want.map_or(">–<".to_owned(), |(mean, bounds)| format!("{} {}", whole(mean), whole(bounds)));
            assert!(shown.clone().into_page().contains(&want), "{shown:?}");
        }
        check(json!({ "mean": 0.7726, "low": 0.7217, "high": 0.8165, "n": 299 }), Some(("77.3 %", "[72.2, 81.7]")));
        check(json!({ "mean": 1.0, "low": null, "high": null, "n": 5 }), Some(("100.0 %", "[too few]")));
        check(json!({ "mean": 1.0 }), None);
    }

    #[test]
    fn keys_are_those_of_objects_and_places_those_of_lists() {
        let source = Source::new("r.json", json!({ "b": { "y": 1, "x": 2 }, "l": [7, 8] }));
        assert_eq!(source.keys(&["b"]), ["x", "y"]);
        assert_eq!(source.keys(&["l"]), ["0", "1"]);
        assert_eq!(source.keys(&["l", "0"]), Vec::<String>::new());
    }
}
