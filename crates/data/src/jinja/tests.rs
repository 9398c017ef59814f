use super::*;
use crate::record::Role;
use serde::Deserialize;
use std::{collections::BTreeMap, path::Path};

/// Renders a template for these turns.
fn rendered(source: &str, turns: &[(Role, &str)]) -> Result<Rendered, Error> {
    let messages: Vec<Message> = turns.iter().map(|(role, text)| Message::new(role.clone(), *text)).collect();
    Jinja::compile("here", source, Vec::new())?.render(&messages, true)
}

/// What transformers made of the templates of `fixtures/reference/templates.py`.
#[derive(Deserialize)]
struct Golden {
    date: String,
    specials: BTreeMap<String, String>,
    conversations: Vec<Vec<Turn>>,
    templates: Vec<Case>,
    asked: Vec<Turn>,
    pieces: Vec<(String, Option<String>)>,
}

#[derive(Deserialize)]
struct Turn {
    role: String,
    content: String,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    source: String,
    /// For each conversation, without and with a generation prompt, the text and the bytes that were
    /// generated, or nothing where transformers raises an error.
    rendered: Vec<[Option<(String, Spans)>; 2]>,
}

type Spans = Vec<[usize; 2]>;

fn golden() -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/reference/templates/golden.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn messages(turns: &[Turn]) -> Vec<Message> {
    turns.iter().map(|turn| Message::new(Role::named(&turn.role).unwrap(), &turn.content)).collect()
}

impl Golden {
    fn render(&self, source: &str, turns: &[Turn], prompt: bool) -> Result<Rendered, Error> {
        let specials = self.specials.clone().into_iter().collect();
        let template = Jinja::compile("here", source, specials)?.with_date(self.date.parse().unwrap());
        template.render(&messages(turns), prompt)
    }
}

#[test]
fn templates_render_as_transformers_renders_them() {
    let golden = golden();
    let mut count = 0;
    for case in &golden.templates {
        let mut differences = Vec::new();
        for (at, (turns, wanted)) in golden.conversations.iter().zip(&case.rendered).enumerate() {
            for (prompt, wanted) in [false, true].into_iter().zip(wanted) {
                count += 1;
                let ours = golden.render(&case.source, turns, prompt);
                let wanted = wanted.as_ref().map(|(text, generated)| Rendered {
                    text: text.clone(),
                    generated: generated.iter().map(|&[start, end]| start..end).collect(),
                });
                if ours.as_ref().ok() != wanted.as_ref() {
                    differences.push(format!("{} {at} {prompt}\n  ours {ours:?}\n  want {wanted:?}", case.name));
                }
            }
        }
        differences.iter().for_each(|difference| println!("{difference}"));
        instruct_claims::holds("text/templates", &case.name, differences.len() as f64, 0.0);
    }
    assert!(golden.templates.len() >= 40 && count >= 700);
}

#[test]
fn constructs_render_as_transformers_renders_them() {
    let golden = golden();
    let (mut differences, mut differing) = (Vec::new(), Vec::new());
    for (source, wanted) in &golden.pieces {
        let ours = golden.render(source, &golden.asked, false);
        if ours.as_ref().ok().map(|ours| &ours.text) != wanted.as_ref() {
            differences.push(format!("{source}\n  ours {ours:?}\n  want {wanted:?}"));
            differing.push(source);
        }
    }
    assert!(golden.pieces.len() > 150);
    differences.iter().for_each(|difference| println!("{difference}"));
    instruct_claims::holds("text/constructs", "all pieces", differences.len() as f64, 0.0);
    for (kind, before, after, names) in NAMES {
        for name in names.split(' ') {
            let pattern = format!("{before}{name}");
            let written = |source: &String| {
                source.match_indices(&pattern).any(|(at, found)| {
                    let rest = &source[at + found.len()..];
                    rest.starts_with(after) && !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_')
                })
            };
            assert!(golden.pieces.iter().any(|(source, _)| written(source)), "no piece has the {kind} {name}");
            let differ = differing.iter().filter(|source| written(source)).count();
            instruct_claims::holds("text/constructs", &format!("{kind} {name}"), differ as f64, 0.0);
        }
    }
}

/// What the pieces use, and how it is written: its kind, what stands before and after its name, and the names.
const NAMES: [(&str, &str, &str, &str); 5] = [
    ("statements", "{% ", "", STATEMENTS),
    ("filters", "| ", "", FILTERS),
    ("tests", "is ", "", TESTS),
    ("methods", ".", "(", METHODS),
    ("functions", "", "(", "dict namespace range strftime_now"),
];
const STATEMENTS: &str = "break call continue filter for if macro raw set with";
const FILTERS: &str = "abs attr batch capitalize center count d default dictsort escape first float format groupby indent \
    int items join last length list lower map max min reject rejectattr replace reverse round safe \
    select selectattr slice sort string sum title tojson trim unique upper";
const TESTS: &str = "boolean callable defined divisibleby eq equalto escaped even false filter float ge in integer \
    iterable lower lt mapping ne none number odd sameas sequence string true undefined upper";
const METHODS: &str = "capitalize casefold center copy count endswith find format format_map get index isalnum isalpha \
    isascii isdecimal isdigit isidentifier islower isnumeric isprintable isspace istitle isupper items \
    join keys ljust lower lstrip partition removeprefix removesuffix replace rfind rjust rpartition \
    rsplit rstrip split splitlines startswith strip swapcase title upper values zfill";

use Role::{Assistant, User};

/// What is said of a template that cannot be rendered.
#[track_caller]
fn check_refused(source: &str, want: &str) {
    let why = rendered(source, &[(User, "A"), (Assistant, "B")]).unwrap_err().to_string();
    assert!(why.starts_with("here: line "), "{why}");
    assert!(why.contains(want), "{source}\n  says {why}\n  want {want}");
}

#[test]
fn a_message_names_the_line_and_what_to_do() {
    let correct = "; correct it, or name another template";
    check_refused(
        "a\n{% for x in y %}\n",
        &format!("line 2: the template ends where `endfor` or `else` is wanted{correct}"),
    );
    check_refused("\n\n{{ 1 + }}", &format!("line 3: an expression is expected, not `}}}}`{correct}"));
    check_refused("{% if x %}{% endfor %}", "line 1: `endfor` is no tag that is known here");
    check_refused("{{ 'a\n' }}\n{{ x", "line 3: a tag is not closed with `}}`");
    check_refused("{% trans %}", "line 1: `trans` is no tag that is known here");
    check_refused(
        "{% for m in messages %}\n{{ raise_exception('No more than\ntwo.') }}\n{% endfor %}",
        "line 2: No more than\ntwo.; change the conversation, or name another template",
    );
    check_refused(
        "{% macro f() %}\n{{ x.y }}{% endmacro %}\n\n{{ f() }}",
        "line 2: 'x' is undefined; change the conversation",
    );
    let beyond = "; transformers may render it; write the template without this, or name another";
    check_refused("\n{{ 2 ** 70 }}", &format!("line 2: 2 ** 70 has more than 64 bits{beyond}"));
    check_refused("{{ range }}", &format!("it prints a function, whose text differs from run to run{beyond}"));
    check_refused("{{ 'a' | wordwrap }}", &format!("the filter `wordwrap`, which is not rendered{beyond}"));
    check_refused(
        "{{ strftime_now('%c') }}",
        &format!("line 1: it writes the date with `%c`, which is not known here{beyond}"),
    );
    check_refused("{% block a %}{% endblock %}", &format!("it uses `block`, which is not rendered{beyond}"));
    check_refused("{% include 'x' %}", "line 1: it uses `include`, and there is no other template; change");
}

/// Each of these would run for hours, fill the memory or overflow the stack.
#[test]
fn a_template_must_not_run_away() {
    let nested = |open: &str, close: &str| format!("{{{{ {}1{} }}}}", open.repeat(5_000), close.repeat(5_000));
    let grown = |start: &str, step: &str, end: &str| {
        format!(
            "{{% set ns = namespace(s={start}) %}}{{% for i in range(60) %}}{{% set ns.s = {step} %}}{{% endfor %}}{{{{ {end} }}}}"
        )
    };
    for source in [
        "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
        "{{ 'x' * 1000000000 }}",
        "{{ ['x'] * 1000000000 }}",
        "{{ ('x' * 1000000).replace('x', 'y' * 1000000) }}",
        "{{ ('x' * 1000000).replace('', 'y' * 1000000) }}",
        "{{ ('y' * 1000000).join('x' * 1000000) }}",
        "{{ ['x' * 1000000] * 1000000 }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ 'x'.center(999999999) }}{{ 'x'.zfill(999999999) }}",
        "{{ 'x' | indent(999999999) }}",
        "{{ [[1]] | tojson(indent=999999999) }}",
        "{% for i in range(9) %}{% for c in 'x' * 9000000 %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{{ ('x' * 100000).find('y') }}{% endfor %}",
        "{% for i in range(99999) %}{{ messages | tojson }}{% if 'x' * 9999 == 'x' * 9999 %}{% endif %}{% endfor %}",
        "{{ [1, 2] | batch(999999999, 0) | list }}",
        "{{ [1, 2] | slice(999999999) | list }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f() %}{% call f() %}{% endcall %}{{ caller }}{% endmacro %}{{ f() }}",
        "{% for i in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
        "{% set ns = namespace(s=[]) %}{% for i in range(99999) %}{% set ns.s = [ns.s] %}{% endfor %}",
        "{% set ns = namespace(s=0) %}{% for i in range(99999) %}{% set ns.s = {0: ns.s}.items %}{% endfor %}",
        "{% set ns = namespace(s=0) %}{% for i in range(99999) %}{% set ns.s = [ns.s] | select %}{% endfor %}",
        &grown("'xxxxxxxx'", "ns.s ~ ns.s", "ns.s"),
        &grown("'xxxxxxxx'", "ns.s + ns.s", "1"),
        &grown("[1, 2]", "ns.s + ns.s", "ns.s | sort"),
        &grown("[1]", "[ns.s, ns.s]", "ns.s == ns.s"),
        &grown("[1]", "[ns.s, ns.s]", "ns.s | tojson"),
        &grown("{}", "dict(a=ns.s, b=ns.s)", "ns.s ~ ''"),
        &nested("(", ")"),
        &nested("[", "]"),
        &nested("not ", ""),
        &nested("- ", ""),
        &nested("1 + ", ""),
        &nested("x(", ")"),
        &nested("{1: ", "}"),
        &nested("1 if ", ""),
        &format!("{{{{ x{} }}}}", ".a".repeat(100_000)),
        &format!("{{{{ x{} }}}}", "|a".repeat(100_000)),
        &"{% if 1 %}".repeat(5_000),
        &format!("{{% set {}x{} = 1 %}}", "(".repeat(5_000), ")".repeat(5_000)),
        &format!("{{% for i in range(99999) %}}{}{{% endfor %}}", "x".repeat(1_000)),
    ] {
        let why = rendered(source, &[(User, "A")]).unwrap_err().to_string();
        assert!(why.ends_with("; name another template"), "{}: {why}", &source[..source.len().min(100)]);
    }
}

/// The limits are far above what a long conversation takes.
#[test]
fn long_conversations_are_rendered() {
    let golden = golden();
    let said = "A sentence of the usual length, which is said again and again. ".repeat(32);
    let turns =
        (0..1_000).map(|at| Message::new(if at % 2 == 0 { User } else { Assistant }, &said)).collect::<Vec<_>>();
    let book = [Message::new(User, said.repeat(2_000))];
    for name in ["marks", "day-and-helpers", "last-question-from-behind", "switched-by-words", "before-the-first"] {
        let source = &golden.templates.iter().find(|case| case.name == name).unwrap().source;
        let template = Jinja::compile("here", source, golden.specials.clone().into_iter().collect()).unwrap();
        for messages in [&turns[..], &book] {
            let text = template.render(messages, true).unwrap().text;
            let words: usize = messages.iter().map(|message| message.content.trim().len()).sum();
            assert!(text.len() >= words, "{name}");
        }
    }
}

/// Specials that a tokenizer lacks are not defined, and `with_date` tells another day.
#[test]
fn names_and_the_day_are_those_that_were_given() {
    let specials = vec![("bos_token".to_owned(), "<s>".to_owned())];
    let source = "{{ bos_token }}{{ eos_token is defined }}{{ tools }}{{ documents }}{{ strftime_now('%F') }}";
    let template = Jinja::compile("here", source, specials).unwrap();
    assert_eq!(template.render(&[], true).unwrap().text, "<s>FalseNoneNone2024-07-26");
    let later = template.with_date("2026-01-05".parse().unwrap());
    assert_eq!(later.render(&[], true).unwrap().text, "<s>FalseNoneNone2026-01-05");
}
