use super::*;

#[test]
fn base64_is_read() {
    let check = |text: &str, bytes: &[u8]| assert_eq!(bytes_of_base64(text), bytes, "{text}");
    check("", b"");
    check("TQ==", b"M");
    check("TWE=", b"Ma");
    check("TWFu", b"Man");
    check("+/8A", &[0xfb, 0xff, 0]);
}

#[test]
fn what_is_waited_for_can_fail_to_come() {
    let mut browser = match Browser::start() {
        Ok(browser) => browser,
        Err(reason) => return println!("skipped: {reason}"),
    };
    let mut check = |condition: &str, holds: bool| {
        assert_eq!(browser.comes_to_hold(condition, if holds { 60_000 } else { 100 }), holds, "{condition}");
    };
    check("true", true);
    check("false", false);
    check("Promise.resolve(true)", true);
    check("Promise.resolve(false)", false);
    check("Promise.reject('gone')", false);
    check("nobody.has.this", false);
}

#[test]
fn a_barrier_is_found_where_there_is_one() {
    let Ok(mut browser) = Browser::start() else { return println!("skipped: no browser") };
    let Some(axe) = axe() else { return println!("skipped: axe-core is not here") };
    let mut check = |body: &str, rules: &[&str]| {
        let page = format!("<!doctype html><html lang=en><title>A page</title><main><h1>A page</h1>{body}</main>");
        browser.open(&format!("data:text/html,{page}"));
        let found = browser.barriers(&axe);
        assert_eq!(found.len(), rules.len(), "{found:?}");
        assert!(found.iter().zip(rules).all(|(found, rule)| found.starts_with(rule)), "{found:?}");
    };
    check("<p>Words.</p>", &[]);
    check("<img src='data:,'>", &["critical image-alt: img"]);
    check("<p style='color:silver;background:white'>Words.</p>", &["serious color-contrast: p"]);
}
