//! Small pieces that several sections use.

use crate::html::{Element, Html, el};

/// That something is not there yet, and what would write it.
pub(crate) fn absent(text: &str) -> Html {
    el("p").class("absent").text(text).into()
}

pub(crate) fn paragraph(text: impl std::fmt::Display) -> Element {
    el("p").text(text)
}

pub(crate) fn heading(text: &str) -> Html {
    el("h3").text(text).into()
}

/// Figures side by side, as many as fit.
pub(crate) fn figures(figures: impl IntoIterator<Item = Html>) -> Html {
    let mut inner = figures.into_iter().peekable();
    if inner.peek().is_none() {
        return Html::default();
    }
    el("div").class("figures").add_all(inner).into()
}

/// Figures two by two, where there is room: the two of a pair are read together.
pub(crate) fn pairs(figures: impl IntoIterator<Item = Html>) -> Html {
    el("div").class("figures pairs").add_all(figures).into()
}

/// A name made fit to be part of an id: letters, digits and hyphens.
pub(crate) fn slug(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect()
}
