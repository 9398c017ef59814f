//! The pages as a browser shows them.

use crate::numbers::{recorded, value, written};
use instruct_browser::{Browser, axe};
use std::{fs, path::Path};

/// Every number: what it is the value of, how it is written, and what stands there.
const NUMBERS: &str = "[...document.querySelectorAll('data[data-key]')].map(shown => \
    [shown.dataset.key, shown.dataset.as, shown.value, shown.textContent])";

#[test]
fn a_browser_shows_the_numbers_of_the_files_and_asks_for_nothing_else() {
    let mut browser = match Browser::start() {
        Ok(browser) => browser,
        Err(reason) => return println!("skipped: {reason}"),
    };
    let axe = axe();
    if axe.is_none() {
        println!("skipped: axe-core is not here; INSTRUCT_AXE names its axe.min.js");
    }
    let mut pages = Vec::new();
    for recorded in recorded().into_iter().filter(|recorded| recorded.frontier.is_some()).take(2) {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.html", recorded.name));
        fs::write(&path, recorded.run().page()).unwrap();
        let at = format!("file://{}", path.canonicalize().unwrap().display());
        browser.open(&at);
        pages.push(at);
        let (files, shown) = (recorded.files(), browser.eval(NUMBERS));
        let shown = shown.as_array().unwrap();
        assert!(shown.len() > 100, "{} numbers", shown.len());
        for number in shown {
            let [key, form, held, words] = [0, 1, 2, 3].map(|i| number[i].as_str().unwrap());
            let (number, want) = written(form, value(&files, key));
            assert_eq!((held.parse(), words), (Ok(number), want.as_str()), "{key}");
        }
        for (width, height, scale, dark) in [(1_280, 800, 1.0, false), (360, 740, 1.0, true), (640, 400, 2.0, true)] {
            browser.window(width, height, scale, dark);
            let fits = browser.eval(&format!("document.documentElement.scrollWidth <= {width}"));
            assert_eq!(fits, true, "{} scrolls sideways in {width} pixels", recorded.name);
            if let Some(axe) = &axe {
                assert_eq!(browser.barriers(axe), [""; 0], "{} in {width} pixels, dark: {dark}", recorded.name);
            }
        }
    }
    assert_eq!((browser.console_errors(), browser.requests()), (Vec::new(), pages));
}
