//! The modules of this crate import each other in one direction, so that each can be read after the
//! ones below it.
#![allow(clippy::unwrap_used, reason = "clippy does not count a helper in tests/ as a test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// Modules, and the modules that each imports.
type Imports = BTreeMap<String, BTreeSet<String>>;

#[test]
fn no_modules_import_each_other_in_a_circle() {
    let mut imports = Imports::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), None, &mut imports);
    assert!(imports["hygiene"].contains("record"), "the walk finds imports: {imports:?}");
    assert_eq!(knot(imports), Imports::new());
}

/// Each row is a crate, as its modules and their text, and the modules that import each other in a
/// circle.
#[test]
fn the_rule_bites() {
    check(&[], &[]);
    check(&[("a", "use crate::b::B;"), ("b", "")], &[]);
    check(&[("a", "use crate::b::B;"), ("b", "use crate::a::A;")], &["a", "b"]);
    check(&[("a", "use crate::{\n    c::C,\n    b::{self, B},\n};"), ("b", "use crate::a;"), ("c", "")], &["a", "b"]);
    check(&[("a", "use crate::{b::{c::D, E}};"), ("b", ""), ("c", "use crate::a::A;")], &[]);
    check(
        &[("a", "fn f(b: crate::b::B) {}"), ("b", "use crate::c::C;"), ("c", "type A = crate::a::A;")],
        &["a", "b", "c"],
    );
    check(&[("a", "/// [`crate::b::B`]"), ("b", "use crate::a::A; // crate::b")], &[]);
    check(&[("a", "#[cfg(test)]\nuse crate::b::B;"), ("b", "use crate::a::A;")], &[]);
    check(&[("a", "use crate::a::b::B;")], &[]);
    check(&[("lib", "pub use crate::a::A;"), ("a", "use crate::A;")], &["a", "lib"]);
    check(&[("lib", "pub use crate::{a::A, b::f};"), ("a", "use crate::f;"), ("b", "")], &["a", "lib"]);
    check(&[("lib", "pub use crate::{a::A, b::B};"), ("a", "use crate::{b::B};"), ("b", "")], &[]);
}

#[track_caller]
fn check(modules: &[(&str, &str)], want: &[&str]) {
    let imports = modules.iter().map(|(name, text)| ((*name).to_owned(), imported(text))).collect();
    assert_eq!(knot(imports).into_keys().collect::<Vec<_>>(), want);
}

/// Reads the files of a folder. Those below `src/shapes` are all part of `shapes`; a `tests.rs` is part
/// of nothing.
fn walk(folder: &Path, module: Option<&str>, imports: &mut Imports) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let module = module.unwrap_or(&name);
        if path.is_dir() {
            walk(&path, Some(module), imports);
        } else if name != "tests" {
            imports.entry(module.to_owned()).or_default().append(&mut imported(&fs::read_to_string(&path).unwrap()));
        }
    }
}

/// What a text names after `crate::`, in comments and below `#[cfg(test)]` excepted.
fn imported(text: &str) -> BTreeSet<String> {
    let production = text.split("#[cfg(test)]").next().unwrap_or_default();
    let code: String = production.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
    code.split("crate::").skip(1).flat_map(first_names).collect()
}

/// `a` of `a::B`; `a` and `b` of `{a::B, b::{c, D}}`.
fn first_names(path: &str) -> Vec<String> {
    let Some(group) = path.strip_prefix('{') else { return vec![name(path)] };
    let mut depth = 1;
    let mut items = vec![String::new()];
    for c in group.chars() {
        depth += i32::from(c == '{') - i32::from(c == '}');
        match items.last_mut() {
            _ if depth == 0 => break,
            Some(item) if depth > 1 || c != ',' => item.push(c),
            _ => items.push(String::new()),
        }
    }
    items.iter().map(|item| name(item)).filter(|name| !name.is_empty()).collect()
}

fn name(path: &str) -> String {
    path.trim().chars().take_while(|&c| c.is_alphanumeric() || c == '_').collect()
}

/// What remains when modules that import nothing, or that nothing imports, are taken away again and
/// again: circles, and what lies between two of them. A name that is no module's is one that `lib`
/// exports, so whoever imports it imports `lib`.
fn knot(mut imports: Imports) -> Imports {
    let modules: BTreeSet<String> = imports.keys().cloned().collect();
    let module = |name: &String| if modules.contains(name) { name.clone() } else { "lib".to_owned() };
    for (importer, names) in &mut imports {
        *names = names.iter().map(module).filter(|name| name != importer).collect();
    }
    loop {
        let left: BTreeSet<String> = imports.keys().cloned().collect();
        let used: BTreeSet<String> = imports.values().flatten().cloned().collect();
        imports.values_mut().for_each(|names| names.retain(|name| left.contains(name)));
        imports.retain(|name, names| !names.is_empty() && used.contains(name));
        if imports.len() == left.len() {
            return imports;
        }
    }
}
