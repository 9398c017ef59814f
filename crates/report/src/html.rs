//! HTML that holds no unescaped text: elements are built here, and everything else goes into them as text.

use crate::escape::escape;
use std::fmt::{Display, Write};

/// A piece of a page.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Html(String);

/// An element that is being built.
#[derive(Clone, Debug)]
pub(crate) struct Element {
    tag: &'static str,
    attributes: String,
    inner: String,
}

/// An empty element.
pub(crate) fn el(tag: &'static str) -> Element {
    Element { tag, attributes: String::new(), inner: String::new() }
}

/// A piece that is text alone.
pub(crate) fn text(text: impl Display) -> Html {
    Html(escape(&text.to_string()))
}

impl Element {
    /// With one more attribute, whose value is escaped.
    pub(crate) fn attr(mut self, name: &'static str, value: impl Display) -> Element {
        // Writing into a string cannot fail.
        let _ = write!(self.attributes, " {name}=\"{}\"", escape(&value.to_string()));
        self
    }

    pub(crate) fn class(self, name: &'static str) -> Element {
        self.attr("class", name)
    }

    /// With this text after what it holds.
    pub(crate) fn text(mut self, text: impl Display) -> Element {
        self.inner.push_str(&escape(&text.to_string()));
        self
    }

    /// With this piece after what it holds.
    pub(crate) fn add(mut self, piece: impl Into<Html>) -> Element {
        self.inner.push_str(&piece.into().0);
        self
    }

    pub(crate) fn add_all<P: Into<Html>>(self, pieces: impl IntoIterator<Item = P>) -> Element {
        pieces.into_iter().fold(self, Element::add)
    }

    /// With a text of this crate as it stands: styles and scripts are not escaped by browsers.
    pub(crate) fn raw(mut self, text: &'static str) -> Element {
        self.inner.push_str(text);
        self
    }
}

/// Elements that have no end tag.
const VOID: [&str; 1] = ["meta"];

impl From<Element> for Html {
    fn from(Element { tag, attributes, inner }: Element) -> Html {
        if VOID.contains(&tag) {
            return Html(format!("<{tag}{attributes}>"));
        }
        Html(format!("<{tag}{attributes}>{inner}</{tag}>"))
    }
}

impl<P: Into<Html>> From<Option<P>> for Html {
    fn from(piece: Option<P>) -> Html {
        piece.map(P::into).unwrap_or_default()
    }
}

impl<P: Into<Html>> FromIterator<P> for Html {
    fn from_iter<I: IntoIterator<Item = P>>(pieces: I) -> Html {
        let mut all = Html::default();
        pieces.into_iter().for_each(|piece| all.push(piece));
        all
    }
}

impl Html {
    pub(crate) fn push(&mut self, piece: impl Into<Html>) {
        self.0.push_str(&piece.into().0);
    }

    pub(crate) fn followed_by(mut self, piece: impl Into<Html>) -> Html {
        self.push(piece);
        self
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The whole page.
    pub(crate) fn into_page(self) -> String {
        format!("<!doctype html>\n{}\n", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_attributes_are_escaped_and_pieces_are_not_escaped_twice() {
        let inner = el("b").text("<i>");
        let whole = el("p").attr("title", "\"x\"").text("a & ").add(inner).add(text("'"));
        let want = "<p title=\"&quot;x&quot;\">a &amp; <b>&lt;i&gt;</b>&#39;</p>";
        assert_eq!(Html::from(whole), Html(want.to_owned()));
        assert_eq!(Html::from(el("meta").attr("charset", "utf-8")).0, "<meta charset=\"utf-8\">");
        assert_eq!(Html::from(None::<Element>), Html::default());
        assert_eq!([el("i"), el("b")].into_iter().collect::<Html>().0, "<i></i><b></b>");
    }
}
