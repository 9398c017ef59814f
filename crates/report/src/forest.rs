//! Shares with their intervals, one below the other.

use crate::{
    figure::label_of,
    html::{Element, Html, el},
    plot::{canvas, circle, label, line},
    scale::Axis,
    source::percent,
};
use instruct_eval::Interval;
use std::collections::BTreeSet;

/// Shares side by side on one axis of percent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Forest {
    pub(crate) rows: Vec<(String, Interval)>,
    /// Shares that are drawn as lines from top to bottom, with what they mean.
    pub(crate) guides: Vec<(f64, &'static str)>,
}

/// More rows than this are neither drawn nor listed.
const MOST: usize = 40;

/// At most forty of the rows, those with the most units, in the order in which they came; and a sentence where some
/// were left out.
pub(crate) fn largest(rows: Vec<(String, Interval)>) -> (Vec<(String, Interval)>, String) {
    if rows.len() <= MOST {
        return (rows, String::new());
    }
    let mut sizes: Vec<(usize, usize)> = rows.iter().enumerate().map(|(place, (_, of))| (of.n, place)).collect();
    sizes.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
    let kept: BTreeSet<usize> = sizes[..MOST].iter().map(|&(_, place)| place).collect();
    let said = format!(" Of {} rows these are the {MOST} with the most prompts.", rows.len());
    let rows = rows.into_iter().enumerate().filter(|(place, _)| kept.contains(place));
    (rows.map(|(_, row)| row).collect(), said)
}

const LEFT: f64 = 124.0;
const RIGHT: f64 = 310.0;
const TOP: f64 = 18.0;
const ROW: f64 = 17.0;

impl Forest {
    /// The drawing of the figure `id`.
    pub(crate) fn svg(&self, id: &str) -> Html {
        let bottom = TOP + ROW * self.rows.len() as f64;
        let ends = self.rows.iter().flat_map(|(_, of)| [Some(of.mean), of.low, of.high]).flatten();
        let axis = Axis::padded(ends.chain(self.guides.iter().map(|guide| guide.0)).map(|share| 100.0 * share), 6);
        let at = |share: f64| axis.place(100.0 * share, LEFT, RIGHT);
        let tick = |(value, written): (f64, String)| {
            let x = axis.place(value, LEFT, RIGHT);
            el("g").add(line((x, TOP), (x, bottom)).class("grid")).add(label(x, bottom + 13.0, "middle", &written))
        };
        let guide = |&(share, means): &(f64, &'static str)| {
            let x = at(share);
            let anchor = if x > RIGHT - 50.0 { "end" } else { "middle" };
            el("g").class("guide").add(line((x, TOP - 4.0), (x, bottom))).add(label(x, TOP - 7.0, anchor, means))
        };
        let row = |(i, (name, of)): (usize, &(String, Interval))| {
            let y = TOP + ROW * (i as f64 + 0.5);
            let title = el("title").text(format!("{name}: {}, n = {}", percent(of), of.n));
            let bar = of.low.zip(of.high).map(|(low, high)| line((at(low), y), (at(high), y)).class("bar"));
            el("g").class("a").add(title).add(row_name(name, y)).add(bar).add(circle(at(of.mean), y, 3.5).class("mark"))
        };
        canvas(bottom + 34.0)
            .attr("aria-labelledby", label_of(id))
            .add(el("g").class("axis").add_all(axis.ticks().into_iter().map(tick)))
            .add(label((LEFT + RIGHT) / 2.0, bottom + 29.0, "middle", "percent").class("small"))
            .add_all(self.guides.iter().map(guide))
            .add_all(self.rows.iter().enumerate().map(row))
            .into()
    }
}

/// What fits beside the axis; the whole name is in the table, and when one hovers.
fn row_name(name: &str, y: f64) -> Element {
    const FITS: usize = 20;
    let short: String = name.chars().take(FITS - 1).collect();
    let shown = if name.chars().count() > FITS { format!("{short}…") } else { name.to_owned() };
    label(LEFT - 8.0, y + 3.5, "end", &shown).class("row")
}

/// One interval on the axis from 0 to 100 %, small enough for a cell of a table: the numbers stand beside it.
pub(crate) fn small(of: &Interval) -> Html {
    let at = |share: f64| 4.0 + 152.0 * share.clamp(0.0, 1.0);
    let bar = of.low.zip(of.high).map(|(low, high)| line((at(low), 7.0), (at(high), 7.0)).class("bar"));
    el("svg")
        .class("small-forest")
        .attr("viewBox", "0 0 160 14")
        .attr("aria-hidden", "true")
        .add(line((at(0.0), 7.0), (at(1.0), 7.0)).class("grid"))
        .add(line((at(0.5), 1.0), (at(0.5), 13.0)).class("half"))
        .add(el("g").class("a").add(bar).add(circle(at(of.mean), 7.0, 3.5).class("mark")))
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_very_many_rows_the_largest_stay_in_their_order() {
        let row = |i: usize| (format!("row {i}"), Interval { mean: 0.5, low: None, high: None, n: (i * 7) % 50 });
        let (rows, said) = largest((0..50).map(row).collect());
        assert_eq!(rows.len(), 40);
        assert!(
            rows.iter().all(|(_, of)| of.n >= 10)
                && rows.is_sorted_by_key(|(name, _)| name[4..].parse::<u32>().unwrap())
        );
        assert_eq!(said, " Of 50 rows these are the 40 with the most prompts.");
        assert_eq!(largest((0..40).map(row).collect()).1, "");
    }
}
