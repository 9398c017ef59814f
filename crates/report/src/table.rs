//! Tables that scroll on their own when the page is narrow.

use crate::html::{Element, Html, el, text};

/// A table with named columns, whose rows begin with their name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    /// What the table shows; read out before it.
    pub(crate) caption: String,
    /// Names of the columns, that of the row names first.
    pub(crate) head: Vec<Html>,
    pub(crate) rows: Vec<(Html, Vec<Html>)>,
}

impl Table {
    pub(crate) fn new(caption: impl Into<String>, head: &[&str]) -> Table {
        Table { caption: caption.into(), head: head.iter().map(text).collect(), rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, name: impl Into<Html>, cells: impl IntoIterator<Item = Html>) {
        self.rows.push((name.into(), cells.into_iter().collect()));
    }

    /// The table with its caption above it.
    pub(crate) fn html(&self) -> Html {
        self.with_class("numbers")
    }

    /// The same with texts in its cells, which may go on over lines.
    pub(crate) fn of_words(&self) -> Html {
        self.with_class("words")
    }

    fn with_class(&self, class: &'static str) -> Html {
        let head = |name: &Html| el("th").attr("scope", "col").add(name.clone());
        let row = |(name, cells): &(Html, Vec<Html>)| {
            let cells = cells.iter().map(|cell| el("td").add(cell.clone()));
            el("tr").add(el("th").attr("scope", "row").add(name.clone())).add_all(cells)
        };
        let table = el("table")
            .class(class)
            .add(el("caption").text(&self.caption))
            .add(el("thead").add(el("tr").add_all(self.head.iter().map(head))))
            .add(el("tbody").add_all(self.rows.iter().map(row)));
        scrolling(&self.caption).add(table).into()
    }
}

/// A box that scrolls sideways, which the keyboard can reach.
fn scrolling(name: &str) -> Element {
    el("div").class("scroll").attr("role", "group").attr("aria-label", name).attr("tabindex", "0")
}

/// What a reader opens to see more.
pub(crate) fn details(summary: &str, inner: impl Into<Html>) -> Html {
    el("details").add(el("summary").text(summary)).add(inner).into()
}
