//! A drawing with what everybody needs who cannot see it: a sentence and the numbers.

use crate::{
    html::{Html, el},
    table::{Table, details},
};

/// A drawing, its title, a sentence that says what is to be seen, and a table of its numbers.
pub(crate) struct Figure {
    /// Its name in the page: letters, digits and hyphens.
    pub(crate) id: String,
    pub(crate) title: String,
    /// The unit of what is drawn, or what else belongs beside the title.
    pub(crate) unit: String,
    pub(crate) legend: Option<Html>,
    pub(crate) drawing: Html,
    pub(crate) caption: String,
    /// How it was made, where that is not obvious: what was thinned, which metrics these are.
    pub(crate) note: String,
    pub(crate) table: Table,
}

impl Figure {
    pub(crate) fn html(self) -> Html {
        let Figure { id, title, unit, legend, drawing, caption, note, table } = self;
        let unit = (!unit.is_empty()).then(|| el("span").class("unit").text(" ").text(unit));
        let note = (!note.is_empty()).then(|| el("span").class("note").text(" ").text(note));
        el("figure")
            .attr("id", &id)
            .add(el("p").class("title").attr("id", title_of(&id)).text(title).add(unit))
            .add(legend)
            .add(drawing)
            .add(el("figcaption").add(el("span").attr("id", caption_of(&id)).text(caption)).add(note))
            .add(details("The numbers of this figure", table.html()))
            .into()
    }
}

/// What a drawing of the figure `id` is labelled by, for whoever hears the page.
pub(crate) fn label_of(id: &str) -> String {
    format!("{} {}", title_of(id), caption_of(id))
}

fn title_of(id: &str) -> String {
    format!("{id}-title")
}

fn caption_of(id: &str) -> String {
    format!("{id}-caption")
}

/// A number as a caption, a readout or a table of a curve writes it: four digits that count.
pub(crate) fn number(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 {
        return "0".to_owned();
    }
    if !(1e-4..1e6).contains(&size) {
        return format!("{value:.2e}");
    }
    let digits = (3 - size.log10().floor() as i32).clamp(0, 6) as usize;
    let written = format!("{value:.digits$}");
    match written.contains('.') {
        true => written.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => written,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_four_digits_that_count() {
        #[track_caller]
        fn check(value: f64, want: &str) {
            assert_eq!(number(value), want);
        }
        check(0.0, "0");
        check(1.20441, "1.204");
        check(-0.034567, "-0.03457");
        check(18.3515625, "18.35");
        check(584.0, "584");
        check(12288.4, "12288");
        check(0.0015, "0.0015");
        check(0.00001, "1.00e-5");
        check(3.2e7, "3.20e7");
        check(100.0, "100");
    }
}
