//! A small reader of pages, which knows no more than that `<` begins a tag: every other one must have been escaped.

use std::collections::{BTreeMap, BTreeSet};

/// A tag or a text.
pub(crate) enum Piece {
    Open { tag: String, attributes: BTreeMap<String, String> },
    Close(String),
    Text(String),
}

/// The pieces of a page in order; style and script are texts.
pub(crate) fn pieces(page: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut rest = page.strip_prefix("<!doctype html>").expect("a page says what it is");
    while let Some((text, after)) = rest.split_once('<') {
        pieces.push(Piece::Text(unescape(text)));
        let (tag, after) = after.split_once('>').expect("a tag ends");
        rest = after;
        match tag.strip_prefix('/') {
            Some(name) => pieces.push(Piece::Close(name.to_owned())),
            None => {
                let (name, attributes) = tag.split_once(' ').unwrap_or((tag, ""));
                pieces.push(Piece::Open { tag: name.to_owned(), attributes: read_attributes(attributes) });
                if ["style", "script"].contains(&name) {
                    let (raw, after) = rest.split_once(&format!("</{name}>")).expect("an element ends");
                    pieces.extend([Piece::Text(raw.to_owned()), Piece::Close(name.to_owned())]);
                    rest = after;
                }
            }
        }
    }
    pieces.push(Piece::Text(unescape(rest)));
    pieces
}

/// `name="value"` after `name="value"`, and nothing else.
fn read_attributes(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (name, after) = rest.split_once("=\"").unwrap_or_else(|| panic!("`{text}` are no attributes"));
        let (value, after) = after.split_once('"').unwrap_or_else(|| panic!("`{text}` does not end"));
        assert!(name.trim().chars().all(|c| c.is_ascii_alphanumeric() || c == '-'), "`{name}` in `{text}`");
        assert!(found.insert(name.trim().to_owned(), unescape(value)).is_none(), "`{name}` twice in `{text}`");
        rest = after;
    }
    found
}

fn unescape(text: &str) -> String {
    let entities = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&amp;", "&")];
    entities.iter().fold(text.to_owned(), |text, (entity, c)| text.replace(entity, c))
}

/// The opening tags of a page.
pub(crate) fn elements(page: &str) -> Vec<(String, BTreeMap<String, String>)> {
    let open = |piece| if let Piece::Open { tag, attributes } = piece { Some((tag, attributes)) } else { None };
    pieces(page).into_iter().filter_map(open).collect()
}

/// What a person can read, with one space between words; neither style nor script.
pub(crate) fn words(page: &str) -> String {
    let mut silent = 0;
    let mut words = Vec::new();
    for piece in pieces(page) {
        match piece {
            Piece::Open { tag, .. } if ["style", "script"].contains(&tag.as_str()) => silent += 1,
            Piece::Close(tag) if ["style", "script"].contains(&tag.as_str()) => silent -= 1,
            Piece::Text(text) if silent == 0 => words.extend(text.split_whitespace().map(str::to_owned)),
            _ => {}
        }
    }
    words.join(" ")
}

/// The words of each row of each table.
pub(crate) fn rows(page: &str) -> Vec<String> {
    page.split("<tr>").skip(1).filter_map(|rest| rest.split("</tr>").next()).map(row_words).collect()
}

fn row_words(row: &str) -> String {
    words(&format!("<!doctype html>{row}"))
}

/// Attributes and text of every `data` element.
pub(crate) fn data(page: &str) -> Vec<(BTreeMap<String, String>, String)> {
    let mut found: Vec<(BTreeMap<String, String>, String)> = Vec::new();
    let mut inside = false;
    for piece in pieces(page) {
        match piece {
            Piece::Open { tag, attributes } if tag == "data" => {
                inside = true;
                found.push((attributes, String::new()));
            }
            Piece::Close(tag) if tag == "data" => inside = false,
            Piece::Text(text) if inside => found.last_mut().unwrap().1.push_str(&text),
            _ => {}
        }
    }
    found
}

/// Panics unless every element ends, every name is there once, what is pointed at is there, and nothing comes from
/// elsewhere or runs.
#[track_caller]
pub(crate) fn check_whole(page: &str) {
    let mut open = Vec::new();
    for piece in pieces(page) {
        match piece {
            Piece::Open { tag, .. } if tag != "meta" => open.push(tag),
            Piece::Close(tag) => assert_eq!(open.pop().as_deref(), Some(tag.as_str())),
            _ => {}
        }
    }
    assert!(open.is_empty(), "{open:?} do not end");
    let elements = elements(page);
    let mut ids = BTreeSet::new();
    for id in elements.iter().filter_map(|(_, attributes)| attributes.get("id")) {
        assert!(ids.insert(id.as_str()), "the id {id} is there twice");
    }
    for (tag, attributes) in &elements {
        let pointed = attributes.get("aria-labelledby").into_iter().flat_map(|ids| ids.split(' '));
        for id in pointed.chain(attributes.get("href").map(|href| href.strip_prefix('#').expect("a link inside"))) {
            assert!(ids.contains(id), "{tag} points at {id}, which is not there");
        }
        for name in attributes.keys() {
            assert!(name != "src" && name != "style" && !name.starts_with("on"), "{tag} has {name}");
        }
        let known = [
            "html",
            "head",
            "meta",
            "title",
            "style",
            "script",
            "body",
            "header",
            "nav",
            "main",
            "section",
            "article",
            "figure",
            "figcaption",
            "details",
            "summary",
            "table",
            "caption",
            "thead",
            "tbody",
            "tr",
            "th",
            "td",
            "dl",
            "dt",
            "dd",
            "ol",
            "ul",
            "li",
            "h1",
            "h2",
            "h3",
            "h4",
            "h5",
            "p",
            "div",
            "span",
            "a",
            "code",
            "data",
            "svg",
            "g",
            "line",
            "path",
            "circle",
            "polygon",
            "text",
        ];
        assert!(known.contains(&tag.as_str()), "a `{tag}` came from somewhere");
    }
    assert!(!page.contains("://"), "something comes from elsewhere");
}
