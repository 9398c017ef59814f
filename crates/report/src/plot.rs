//! Lines and marks over two axes, as SVG.

use crate::{
    figure::{label_of, number},
    html::{Element, Html, el},
    scale::Axis,
    table::Table,
    thin::{Point, every, smooth, thin},
};

/// Curves over one pair of axes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plot {
    /// What the horizontal axis counts.
    pub(crate) x: &'static str,
    pub(crate) series: Vec<Series>,
    /// Values that are drawn as lines across, with what they mean.
    pub(crate) guides: Vec<(f64, &'static str)>,
    /// Values that both axes reach at least, so that several plots can be compared.
    pub(crate) x_reaches: Vec<f64>,
    pub(crate) y_reaches: Vec<f64>,
    /// A line from corner to corner: where both axes are equal.
    pub(crate) diagonal: bool,
}

/// One curve. Its place among the others decides its colour, its dashes and the shape of its marks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<Point>,
    pub(crate) drawn: Drawn,
    /// Points that are named in the drawing.
    pub(crate) named: Vec<(usize, &'static str)>,
    /// What hovering over a mark says besides its numbers; empty, or one for each point.
    pub(crate) titles: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Drawn {
    /// A line; a long one is faint, with its running mean above it.
    #[default]
    Line,
    /// A mark at each point, and a line through them.
    Marked,
    /// A line without marks or readout, such as a fitted law.
    Law,
}

const WIDTH: f64 = 320.0;
const HEIGHT: f64 = 190.0;
const LEFT: f64 = 44.0;
const RIGHT: f64 = WIDTH - 10.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = HEIGHT - 34.0;

/// More points than this are thinned: about one for each unit of the drawing's width.
const DRAWN: usize = 240;
/// Curves of more points than this are drawn with a running mean.
const LONG: usize = 150;
/// Rows of a table of numbers.
const ROWS: usize = 24;

impl Plot {
    /// The drawing of the figure `id`.
    pub(crate) fn svg(&self, id: &str) -> Html {
        let (x, y) = self.axes();
        let plot = format!("{LEFT} {RIGHT} {} {} {TOP} {BOTTOM}", x.low, x.high);
        let root = canvas(HEIGHT).attr("aria-labelledby", label_of(id)).attr("data-plot", plot).attr("data-of", self.x);
        let guides = self.guides.iter().map(|&(value, means)| guide(&y, value, means));
        let diagonal = self.diagonal.then(|| {
            let end = x.high.min(y.high);
            let start = x.low.max(y.low);
            path(&[(start, start), (end, end)], &x, &y).class("guide")
        });
        let series = self.series.iter().enumerate().map(|(place, series)| series.svg(place, &x, &y));
        let cross = line((LEFT, TOP), (LEFT, BOTTOM)).class("cross").attr("visibility", "hidden");
        root.add(marks_across(&x, self.x))
            .add(marks_up(&y))
            .add_all(guides)
            .add(diagonal)
            .add_all(series)
            .add(cross)
            .into()
    }

    fn axes(&self) -> (Axis, Axis) {
        let of = |f: fn(&Point) -> f64| self.series.iter().flat_map(move |series| series.points.iter().map(f));
        let x = Axis::exact(of(|point| point.0).chain(self.x_reaches.iter().copied()), 6);
        let guides = self.guides.iter().map(|guide| guide.0);
        let values: Vec<f64> = of(|point| point.1).chain(self.y_reaches.iter().copied()).chain(guides).collect();
        let y = Axis::padded(values.iter().copied().chain(self.room_for_names(&values)), 6);
        (x, y)
    }

    /// A value that lies so far above all others that names of marks fit between.
    fn room_for_names(&self, values: &[f64]) -> Option<f64> {
        let named = self.series.iter().any(|series| !series.named.is_empty());
        let low = values.iter().copied().reduce(f64::min).filter(|_| named)?;
        let high = values.iter().copied().reduce(f64::max)?;
        Some(high + 0.12 * (high - low))
    }

    /// All but fitted laws.
    fn shown(&self) -> impl Iterator<Item = &Series> {
        self.series.iter().filter(|series| series.drawn != Drawn::Law)
    }

    /// Which line is which; nothing where there is one only.
    pub(crate) fn legend(&self) -> Option<Html> {
        let named: Vec<&str> = self.shown().map(|series| series.name.as_str()).collect();
        (named.len() > 1).then(|| legend(named.into_iter()))
    }

    /// What the lines of a long curve are, and what was left out; empty where a curve is drawn as it is.
    pub(crate) fn note(&self) -> String {
        let lines = || self.series.iter().filter(|series| series.drawn == Drawn::Line);
        let longest = lines().map(|series| series.points.len()).max().unwrap_or_default();
        let drawn = lines().map(|series| thin(&series.points, DRAWN).len()).max().unwrap_or_default();
        let mean = format!("Bold: mean of {} steps.", 2 * half(longest) + 1);
        match longest {
            n if n > DRAWN => format!("{mean} Thin: {drawn} of {longest} points."),
            n if n > LONG => mean,
            _ => String::new(),
        }
    }

    /// The numbers, by steps. Of many steps some, with those where a curve is highest or lowest.
    pub(crate) fn table(&self, caption: &str) -> Table {
        let shown: Vec<&Series> = self.shown().collect();
        let mut all: Vec<f64> = shown.iter().flat_map(|series| series.points.iter().map(|point| point.0)).collect();
        all.sort_by(f64::total_cmp);
        all.dedup();
        let steps: Vec<Point> = all.iter().map(|&step| (step, 0.0)).collect();
        let mut kept: Vec<f64> = every(&steps, ROWS).into_iter().map(|step| step.0).collect();
        if kept.len() < all.len() {
            kept.extend(shown.iter().flat_map(|series| thin(&series.points, 4)).map(|point| point.0));
            kept.sort_by(f64::total_cmp);
            kept.dedup();
        }
        let some =
            if kept.len() < all.len() { format!(" ({} of {} points)", kept.len(), all.len()) } else { String::new() };
        let head: Vec<&str> = [self.x].into_iter().chain(shown.iter().map(|series| series.name.as_str())).collect();
        let mut table = Table::new(format!("{caption}{some}"), &head);
        for step in kept {
            let cells = shown.iter().map(|series| match series.points.iter().find(|point| point.0 == step) {
                Some(point) => crate::html::text(number(point.1)),
                None => crate::source::dash(),
            });
            table.row(crate::html::text(number(step)), cells);
        }
        table
    }
}

/// Neighbours on each side of which a curve of so many points is averaged: a fortieth of it in all.
fn half(points: usize) -> usize {
    points / 80
}

impl Series {
    fn svg(&self, place: usize, x: &Axis, y: &Axis) -> Element {
        let group = el("g").class(LOOKS[place.min(LOOKS.len() - 1)]);
        match self.drawn {
            Drawn::Law => group.add(path(&self.points, x, y).class("law")),
            Drawn::Marked => {
                let marks = (0..self.points.len()).map(|i| self.mark(place, i, x, y));
                self.with_readout(group, &self.points).add(path(&self.points, x, y).class("thin")).add_all(marks)
            }
            Drawn::Line => {
                let drawn = thin(&self.points, DRAWN);
                let group = self.with_readout(group, &drawn);
                if self.points.len() <= LONG {
                    return group.add(path(&drawn, x, y));
                }
                let mean = every(&smooth(&self.points, half(self.points.len())), DRAWN / 2);
                group.add(path(&drawn, x, y).class("faint")).add(path(&mean, x, y))
            }
        }
    }

    /// The numbers for whoever points at the drawing.
    fn with_readout(&self, group: Element, points: &[Point]) -> Element {
        let join = |f: fn(&Point) -> f64| points.iter().map(|point| number(f(point))).collect::<Vec<_>>().join(",");
        group.attr("data-name", &self.name).attr("data-x", join(|p| p.0)).attr("data-y", join(|p| p.1))
    }

    fn mark(&self, place: usize, i: usize, x: &Axis, y: &Axis) -> Element {
        let point = self.points[i];
        let (px, py) = (x.place(point.0, LEFT, RIGHT), y.place(point.1, BOTTOM, TOP));
        let extra = self.titles.get(i).map_or(String::new(), |title| format!(", {title}"));
        let title = format!("{}: {} at {}{extra}", self.name, number(point.1), number(point.0));
        let names: Vec<&str> = self.named.iter().filter(|(at, _)| *at == i).map(|(_, name)| *name).collect();
        let ring = (!names.is_empty()).then(|| circle(px, py, 7.0).class("ring"));
        // The name lies above its mark, and inside the drawing.
        let above = if py < 22.0 { py + 19.0 } else { py - 11.0 };
        let anchor = match px {
            px if px > RIGHT - 40.0 => "end",
            px if px < LEFT + 40.0 => "start",
            _ => "middle",
        };
        let name = ring.is_some().then(|| label(px, above, anchor, &names.join(", ")).class("name"));
        el("g").add(el("title").text(title)).add(shape(place, px, py)).add(ring).add(name)
    }
}

/// Classes of the first, second and third line; the style gives each a colour and dashes of its own.
const LOOKS: [&str; 4] = ["a", "b", "c", "d"];

/// The mark of a series: its form alone tells it from the others.
pub(crate) fn shape(place: usize, x: f64, y: f64) -> Element {
    let points = |corners: &[(f64, f64)]| {
        let corner = |&(dx, dy): &(f64, f64)| format!("{},{}", short(x + dx), short(y + dy));
        el("polygon").attr("points", corners.iter().map(corner).collect::<Vec<_>>().join(" "))
    };
    match place {
        0 => circle(x, y, 3.5),
        1 => points(&[(-3.2, -3.2), (3.2, -3.2), (3.2, 3.2), (-3.2, 3.2)]),
        _ => points(&[(0.0, -4.4), (4.4, 0.0), (0.0, 4.4), (-4.4, 0.0)]),
    }
    .class("mark")
}

/// Names of lines, each beside a piece of it.
pub(crate) fn legend<'a>(names: impl Iterator<Item = &'a str>) -> Html {
    let entry = |(place, name): (usize, &'a str)| {
        let place = place.min(LOOKS.len() - 1);
        let piece = el("g").class(LOOKS[place]).add(line((1.0, 6.0), (27.0, 6.0))).add(shape(place, 14.0, 6.0));
        let swatch = el("svg").class("swatch").attr("viewBox", "0 0 28 12").attr("aria-hidden", "true").add(piece);
        el("li").add(swatch).text(name)
    };
    el("ul").class("legend").add_all(names.enumerate().map(entry)).into()
}

/// An empty drawing of the usual width.
pub(crate) fn canvas(height: f64) -> Element {
    el("svg").class("plot").attr("viewBox", format!("0 0 {WIDTH} {height}")).attr("role", "img")
}

pub(crate) fn line(from: (f64, f64), to: (f64, f64)) -> Element {
    let ends = [("x1", from.0), ("y1", from.1), ("x2", to.0), ("y2", to.1)];
    ends.into_iter().fold(el("line"), |line, (name, at)| line.attr(name, short(at)))
}

pub(crate) fn circle(x: f64, y: f64, radius: f64) -> Element {
    el("circle").attr("cx", short(x)).attr("cy", short(y)).attr("r", radius)
}

/// A text whose `anchor` (its start, middle or end) stands at x.
pub(crate) fn label(x: f64, y: f64, anchor: &'static str, text: &str) -> Element {
    el("text").attr("x", short(x)).attr("y", short(y)).attr("text-anchor", anchor).text(text)
}

fn path(points: &[Point], x: &Axis, y: &Axis) -> Element {
    let step = |(i, point): (usize, &Point)| {
        let command = if i == 0 { 'M' } else { 'L' };
        format!("{command}{} {}", short(x.place(point.0, LEFT, RIGHT)), short(y.place(point.1, BOTTOM, TOP)))
    };
    el("path").attr("d", points.iter().enumerate().map(step).collect::<String>())
}

/// A coordinate with one digit after the point, or none.
fn short(value: f64) -> String {
    let written = format!("{value:.1}");
    written.strip_suffix(".0").map_or(written.clone(), str::to_owned)
}

fn guide(y: &Axis, value: f64, means: &str) -> Element {
    let at = y.place(value, BOTTOM, TOP);
    let above = if at < TOP + 12.0 { at + 11.0 } else { at - 4.0 };
    el("g").class("guide").add(line((LEFT, at), (RIGHT, at))).add(label(RIGHT, above, "end", means))
}

/// The horizontal axis and what it counts.
pub(crate) fn marks_across(x: &Axis, name: &str) -> Element {
    let mark = |(value, written): (f64, String)| {
        let at = x.place(value, LEFT, RIGHT);
        el("g").add(line((at, BOTTOM), (at, BOTTOM + 4.0))).add(label(at, BOTTOM + 15.0, "middle", &written))
    };
    el("g")
        .class("axis")
        .add(line((LEFT, BOTTOM), (RIGHT, BOTTOM)))
        .add_all(x.ticks().into_iter().map(mark))
        .add(label((LEFT + RIGHT) / 2.0, HEIGHT - 4.0, "middle", name))
}

fn marks_up(y: &Axis) -> Element {
    let mark = |(value, written): (f64, String)| {
        let at = y.place(value, BOTTOM, TOP);
        let across = line((LEFT, at), (RIGHT, at)).class("grid");
        el("g").add(across).add(label(LEFT - 6.0, at + 3.5, "end", &written))
    };
    el("g").class("axis").add_all(y.ticks().into_iter().map(mark))
}
