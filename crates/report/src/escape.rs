//! What models and people wrote, made fit to stand in a page.

use std::fmt::Write;

/// The text with every character that HTML obeys written as an entity, and every character that would be invisible,
/// or would change the order of its neighbours, shown as a symbol. Line breaks and tabs stay.
///
/// Without the symbols an answer could hide words from whoever reads the report, or show them in another order
/// (Boucher and Anderson 2021, "Trojan Source").
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            '\0'..'\u{20}' => out.extend(char::from_u32(0x2400 + u32::from(c))),
            '\u{7f}' => out.push('\u{2421}'),
            c if is_hidden(c) => {
                // Writing into a string cannot fail.
                let _ = write!(out, "[U+{:04X}]", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

/// Control characters of the second block, marks of direction, spaces without width, line separators, tags and
/// characters that are none. The two joiners without width stay: scripts and emoji are spelled with them.
fn is_hidden(c: char) -> bool {
    matches!(c,
        '\u{80}'..='\u{9f}'
        | '\u{ad}'
        | '\u{34f}'
        | '\u{61c}'
        | '\u{115f}' | '\u{1160}'
        | '\u{17b4}' | '\u{17b5}'
        | '\u{180e}'
        | '\u{200b}' | '\u{200e}' | '\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}'
        | '\u{3164}'
        | '\u{feff}' | '\u{ffa0}'
        | '\u{fdd0}'..='\u{fdef}'
        | '\u{fff0}'..='\u{fffb}' | '\u{fffe}' | '\u{ffff}'
        | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hostile_text_stays_text() {
        #[track_caller]
        fn check(text: &str, want: &str) {
            assert_eq!(escape(text), want);
        }
        check("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;");
        check("\"' onload=x", "&quot;&#39; onload=x");
        check("&lt;", "&amp;lt;");
        check("two\nlines\tand a tab", "two\nlines\tand a tab");
        check("\0\u{1b}[31m\r\u{7f}", "\u{2400}\u{241b}[31m\u{240d}\u{2421}");
        check("a\u{202e}b\u{2066}c\u{feff}", "a[U+202E]b[U+2066]c[U+FEFF]");
        check("\u{e0041}\u{85}\u{200b}\u{ad}", "[U+E0041][U+0085][U+200B][U+00AD]");
        check("👩\u{200d}🔬 naïve žluťoučký", "👩\u{200d}🔬 naïve žluťoučký");
    }

    /// What a browser makes of the five entities.
    fn unescape(html: &str) -> String {
        let entities = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&amp;", "&")];
        entities.iter().fold(html.to_owned(), |text, (entity, c)| text.replace(entity, c))
    }

    proptest! {
        #[test]
        fn nothing_that_html_obeys_is_left(text in any::<String>()) {
            let html = escape(&text);
            prop_assert!(!html.contains(['<', '>', '"', '\'']), "{}", html);
            prop_assert!(!html.chars().any(|c| is_hidden(c) || c.is_control() && !"\n\t".contains(c)), "{:?}", html);
            // Every ampersand begins one of the five entities.
            let lone = html.replace("&amp;", "").replace("&lt;", "").replace("&gt;", "");
            prop_assert!(!lone.replace("&quot;", "").replace("&#39;", "").contains('&'), "{}", html);
        }

        #[test]
        fn what_is_harmless_is_read_as_it_was_written(text in "[ -~\n\tà-ÿ一-十]*") {
            prop_assert_eq!(unescape(&escape(&text)), text);
        }
    }
}
