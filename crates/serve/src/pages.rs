//! The pages for people, as they lie inside the program.

/// A file of the pages: the path at which it is asked for, its kind and its content.
type Page = (&'static str, &'static str, &'static str);

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

macro_rules! script {
    ($name:literal) => {
        (concat!("/static/", $name, ".js"), JS, include_str!(concat!("../pages/", $name, ".js")))
    };
}

macro_rules! page {
    ($name:literal) => {
        (concat!("/", $name), HTML, include_str!(concat!("../pages/", $name, ".html")))
    };
}

/// All of them.
const PAGES: &[Page] = &[
    page!("chat"),
    page!("demonstrate"),
    page!("guidelines"),
    page!("people"),
    page!("rank"),
    ("/static/app.css", CSS, include_str!("../pages/app.css")),
    ("/static/icon.svg", SVG, include_str!("../pages/icon.svg")),
    script!("api"),
    script!("board"),
    script!("chat"),
    script!("common"),
    script!("comparison"),
    script!("demonstrate"),
    script!("desk"),
    script!("drafts"),
    script!("feedback"),
    script!("fields"),
    script!("guidelines"),
    script!("keys"),
    script!("markdown"),
    script!("order"),
    script!("people"),
    script!("rank"),
    script!("ranking"),
    script!("rate"),
    script!("skip"),
    script!("stream"),
    script!("text"),
    script!("turn"),
];

/// The kind and content of what lies at a path.
pub(crate) fn page(path: &str) -> Option<(&'static str, &'static str)> {
    PAGES.iter().find(|(at, ..)| *at == path).map(|(_, kind, content)| (*kind, *content))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::BTreeSet, fs, path::Path};

    /// Every file of the folder is served, and every path that a page or a script names is a file.
    #[test]
    fn the_pages_are_whole() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("pages");
        let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
        let at = |name: String| match name.strip_suffix(".html") {
            Some(page) => format!("/{page}"),
            None => format!("/static/{name}"),
        };
        let files: BTreeSet<String> = files.map(at).collect();
        assert_eq!(files, PAGES.iter().map(|(at, ..)| (*at).to_owned()).collect());
        for (at, _, content) in PAGES {
            let named = content.split('"').filter(|part| part.starts_with("/static/") || part.starts_with("./"));
            for name in named.map(|name| name.replace("./", "/static/")) {
                assert!(files.contains(&name), "{at} names {name}");
            }
        }
    }
}
