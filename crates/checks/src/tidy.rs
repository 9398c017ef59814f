//! What must stay true of the repository. Most of it is an absence, so a test reads the files; a
//! failure names the path, the line and the reason.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};
use toml::Table;
use xtask::config::Config;

#[test]
fn the_repository_is_tidy() {
    let repository = Repository::read();
    assert!(repository.files.len() > 100, "the walk found {} files only", repository.files.len());
    let mut problems = Vec::new();
    for rule in [fronts, absences, unsafety, arrows, blocks, features, packages, metrics, guards, links, simulation] {
        rule(&repository, &mut problems);
    }
    assert!(problems.is_empty(), "{} problem(s):\n{}", problems.len(), problems.join("\n"));
}

/// Each rule finds what it is for; one that found nothing would pass everywhere.
#[test]
fn every_rule_bites() {
    check(fronts, "crates/sft/src/a.rs", "fn a() {}", "crates/sft/src/a.rs:1: no `//!`");
    check(absences, "crates/data/src/a.rs", "//!\nuse candle_core::Shape;", "crates/data/src/a.rs:2: `candle`");
    check(absences, "crates/ppo/src/a.rs", "\n\nstd::fs::read(path)", "crates/ppo/src/a.rs:3: `std::fs`");
    check(absences, "crates/report/src/a.rs", "std::fs::read(path)", "bytes that are handed in");
    check(absences, "crates/optim/src/a.rs", "Instant::now()", "only xtask and checks read the clock");
    check(absences, "crates/runs/src/a.rs", "use candle_core::Tensor;", "knows no tensor");
    check(absences, "crates/collective/src/a.rs", "std::env::var(\"PMI_SIZE\")", "the environment is handed in");
    check(absences, "crates/ppo/src/a.rs", "#[path = \"../b.rs\"]", "included by its path");
    check(absences, "crates/feedback/src/a.rs", "std::fs::read(path)", "feedback opens no file");
    check(absences, "xtask/src/a.rs", "use instruct_claims::holds;", "no chore");
    check(absences, "crates/model/src/a.rs", "pub fn nll_loss(x: f32) -> f32 {", "a.rs:1: a loss");
    check(absences, "crates/model/src/a.rs", "candle_nn::LayerNorm::new(w, b)", "no backward");
    check(absences, "xtask/src/a.rs", "let seen: HashSet<u32>;", "BTreeSet");
    check(absences, "docs/a.md", &["see /ro", "ot/notes"].concat(), "docs/a.md:1: a path of one machine");
    check(
        unsafety,
        "crates/model/src/a.rs",
        "// SAFETY: none\nunsafe { f() }",
        "a.rs:2: `unsafe`; only kernels and collective",
    );
    check(unsafety, "crates/kernels/src/a.rs", "let x = unsafe { f() };", "without a SAFETY comment");
    check(arrows, "crates/sft/Cargo.toml", "[dependencies]\ninstruct-ppo = 1", "lists instruct-ppo");
    check(arrows, "crates/collective/Cargo.toml", "[dependencies]\ninstruct-optim = 1", "lists instruct-optim");
    check(blocks, "crates/collective/src/a.rs", "pub const BLOCK: usize = 512;", "a block of 512;");
    check(arrows, "crates/data/Cargo.toml", "[target.'cfg(unix)'.dependencies]\ncandle-core = 1", "lists candle-core");
    check(arrows, "crates/eval/Cargo.toml", "[dependencies]\ninstruct-claims = 1", "only tests may");
    check(arrows, "crates/feedback/Cargo.toml", "[dependencies]\ninstruct-eval = 1", "lists instruct-eval");
    let unreached = "[features]\ndefault = []\n[dependencies]\ncandle-core = 1";
    check(features, "crates/model/Cargo.toml", unreached, "`cuda` does not reach");
    check(features, "crates/data/Cargo.toml", "[features]\ndefault = []\ncuda = []", "switches nothing");
    check(metrics, "crates/sft/src/a.rs", "(\"train/sft/new\", 1.0)", "does not define `train/sft/new`");
    check(metrics, "docs/metrics.md", "| `train/sft/old` | | |", "nothing emits");
    let guard = |key: &str, test: &str| format!("| a guard | {key} | `docs/guards.md::{test}` |");
    check(guards, "docs/guards.md", &guard("`ppo.guards.max-kl` = 100", "gone"), "there is no test `gone`");
    check(
        guards,
        "docs/guards.md",
        &guard("`ppo.guards.max-kl` = 7", "x"),
        "default of `ppo.guards.max-kl` is 100, not 7",
    );
    check(guards, "docs/guards.md", &guard("`ppo.guards.nose` = 7", "x"), "there is no key `ppo.guards.nose`");
    check(guards, "docs/guards.md", "| a guard | | |", "names no test");
    check(guards, "docs/guards.md", "", "does not have the key `ppo.guards.max-kl`");
    check(links, "docs/a.md", "[b](b.md)", "docs/a.md:1: the link to b.md leads nowhere");
    check(simulation, "docs/a.md", "The gold judge\nsays so.", "does not say that this is a simulation");
}

#[track_caller]
fn check(rule: fn(&Repository, &mut Vec<String>), path: &str, text: &str, part: &str) {
    let mut problems = Vec::new();
    rule(&Repository { files: vec![File { path: path.to_owned(), text: text.to_owned() }] }, &mut problems);
    assert!(problems.iter().any(|problem| problem.contains(part)), "`{part}` is not in {problems:?}");
}

/// What no line of code may hold, where, and why.
struct Absence {
    /// Starts of paths.
    under: &'static [&'static str],
    words: &'static [&'static str],
    why: &'static str,
}

const STAGES: &[&str] =
    &["crates/sft/src/", "crates/reward-model/src/", "crates/ppo/src/", "crates/rollout/src/", "crates/optim/src/"];

/// The program that checks the others may print, read the clock, and name what it forbids.
const CHECKS: &str = "crates/checks/";

const ABSENCES: &[Absence] = &[
    Absence {
        under: &[
            "crates/data/",
            "crates/random/",
            "crates/eval/",
            "crates/feedback/",
            "crates/report/",
            "crates/runs/",
            "crates/world/",
        ],
        words: &["candle", "Tensor", "Device"],
        why: "this crate knows no tensor and no device: it is tested and used without one",
    },
    Absence {
        under: &["crates/collective/"],
        words: &["Tensor", "std::fs", "env::var"],
        why: "ranks exchange flat slices, and the environment is handed in, so that all of it is tested without either",
    },
    Absence {
        under: STAGES,
        words: &["std::fs", "File::", "std::io"],
        why: "a stage opens no file: what it has to say leaves it as an event",
    },
    Absence {
        under: &["crates/serve/src/"],
        words: &["std::fs", "File::open", "File::create", "env::var"],
        why: "models, files, time and chance are handed in, so that a server is tested without any of them",
    },
    Absence {
        under: &["crates/report/src/"],
        words: &["std::fs", "File::", "std::io", "std::env"],
        why: "a page is made from bytes that are handed in, so that it can be made of a run that still goes on",
    },
    Absence {
        under: &["crates/feedback/"],
        words: &["std::fs", "File::", "std::io", "env::var"],
        why: "feedback opens no file: bytes are handed in, and whoever has them decides when a line is safe on disk",
    },
    Absence {
        under: &["crates/"],
        words: &["Instant", "SystemTime"],
        why: "only xtask and checks read the clock: a library that does not is repeatable",
    },
    Absence {
        under: &["crates/"],
        words: &["println!", "print!", "dbg!"],
        why: "only xtask and checks print: a library's words leave it as values, errors and events",
    },
    Absence {
        under: &["crates/", "xtask/", "fuzz/"],
        words: &["#[path"],
        why: "a file included by its path is compiled twice and belongs nowhere; make it a module of a library",
    },
    Absence {
        under: &["xtask/"],
        words: &["instruct_browser", "instruct_claims", "instruct_checks", "instruct_golden"],
        why: "no chore of the repository is in the program that people install",
    },
    Absence {
        under: &["crates/", "xtask/"],
        words: &["HashMap", "HashSet"],
        why: "their order differs between processes; BTreeMap and BTreeSet keep results the same",
    },
    Absence {
        under: &["crates/", "xtask/"],
        words: &["thread_rng", "rand::rng", "Tensor::rand", "set_seed"],
        why: "every draw is a function of its address (instruct-random), or nothing could be resumed",
    },
    Absence {
        under: &["crates/", "xtask/"],
        words: &[
            "softmax_last_dim",
            "ops::layer_norm",
            "nn::LayerNorm",
            "nn::layer_norm",
            "ops::rms_norm",
            "nn::RmsNorm",
            "nn::rms_norm",
            "rotary_emb::rope",
            "sdpa",
        ],
        why: "Candle 0.11's fused form has no backward: everything upstream would stop learning without an error",
    },
];

fn absences(repository: &Repository, problems: &mut Vec<String>) {
    for file in repository.code().filter(|file| !file.path.starts_with(CHECKS)) {
        for absence in ABSENCES.iter().filter(|a| a.under.iter().any(|under| file.path.starts_with(under))) {
            for (number, line) in file.production() {
                for word in absence.words.iter().filter(|word| line.contains(**word)) {
                    problems.push(format!("{}:{number}: `{word}`; {}", file.path, absence.why));
                }
            }
        }
    }
    let is_loss = |line: &str| line.split("fn ").nth(1).and_then(|f| f.split('(').next()).is_some_and(is_about_loss);
    for file in repository.code().filter(|file| file.path.starts_with("crates/model/src/")) {
        for (number, _) in file.production().filter(|(_, line)| is_loss(line)) {
            problems.push(format!("{}:{number}: a loss; `model` computes none, each stage has its own", file.path));
        }
    }
    // In two parts, so that this file does not hold them.
    let machine = [["/wo", "rk/"], ["/ro", "ot/"], ["/ho", "me/"]].map(|parts| parts.concat());
    for file in &repository.files {
        for (number, line) in (1..).zip(file.text.lines()) {
            if machine.iter().any(|path| line.contains(path)) {
                problems.push(format!("{}:{number}: a path of one machine; it is nowhere else", file.path));
            }
        }
    }
}

fn is_about_loss(name: &str) -> bool {
    ["loss", "nll", "cross_entropy"].iter().any(|word| name.contains(word))
}

fn fronts(repository: &Repository, problems: &mut Vec<String>) {
    for file in repository.code().filter(|file| !file.is_test() && !file.text.starts_with("//!")) {
        problems.push(format!("{}:1: no `//!` line; a reader wants to know first what the file is for", file.path));
    }
}

fn unsafety(repository: &Repository, problems: &mut Vec<String>) {
    for file in repository.code() {
        let lines: Vec<&str> = file.text.lines().collect();
        for (index, _) in lines.iter().enumerate().filter(|(_, line)| opens_unsafe(line)) {
            let at = format!("{}:{}", file.path, index + 1);
            if !["crates/kernels/src/", "crates/collective/src/"].iter().any(|may| file.path.starts_with(may)) {
                problems.push(format!(
                    "{at}: `unsafe`; only kernels and collective may, so that there are two places to audit"
                ));
            }
            let above = &lines[index.saturating_sub(12)..index];
            if !above.iter().any(|line| line.contains("SAFETY:") || line.contains("# Safety")) {
                problems.push(format!("{at}: `unsafe` without a SAFETY comment; it says which promise holds and why"));
            }
        }
    }
}

fn opens_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    ["{", "fn ", "impl ", "extern "].iter().any(|next| code.contains(&format!("{} {next}", "unsafe")))
}

/// Which crates of this workspace each may list; the arrows of ARCHITECTURE.md.
const ARROWS: &[(&str, &[&str], &str)] = &[
    ("random", &[], "everything stands on it"),
    ("data", &["random"], "people's words need no model"),
    ("kernels", &["random"], "operations know no model and no data"),
    ("model", &["data", "kernels", "random"], "a model has no loss and no stage"),
    ("runs", &[], "what survives knows nothing of ours"),
    ("collective", &[], "ranks exchange bytes and flat numbers, whatever they mean"),
    ("optim", &["collective", "kernels"], "a step knows flat buffers, and who shares them"),
    ("rollout", &["data", "kernels", "model", "random"], "sampling and comparing know no stage"),
    ("sft", STAGE_MAY, "stages do not know each other"),
    ("reward-model", STAGE_MAY, "stages do not know each other"),
    ("ppo", PPO_MAY, "stages do not know each other: a score is a closure"),
    ("feedback", &["data", "random"], "what people said is words and whole numbers"),
    (
        "serve",
        &["data", "eval", "feedback", "kernels", "model", "random"],
        "a server knows no stage: a reward model is a closure",
    ),
    ("eval", &["random"], "values in, values out"),
    ("report", &["eval"], "a page is made from what lies in a run folder, whoever wrote it"),
    ("world", &["random"], "a simulation is text and whole numbers"),
    ("browser", &[], "what tests share knows nothing"),
    ("claims", &[], "what tests share knows nothing"),
    ("golden", &["claims", "kernels", "model", "runs"], "what torch computed is compared with models and metrics"),
];
/// Binaries, which may list anything but each other's like: `checks` lists `xtask`, and nobody `checks`.
const BINARIES: [&str; 2] = ["xtask", "checks"];
/// What the tests of every crate may list, and nothing else may but `checks`.
const TESTS_MAY: [&str; 3] = ["instruct-browser", "instruct-claims", "instruct-golden"];
const STAGE_MAY: &[&str] = &["collective", "data", "kernels", "model", "optim", "random", "runs"];
const PPO_MAY: &[&str] = &["collective", "data", "kernels", "model", "optim", "random", "rollout", "runs"];

fn arrows(repository: &Repository, problems: &mut Vec<String>) {
    for (name, table) in repository.manifests() {
        let Some((_, allowed, why)) = ARROWS.iter().find(|(listed, _, _)| *listed == name) else {
            if !BINARIES.contains(&name.as_str()) {
                problems.push(format!(
                    "crates/{name}/Cargo.toml:1: a crate that crates/checks/src/tidy.rs has no arrows for"
                ));
            }
            if name != "checks"
                && dependencies(&table, &["dependencies", "dev-dependencies"]).contains("instruct-checks")
            {
                problems.push(format!(
                    "{}: lists instruct-checks; nobody may, it doubts them all",
                    repository.manifest_path(&name)
                ));
            }
            continue;
        };
        let listed = dependencies(&table, &["dependencies"]);
        for only in TESTS_MAY.iter().filter(|only| listed.contains(**only) && name != "golden") {
            problems.push(format!("crates/{name}/Cargo.toml: lists {only}; only tests may, it is not published"));
        }
        for dependency in dependencies(&table, &["dependencies", "dev-dependencies"]) {
            let other = dependency.strip_prefix("instruct-").filter(|_| !TESTS_MAY.contains(&dependency.as_str()));
            if other.is_some_and(|other| !allowed.contains(&other)) {
                problems.push(format!("crates/{name}/Cargo.toml: lists {dependency}; {why}"));
            }
            let no_tensor = ["random", "data", "eval", "feedback", "report", "runs", "world"];
            if dependency.starts_with("candle") && no_tensor.contains(&name.as_str()) {
                problems.push(format!("crates/{name}/Cargo.toml: lists {dependency}; {name} knows no tensor"));
            }
        }
    }
}

/// A block has one size: ranks own whole blocks, and what sums block by block is then the same for any number of them.
fn blocks(repository: &Repository, problems: &mut Vec<String>) {
    for file in repository.code() {
        for (number, line) in file.production() {
            let size = line.split("const BLOCK: usize = ").nth(1).and_then(|rest| rest.strip_suffix(';'));
            if let Some(size) = size.filter(|size| !["4096", "instruct_kernels::BLOCK"].contains(size)) {
                problems.push(format!("{}:{number}: a block of {size}; everywhere else it has 4096", file.path));
            }
        }
    }
}

/// `cuda` means the same in every crate: it is there exactly where something below it can compute
/// on a GPU, passes itself on to all of that, and is off by default.
fn features(repository: &Repository, problems: &mut Vec<String>) {
    let manifests = repository.manifests();
    let has_cuda = |name: &str| {
        let of = |name: &str| manifests.get(name).and_then(|table| table.get("features")?.get("cuda")).is_some();
        name.starts_with("candle-") || name.strip_prefix("instruct-").is_some_and(of)
    };
    for (name, table) in &manifests {
        let at = repository.manifest_path(name);
        let list = |feature: &str| -> Option<BTreeSet<String>> {
            let entries = table.get("features")?.get(feature)?.as_array()?;
            Some(entries.iter().filter_map(|entry| entry.as_str().map(str::to_owned)).collect())
        };
        // The program that people install has the server; `cargo xtask` builds it without.
        let wanted = if name == "xtask" { vec!["serve".to_owned()] } else { Vec::new() };
        if list("default") != Some(wanted.iter().cloned().collect()) {
            problems.push(format!("{at}: `default` must be {wanted:?}; without features nothing needs a GPU"));
        }
        let below: BTreeSet<String> =
            dependencies(table, &["dependencies"]).into_iter().filter(|dependency| has_cuda(dependency)).collect();
        let passed: BTreeSet<String> = list("cuda")
            .unwrap_or_default()
            .iter()
            .filter_map(|entry| entry.strip_suffix("/cuda").map(|name| name.trim_end_matches('?').to_owned()))
            .collect();
        let unreached: Vec<&String> = below.iter().filter(|to| !reaches(&manifests, &passed, to)).collect();
        if !unreached.is_empty() {
            problems.push(format!("{at}: `cuda` does not reach {unreached:?}; it selects a GPU everywhere or nowhere"));
        }
        if below.is_empty() && list("cuda").is_some() {
            problems.push(format!("{at}: `cuda` switches nothing here"));
        }
    }
}

/// Whether a `cuda` that passes itself on to `passed` gets to `goal`, there or further down.
fn reaches(manifests: &BTreeMap<String, Table>, passed: &BTreeSet<String>, goal: &str) -> bool {
    passed.contains(goal)
        || passed.iter().filter_map(|name| manifests.get(name.strip_prefix("instruct-").unwrap_or(name))).any(|table| {
            let entries = table.get("features").and_then(|f| f.get("cuda")?.as_array());
            let next = entries.into_iter().flatten().filter_map(|entry| entry.as_str()?.strip_suffix("/cuda"));
            // Of a dependency that another feature switches on, `name?/cuda`.
            reaches(manifests, &next.map(|name| name.trim_end_matches('?').to_owned()).collect(), goal)
        })
}

/// What the registry asks of a package, so that publishing is never the moment to find out.
fn packages(repository: &Repository, problems: &mut Vec<String>) {
    let root = repository.manifest("Cargo.toml");
    let version = root["workspace"]["package"]["version"].as_str();
    let published =
        |table: &Table| table["package"].get("publish").and_then(|publish| publish.as_bool()) != Some(false);
    for (name, table) in repository.manifests().into_iter().filter(|(_, table)| published(table)) {
        let at = repository.manifest_path(&name);
        let package = &table["package"];
        if package["name"].as_str() != Some(&format!("instruct-{name}")) {
            problems.push(format!("{at}: a package is named `instruct-` and its folder"));
        }
        let description = package.get("description").and_then(|text| text.as_str()).unwrap_or_default();
        if description.len() < 20 || description.contains("PLACEHOLDER") {
            problems.push(format!("{at}: no description; the registry refuses the package"));
        }
        for key in ["version", "edition", "rust-version", "license", "keywords", "categories"] {
            if package.get(key).and_then(|value| value.get("workspace")).is_none() {
                problems.push(format!("{at}: `{key}` is not the workspace's"));
            }
        }
        if table.get("lints").and_then(|lints| lints.get("workspace")).is_none() {
            problems.push(format!("{at}: the workspace's lints do not apply"));
        }
        let listed = root["workspace"]["dependencies"].get(format!("instruct-{name}"));
        if listed.and_then(|entry| entry.get("version")?.as_str()) != version {
            problems.push(format!(
                "Cargo.toml: instruct-{name} has no version {version:?} beside its path; it could not be published"
            ));
        }
    }
    for licence in ["LICENSE-MIT", "LICENSE-APACHE"] {
        if !Path::new(ROOT).join(licence).exists() {
            problems.push(format!("{licence}: absent, and every package promises it"));
        }
    }
}

/// Every metric that is emitted is defined in docs/metrics.md, and nothing else is.
fn metrics(repository: &Repository, problems: &mut Vec<String>) {
    const PAGE: &str = "docs/metrics.md";
    let mut emitted = BTreeMap::new();
    for file in repository.code() {
        for (number, line) in file.production().filter(|(_, line)| !line.contains("Source::new")) {
            // What stands between quotation marks are the odd pieces.
            for literal in line.split('"').skip(1).step_by(2).filter(|literal| is_metric(literal)) {
                emitted.entry(literal.to_owned()).or_insert(format!("{}:{number}", file.path));
            }
        }
    }
    let page = repository.files.iter().find(|file| file.path == PAGE).map_or("", |file| &file.text);
    let defined: BTreeSet<&str> =
        page.lines().filter(|line| line.starts_with("| `")).filter_map(|line| line.split('`').nth(1)).collect();
    for (name, at) in emitted.iter().filter(|(name, _)| !defined.contains(name.as_str())) {
        problems.push(format!("{at}: {PAGE} does not define `{name}`; a curve without a definition misleads"));
    }
    for name in defined.iter().filter(|name| !emitted.contains_key(**name)) {
        problems.push(format!("{PAGE}: defines `{name}`, which nothing emits"));
    }
}

fn is_metric(literal: &str) -> bool {
    let group = ["train/", "eval/", "objective/", "ppo/", "time/"].iter().any(|group| literal.starts_with(group));
    group && literal.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_/".contains(c))
}

/// The page of guards names tests that there are and defaults that are so, and leaves no key out.
fn guards(repository: &Repository, problems: &mut Vec<String>) {
    const PAGE: &str = "docs/guards.md";
    let defaults = Table::try_from(Config::default()).unwrap();
    let Some(page) = repository.files.iter().find(|file| file.path == PAGE) else { return };
    let rows: Vec<&str> = page.text.lines().filter(|line| line.starts_with("| ") && !line.contains("---")).collect();
    for row in rows.iter().filter(|row| !row.starts_with("| guard |")) {
        // What stands between backquotes are the odd pieces.
        let pieces: Vec<&str> = row.split('`').collect();
        let tests: Vec<_> = pieces.iter().skip(1).step_by(2).filter_map(|piece| piece.split_once(".rs::")).collect();
        if tests.is_empty() && !row.contains(".md::") {
            problems.push(format!("{PAGE}: `{row}` names no test; a guard that nothing provokes may not work"));
        }
        for piece in pieces.iter().skip(1).step_by(2) {
            let Some((path, test)) = piece.split_once("::") else { continue };
            let file = repository.files.iter().find(|file| file.path == path);
            if !file.is_some_and(|file| file.text.contains(&format!("fn {test}("))) {
                problems.push(format!("{PAGE}: there is no test `{test}` in {path}"));
            }
        }
        for pair in pieces[1..].chunks(2) {
            let ([key, after], true) = (pair, pair[0].contains('.')) else { continue };
            let Some(stated) = after.strip_prefix(" = ").and_then(|rest| rest.split([' ', ';', ',']).next()) else {
                continue;
            };
            match lookup(&defaults, key) {
                None => problems.push(format!("{PAGE}: there is no key `{key}`")),
                Some(value) if stated.parse::<f64>() != Ok(value) => {
                    problems.push(format!("{PAGE}: the default of `{key}` is {value}, not {stated}"));
                }
                Some(_) => {}
            }
        }
    }
    let keys = defaults["ppo"]["guards"].as_table().unwrap().keys();
    for key in keys.filter(|key| !page.text.contains(&format!("`ppo.guards.{key}`"))) {
        problems.push(format!("{PAGE}: does not have the key `ppo.guards.{key}`"));
    }
}

/// The number under a dotted key.
fn lookup(table: &Table, key: &str) -> Option<f64> {
    let mut parts = key.split('.');
    let first = table.get(parts.next()?)?;
    let value = parts.try_fold(first, |value, part| value.get(part))?;
    value.as_float().or(value.as_integer().map(|whole| whole as f64))
}

/// Relative links of the pages lead somewhere.
fn links(repository: &Repository, problems: &mut Vec<String>) {
    for file in repository.pages() {
        let folder = Path::new(&file.path).parent().unwrap_or(Path::new(""));
        for (number, line) in (1..).zip(file.text.lines()) {
            let targets = line.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
            for target in targets.filter(|target| !target.is_empty() && !target.contains("://")) {
                if !Path::new(ROOT).join(folder).join(target).exists() {
                    problems.push(format!("{}:{number}: the link to {target} leads nowhere", file.path));
                }
            }
        }
    }
}

/// No paragraph presents the embedded world as if people had made it.
fn simulation(repository: &Repository, problems: &mut Vec<String>) {
    for file in repository.pages() {
        for paragraph in file.text.split("\n\n") {
            let paragraph = paragraph.to_lowercase();
            let names_it = ["instruction world", "embedded world", "gold judge"].iter().any(|n| paragraph.contains(n));
            if names_it && !paragraph.contains("simulat") {
                let start: String = paragraph.trim().chars().take(60).collect();
                problems.push(format!("{}: `{start}...` does not say that this is a simulation", file.path));
            }
        }
    }
    for page in ["README.md", "fixtures/README.md"] {
        if !repository.pages().any(|file| file.path == page && file.text.contains("simulation")) {
            problems.push(format!("{page}: does not say that the embedded world is a simulation"));
        }
    }
}

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// The text files of the repository.
struct Repository {
    files: Vec<File>,
}

/// A file by its path from the root.
struct File {
    path: String,
    text: String,
}

impl Repository {
    fn read() -> Repository {
        let mut files = Vec::new();
        for place in
            ["crates", "xtask", "fuzz/src", "fuzz/fuzz_targets", "configs", "docs", "fixtures", ".ci", ".cargo"]
        {
            walk(place, &mut files);
        }
        for name in ["Cargo.toml", "README.md", "ARCHITECTURE.md", "clippy.toml", "rustfmt.toml"] {
            take(name, &mut files);
        }
        Repository { files }
    }

    fn code(&self) -> impl Iterator<Item = &File> {
        // This file names what it forbids.
        self.files.iter().filter(|file| file.path.ends_with(".rs") && file.path != "crates/checks/src/tidy.rs")
    }

    fn pages(&self) -> impl Iterator<Item = &File> {
        self.files.iter().filter(|file| file.path.ends_with(".md"))
    }

    fn manifest(&self, path: &str) -> Table {
        let file = self.files.iter().find(|file| file.path == path).unwrap();
        file.text.parse().unwrap()
    }

    /// The members' manifests by folder.
    fn manifests(&self) -> BTreeMap<String, Table> {
        let folder =
            |path: &str| path.strip_prefix("crates/").unwrap_or(path).strip_suffix("/Cargo.toml").map(str::to_owned);
        self.files.iter().filter_map(|file| Some((folder(&file.path)?, self.manifest(&file.path)))).collect()
    }

    fn manifest_path(&self, name: &str) -> String {
        if name == "xtask" { "xtask/Cargo.toml".to_owned() } else { format!("crates/{name}/Cargo.toml") }
    }
}

impl File {
    fn is_test(&self) -> bool {
        self.path.contains("/tests/") || self.path.ends_with("/tests.rs")
    }

    /// Lines of code that run outside tests, with their numbers; comments and doc tests are none.
    fn production(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = (1..).zip(self.text.lines()).take_while(|(_, line)| !line.starts_with("mod tests {"));
        lines.filter(|(_, line)| !self.is_test() && !line.trim_start().starts_with("//"))
    }
}

/// Names of the crates that a manifest lists in these tables, for any target.
fn dependencies(manifest: &Table, kinds: &[&str]) -> BTreeSet<String> {
    let targets = manifest.get("target").and_then(|target| target.as_table());
    let tables = targets.into_iter().flatten().filter_map(|(_, table)| table.as_table()).chain([manifest]);
    let listed = tables.flat_map(|table| kinds.iter().filter_map(|kind| table.get(*kind)?.as_table()));
    listed.flat_map(|table| table.keys().cloned()).collect()
}

fn walk(folder: &str, files: &mut Vec<File>) {
    let Ok(entries) = fs::read_dir(Path::new(ROOT).join(folder)) else { return };
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap()).collect();
    names.sort_by_key(|entry| entry.file_name());
    for entry in names {
        let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
        if entry.file_type().unwrap().is_dir() { walk(&path, files) } else { take(&path, files) }
    }
}

/// Keeps a file when it is text.
fn take(path: &str, files: &mut Vec<File>) {
    if let Ok(text) = fs::read_to_string(Path::new(ROOT).join(path)) {
        files.push(File { path: path.to_owned(), text });
    }
}
