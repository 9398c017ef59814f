//! Walks a parsed template and writes what it says.

use super::{
    arguments::Given,
    fault::{Done, Fault, Meter},
    filters,
    operators::{binary, compare, negative},
    parse::{Action, Applied, Arguments, Expr, ExprKind, For, Program, Target},
    text,
    value::{Dict, Value, View, check_hashable, display, insert},
};
use crate::date::Date;
use std::{collections::VecDeque, ops::Range, sync::Arc};

/// How deeply statements, expressions and calls of macros may stand in each other while rendering: about
/// sixty calls.
const NESTING: usize = 400;

/// What a scope and a loop cost, beside what happens in them, since they stay until the end.
const SCOPE_STEPS: u64 = 4;
const LOOP_STEPS: u64 = 8;

/// What one rendering remembers. Scopes, namespaces and loops lie in lists until its end and are named by
/// their places there, so no value can hold itself.
pub(super) struct Run<'p> {
    program: &'p Program,
    date: Date,
    pub(super) meter: Meter,
    most_bytes: usize,
    scopes: Vec<Scope>,
    namespaces: Vec<Vec<(Value, Value)>>,
    loops: Vec<Loop<'p>>,
    /// What is written: the text itself, and above it what macros and blocks capture.
    out: Vec<String>,
    /// Of each `generation` block, the bytes of the text before it and the characters that it wrote.
    generated: Vec<(usize, usize)>,
    nesting: usize,
}

struct Scope {
    names: Vec<(Arc<str>, Value)>,
    parent: Option<usize>,
}

/// A loop on its way. Where it has a condition, elements are asked for as late as in Jinja, since the body
/// may change what the condition reads.
struct Loop<'p> {
    node: &'p For,
    /// The scope around the loop.
    scope: usize,
    source: std::vec::IntoIter<Value>,
    /// Elements that have passed the condition and were not yet given out.
    ready: VecDeque<Value>,
    given: usize,
    depth0: i64,
    before: Option<Value>,
    current: Option<Value>,
    changed: Option<Value>,
}

/// Where a rendering goes on after a statement.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    Next,
    Break,
    Continue,
}

/// Renders a program with these names, and at most so many bytes. Returns the text and the bytes that
/// `generation` blocks wrote.
///
/// # Errors
/// What the template or Python raises; what is beyond this crate; what runs too long.
pub(super) fn run(
    program: &Program,
    names: Vec<(Arc<str>, Value)>,
    date: Date,
    most_bytes: usize,
) -> Done<(String, Vec<Range<usize>>)> {
    let scopes = vec![Scope { names, parent: None }, Scope { names: Vec::new(), parent: Some(0) }];
    let mut run = Run {
        program,
        date,
        meter: Meter::new(),
        most_bytes,
        scopes,
        namespaces: Vec::new(),
        loops: Vec::new(),
        out: vec![String::new()],
        generated: Vec::new(),
        nesting: 0,
    };
    run.body(&program.body, 1)?;
    let text = run.out.pop().unwrap_or_default();
    let generated = run.generated.iter().map(|&(start, characters)| {
        let after = text.get(start..).unwrap_or_default();
        let bytes = after.char_indices().nth(characters).map_or(after.len(), |(at, _)| at);
        start..start + bytes
    });
    let generated = generated.collect();
    Ok((text, generated))
}

impl<'p> Run<'p> {
    fn scope(&mut self, parent: usize) -> Done<usize> {
        self.meter.spend(SCOPE_STEPS)?;
        self.scopes.push(Scope { names: Vec::new(), parent: Some(parent) });
        Ok(self.scopes.len() - 1)
    }

    fn assign(&mut self, scope: usize, name: &Arc<str>, value: Value) {
        let names = &mut self.scopes[scope].names;
        match names.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = value,
            None => names.push((Arc::clone(name), value)),
        }
    }

    fn lookup(&self, mut scope: usize, name: &str) -> Done<Value> {
        loop {
            let here = &self.scopes[scope];
            if let Some((_, value)) = here.names.iter().find(|(known, _)| **known == *name) {
                return Ok(value.clone());
            }
            match here.parent {
                Some(parent) => scope = parent,
                None => break,
            }
        }
        match FUNCTIONS.into_iter().find(|known| *known == name) {
            Some("cycler" | "joiner" | "lipsum") => {
                Err(Fault::beyond(format!("it uses `{name}`, which is not rendered")))
            }
            Some(known) => Ok(Value::Function(known)),
            None => Ok(Value::undefined(format!("'{name}' is undefined"))),
        }
    }

    fn write(&mut self, text: &str) -> Done<()> {
        self.meter.spend_bytes(text.len())?;
        let most = self.most_bytes;
        if let Some(out) = self.out.last_mut() {
            if out.len() + text.len() > most {
                return Err(Fault::endless(format!("it writes more than {most} bytes")));
            }
            out.push_str(text);
        }
        Ok(())
    }

    /// Goes one level deeper for the time of `work`.
    fn nested<T>(&mut self, work: impl FnOnce(&mut Self) -> Done<T>) -> Done<T> {
        self.meter.spend(1)?;
        if self.nesting == NESTING {
            return Err(Fault::endless("it nests too deeply, or calls itself without end"));
        }
        self.nesting += 1;
        let result = work(self);
        self.nesting -= 1;
        result
    }

    fn body(&mut self, body: &'p [super::parse::Statement], scope: usize) -> Done<Flow> {
        for statement in body {
            let done = self.nested(|run| run.statement(&statement.action, scope));
            let flow = done.map_err(|fault| fault.at(statement.line))?;
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    /// What `body` writes in a scope of its own, and where the rendering goes on.
    fn captured(&mut self, body: &'p [super::parse::Statement], scope: usize) -> Done<(String, Flow)> {
        self.out.push(String::new());
        let flow = self.body(body, scope)?;
        Ok((self.out.pop().unwrap_or_default(), flow))
    }

    fn statement(&mut self, action: &'p Action, scope: usize) -> Done<Flow> {
        match action {
            Action::Text(text) => self.write(text)?,
            Action::Print(value) => {
                let value = self.value(value, scope)?;
                self.print(&value)?;
            }
            Action::For(node) => return self.for_statement(node, scope),
            Action::If(arms, otherwise) => {
                for (condition, body) in arms {
                    if self.value(condition, scope)?.truth() {
                        return self.body(body, scope);
                    }
                }
                return self.body(otherwise, scope);
            }
            Action::Set(target, value) => {
                let value = self.value(value, scope)?;
                self.set(target, value, scope)?;
            }
            Action::SetBlock(target, applied, body) => {
                let inner = self.scope(scope)?;
                let (text, flow) = self.captured(body, inner)?;
                if flow != Flow::Next {
                    return Ok(flow);
                }
                let value = self.filtered(Value::text(text), applied, scope)?;
                self.set(target, value, scope)?;
            }
            Action::With(pairs, body) => {
                let inner = self.scope(scope)?;
                for (target, value) in pairs {
                    let value = self.value(value, scope)?;
                    self.set(target, value, inner)?;
                }
                return self.body(body, inner);
            }
            Action::Macro(place) => {
                let name = Arc::clone(&self.program.macros[*place].name);
                self.assign(scope, &name, Value::Macro(*place, scope));
            }
            Action::Call(call, caller) => {
                let ExprKind::Call(callee, arguments) = &*call.kind else { return Ok(Flow::Next) };
                let callee = self.value(callee, scope)?;
                let mut given = self.given(arguments, scope)?;
                given.names.push(("caller".into(), Value::Macro(*caller, scope)));
                let value = self.call(&callee, given)?;
                self.print(&value)?;
            }
            Action::Filter(applied, body) => {
                let inner = self.scope(scope)?;
                let (text, flow) = self.captured(body, inner)?;
                if flow != Flow::Next {
                    return Ok(flow);
                }
                let value = self.filtered(Value::text(text), applied, scope)?;
                self.print(&value)?;
            }
            Action::Generation(body) => {
                let inner = self.scope(scope)?;
                let (text, _) = self.captured(body, inner)?;
                self.generated.push((self.out[0].len(), text.chars().count()));
                self.write(&text)?;
            }
            Action::Break => return Ok(Flow::Break),
            Action::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Next)
    }

    fn print(&mut self, value: &Value) -> Done<()> {
        let text = self.display(value)?;
        self.write(&text)
    }

    /// What Python's `str` makes of a value.
    pub(super) fn display(&mut self, value: &Value) -> Done<Arc<str>> {
        self.meter.spend(value.weight())?;
        display(value)
    }

    fn set(&mut self, target: &Target, value: Value, scope: usize) -> Done<()> {
        match target {
            Target::Name(name) => self.assign(scope, name, value),
            Target::Attribute(name, attribute) => {
                let Value::Namespace(place) = self.lookup(scope, name)? else {
                    return Err(Fault::refused("cannot assign attribute on non-namespace object"));
                };
                check_attribute(attribute)?;
                insert(&mut self.namespaces[place], Value::Text(Arc::clone(attribute)), value)?;
            }
            Target::Tuple(targets) => {
                let values = value.elements(&mut self.meter)?;
                if values.len() != targets.len() {
                    let what = format!("{} values are assigned to {} names", values.len(), targets.len());
                    return Err(Fault::refused(what));
                }
                for (target, value) in targets.iter().zip(values) {
                    self.set(target, value, scope)?;
                }
            }
        }
        Ok(())
    }

    fn for_statement(&mut self, node: &'p For, scope: usize) -> Done<Flow> {
        let over = self.value(&node.over, scope)?;
        self.for_each(node, &over, 0, scope)
    }

    fn for_each(&mut self, node: &'p For, over: &Value, depth0: i64, scope: usize) -> Done<Flow> {
        self.meter.spend(LOOP_STEPS)?;
        let source = over.elements(&mut self.meter)?.into_iter();
        let place = self.loops.len();
        let (ready, before, current, changed) = (VecDeque::new(), None, None, None);
        self.loops.push(Loop { node, scope, source, ready, given: 0, depth0, before, current, changed });
        let mut completed = false;
        while self.is_ready(place)? {
            let state = &mut self.loops[place];
            let Some(element) = state.ready.pop_front() else { break };
            state.before = state.current.replace(element.clone());
            state.given += 1;
            let inner = self.scope(scope)?;
            self.assign(inner, &"loop".into(), Value::Loop(place));
            self.set(&node.target, element, inner)?;
            match self.body(&node.body, inner)? {
                Flow::Break => break,
                Flow::Continue => {}
                // As in Jinja, a loop that `continue` cut short each time has not run for its `else`.
                Flow::Next => completed = true,
            }
        }
        if completed {
            return Ok(Flow::Next);
        }
        let inner = self.scope(scope)?;
        self.body(&node.otherwise, inner)
    }

    /// Asks the condition of a loop about elements until one has passed; whether there is one.
    fn is_ready(&mut self, place: usize) -> Done<bool> {
        while self.loops[place].ready.is_empty() {
            if !self.ask_next(place)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Asks the condition of a loop about the next element of its source, if there is one.
    fn ask_next(&mut self, place: usize) -> Done<bool> {
        let state = &mut self.loops[place];
        let Some(element) = state.source.next() else { return Ok(false) };
        let (node, scope) = (state.node, state.scope);
        let passes = match &node.test {
            None => true,
            Some(test) => {
                let inner = self.scope(scope)?;
                self.set(&node.target, element.clone(), inner)?;
                self.value(test, inner)?.truth()
            }
        };
        if passes {
            self.loops[place].ready.push_back(element);
        }
        Ok(true)
    }

    /// The elements of a loop: all of them, since somebody counts them.
    fn loop_length(&mut self, place: usize) -> Done<i64> {
        while self.ask_next(place)? {}
        let state = &self.loops[place];
        Ok((state.given + state.ready.len()) as i64)
    }

    fn loop_attribute(&mut self, place: usize, name: &str) -> Done<Option<Value>> {
        let state = &self.loops[place];
        let (index, depth0) = (state.given as i64, state.depth0);
        Ok(Some(match name {
            "index" => Value::Int(index),
            "index0" => Value::Int(index - 1),
            "first" => Value::Bool(index == 1),
            "last" => Value::Bool(!self.is_ready(place)?),
            "length" => Value::Int(self.loop_length(place)?),
            "revindex" => Value::Int(self.loop_length(place)? - index + 1),
            "revindex0" => Value::Int(self.loop_length(place)? - index),
            "depth" => Value::Int(depth0 + 1),
            "depth0" => Value::Int(depth0),
            "previtem" => match &state.before {
                Some(before) if index > 1 => before.clone(),
                _ => Value::undefined("there is no previous item"),
            },
            "nextitem" => match self.is_ready(place)? {
                true => self.loops[place].ready.front().cloned().unwrap_or(Value::None),
                false => Value::undefined("there is no next item"),
            },
            "cycle" | "changed" => Value::method(&Value::Loop(place), name),
            _ => return Ok(None),
        }))
    }

    fn filtered(&mut self, mut value: Value, applied: &'p [Applied], scope: usize) -> Done<Value> {
        for one in applied {
            let given = self.given(&one.arguments, scope)?;
            value = filters::filter(self, &one.name, value, given)?;
        }
        Ok(value)
    }

    fn given(&mut self, arguments: &'p Arguments, scope: usize) -> Done<Given> {
        let mut given = Given::default();
        for value in &arguments.places {
            given.places.push(self.value(value, scope)?);
        }
        for (name, value) in &arguments.names {
            given.names.push((Arc::clone(name), self.value(value, scope)?));
        }
        if let Some(more) = &arguments.more_places {
            let more = self.value(more, scope)?;
            given.places.extend(more.elements(&mut self.meter)?);
        }
        if let Some(more) = &arguments.more_names {
            let Value::Dict(more) = self.value(more, scope)? else {
                return Err(Fault::refused("argument after ** must be a mapping"));
            };
            for (key, value) in &more.entries {
                let Value::Text(key) = key else { return Err(Fault::refused("keywords must be strings")) };
                given.names.push((Arc::clone(key), value.clone()));
            }
        }
        Ok(given)
    }

    fn value(&mut self, expr: &'p Expr, scope: usize) -> Done<Value> {
        self.nested(|run| run.evaluate(&expr.kind, scope))
    }

    fn values(&mut self, exprs: &'p [Expr], scope: usize) -> Done<Vec<Value>> {
        exprs.iter().map(|expr| self.value(expr, scope)).collect()
    }

    fn evaluate(&mut self, kind: &'p ExprKind, scope: usize) -> Done<Value> {
        match kind {
            ExprKind::None => Ok(Value::None),
            ExprKind::Bool(value) => Ok(Value::Bool(*value)),
            ExprKind::Int(value) => Ok(Value::Int(*value)),
            ExprKind::Float(value) => Ok(Value::Float(*value)),
            ExprKind::Text(text) => Ok(Value::Text(Arc::clone(text))),
            ExprKind::Name(name) => self.lookup(scope, name),
            ExprKind::List(parts) => Value::list(self.values(parts, scope)?),
            ExprKind::Tuple(parts) => Value::tuple(self.values(parts, scope)?),
            ExprKind::Dict(pairs) => self.dict(pairs, scope),
            ExprKind::Attribute(of, name) => {
                let of = self.value(of, scope)?;
                self.attribute(&of, name)
            }
            ExprKind::Item(of, key) => {
                let of = self.value(of, scope)?;
                let key = self.value(key, scope)?;
                self.item(&of, &key)
            }
            ExprKind::Slice(of, parts) => self.slice(of, parts, scope),
            ExprKind::Call(callee, arguments) => {
                let callee = self.value(callee, scope)?;
                let given = self.given(arguments, scope)?;
                self.call(&callee, given)
            }
            ExprKind::Filter(value, applied) => {
                let value = self.value(value, scope)?;
                self.filtered(value, std::slice::from_ref(applied), scope)
            }
            ExprKind::Test(value, applied) => {
                let value = self.value(value, scope)?;
                let given = self.given(&applied.arguments, scope)?;
                Ok(Value::Bool(filters::test(self, &applied.name, &value, &given)?))
            }
            ExprKind::Not(value) => Ok(Value::Bool(!self.value(value, scope)?.truth())),
            ExprKind::Negative(value) => negative(&self.value(value, scope)?),
            ExprKind::Positive(value) => {
                let value = self.value(value, scope)?;
                // Twice the other way, so that what is no number is refused.
                negative(&negative(&value)?)
            }
            ExprKind::And(a, b) => {
                let a = self.value(a, scope)?;
                if a.truth() { self.value(b, scope) } else { Ok(a) }
            }
            ExprKind::Or(a, b) => {
                let a = self.value(a, scope)?;
                if a.truth() { Ok(a) } else { self.value(b, scope) }
            }
            ExprKind::If(condition, value, other) => {
                if self.value(condition, scope)?.truth() {
                    return self.value(value, scope);
                }
                match other {
                    Some(other) => self.value(other, scope),
                    None => Ok(Value::undefined("an inline `if` without `else` was false")),
                }
            }
            ExprKind::Binary(sign, a, b) => {
                let a = self.value(a, scope)?;
                let b = self.value(b, scope)?;
                binary(sign, &a, &b, &mut self.meter)
            }
            ExprKind::Concat(parts) => self.concat(parts, scope),
            ExprKind::Compare(first, rest) => self.comparison(first, rest, scope),
        }
    }

    #[inline(never)]
    fn dict(&mut self, pairs: &'p [(Expr, Expr)], scope: usize) -> Done<Value> {
        let mut entries = Vec::new();
        for (key, value) in pairs {
            let key = self.value(key, scope)?;
            let value = self.value(value, scope)?;
            self.meter.spend(entries.len() as u64 * key.weight())?;
            insert(&mut entries, key, value)?;
        }
        Value::dict(entries)
    }

    #[inline(never)]
    fn concat(&mut self, parts: &'p [Expr], scope: usize) -> Done<Value> {
        let mut text = String::new();
        for value in self.values(parts, scope)? {
            let part = self.display(&value)?;
            self.meter.spend_bytes(part.len())?;
            text.push_str(&part);
        }
        Ok(Value::text(text))
    }

    #[inline(never)]
    fn comparison(&mut self, first: &'p Expr, rest: &'p [(&'static str, Expr)], scope: usize) -> Done<Value> {
        let mut left = self.value(first, scope)?;
        for (sign, right) in rest {
            let right = self.value(right, scope)?;
            if !compare(sign, &left, &right, &mut self.meter)? {
                return Ok(Value::Bool(false));
            }
            left = right;
        }
        Ok(Value::Bool(true))
    }

    /// `of.name`: what Python calls an attribute, or else the entry of that name.
    pub(super) fn attribute(&mut self, of: &Value, name: &Arc<str>) -> Done<Value> {
        if let Some(found) = self.python_attribute(of, name)? {
            return Ok(found);
        }
        match of {
            Value::Dict(dict) => match dict.get_text(name) {
                Some(value) => Ok(value.clone()),
                None => Ok(missing(of, &Value::Text(Arc::clone(name)))),
            },
            _ => Ok(missing(of, &Value::Text(Arc::clone(name)))),
        }
    }

    /// `of[key]`: the entry or element, or else what Python calls an attribute.
    pub(super) fn item(&mut self, of: &Value, key: &Value) -> Done<Value> {
        if let Value::Undefined(what) = of {
            return Err(Fault::refused(&**what));
        }
        self.meter.spend(key.weight())?;
        let found = match (of, key.as_int()) {
            (Value::Dict(dict), _) => {
                self.meter.spend(dict.entries.len() as u64 * key.weight())?;
                dict.get(key).cloned()
            }
            (Value::List(items) | Value::Tuple(items), Some(at)) => {
                place(at, items.values.len()).and_then(|at| items.values.get(at).cloned())
            }
            (Value::Text(text), Some(at)) => {
                self.meter.spend_bytes(text.len())?;
                let at = place(at, text.chars().count());
                at.and_then(|at| text.chars().nth(at)).map(|c| Value::text(c.encode_utf8(&mut [0; 4]) as &str))
            }
            (Value::Range(start, _, step), Some(at)) => {
                place(at, of.length().unwrap_or(0)).map(|at| Value::Int(start + at as i64 * step))
            }
            _ => None,
        };
        if let Some(found) = found {
            return Ok(found);
        }
        if let Value::Text(name) = key
            && let Some(found) = self.python_attribute(of, name)?
        {
            return Ok(found);
        }
        Ok(missing(of, key))
    }

    /// A method, an attribute of a loop or namespace, or the two names of a group.
    pub(super) fn python_attribute(&mut self, of: &Value, name: &Arc<str>) -> Done<Option<Value>> {
        let unsafe_attribute = || {
            let what = format!("access to attribute '{name}' of '{}' object is unsafe.", of.type_name());
            Ok(Some(Value::undefined(what)))
        };
        let methods: &[&str] = match of {
            Value::Undefined(what) => return Err(Fault::refused(&**what)),
            Value::Loop(place) => return self.loop_attribute(*place, name),
            Value::Namespace(place) => {
                let found = self.namespaces[*place].iter().find(|(known, _)| known.as_text() == Some(name));
                return Ok(found.map(|(_, value)| value.clone()));
            }
            Value::Macro(place, _) => {
                let one = &self.program.macros[*place];
                return match &**name {
                    "name" => Ok(Some(Value::Text(Arc::clone(&one.name)))),
                    "arguments" => {
                        let names = one.parameters.iter().map(|(name, _)| Value::Text(Arc::clone(name)));
                        Value::tuple(names.collect()).map(Some)
                    }
                    _ => Ok(None),
                };
            }
            Value::Tuple(items) if items.values.len() == 2 && &**name == "grouper" => {
                return Ok(Some(items.values[0].clone()));
            }
            Value::Tuple(items) if items.values.len() == 2 && &**name == "list" => {
                return Ok(Some(items.values[1].clone()));
            }
            Value::Dict(_) if matches!(&**name, "clear" | "pop" | "popitem" | "setdefault" | "update") => {
                return unsafe_attribute();
            }
            Value::List(_)
                if matches!(
                    &**name,
                    "append" | "clear" | "pop" | "reverse" | "insert" | "sort" | "extend" | "remove"
                ) =>
            {
                return unsafe_attribute();
            }
            Value::Text(_) => &text::METHODS,
            Value::Dict(_) => &["copy", "fromkeys", "get", "items", "keys", "values"],
            Value::List(_) => &["copy", "count", "index"],
            Value::Tuple(_) | Value::Range(..) => &["count", "index"],
            Value::Float(_) => &["is_integer"],
            Value::Int(_) | Value::Bool(_) => &["bit_length"],
            _ => &[],
        };
        if methods.contains(&&**name) {
            return Ok(Some(Value::method(of, name)));
        }
        if name.starts_with("__") && !matches!(of, Value::None) { unsafe_attribute() } else { Ok(None) }
    }

    #[inline(never)]
    fn slice(&mut self, of: &'p Expr, parts: &'p [Option<Expr>; 3], scope: usize) -> Done<Value> {
        let of = self.value(of, scope)?;
        let mut bounds = [None; 3];
        let mut odd = false;
        for (bound, part) in bounds.iter_mut().zip(parts) {
            let Some(part) = part else { continue };
            let value = self.value(part, scope)?;
            *bound = value.as_int();
            odd |= bound.is_none() && !matches!(value, Value::None);
        }
        if let Value::Undefined(what) = &of {
            return Err(Fault::refused(&**what));
        }
        let unsliced = || Fault::refused(format!("'{}' object cannot be sliced", of.type_name()));
        let length = of.length().filter(|_| !matches!(of, Value::Dict(_) | Value::View(..))).ok_or_else(unsliced)?;
        if odd {
            return Err(Fault::refused("slice indices must be integers or None"));
        }
        self.meter.spend(of.breadth())?;
        let places = places(bounds, length as i64)?;
        match &of {
            Value::Text(text) => {
                // The characters take four bytes each.
                self.meter.spend_bytes(4 * text.len())?;
                let chars: Vec<char> = text.chars().collect();
                Ok(Value::text(places.map(|at| chars[at]).collect::<String>()))
            }
            Value::Range(start, _, step) => {
                // A range of Python stays one; as a tuple it is written otherwise, which nobody does.
                Value::tuple(places.map(|at| Value::Int(start + at as i64 * step)).collect())
            }
            Value::List(items) => Value::list(places.map(|at| items.values[at].clone()).collect()),
            Value::Tuple(items) => Value::tuple(places.map(|at| items.values[at].clone()).collect()),
            _ => Err(unsliced()),
        }
    }

    #[inline(never)]
    pub(super) fn call(&mut self, callee: &Value, given: Given) -> Done<Value> {
        match callee {
            Value::Undefined(what) => Err(Fault::refused(&**what)),
            Value::Macro(place, scope) => self.call_macro(*place, *scope, given),
            Value::Method(method) => self.call_method(&method.0, &method.1, &given),
            Value::Function(name) => self.call_function(name, &given),
            Value::Loop(place) => self.recurse(*place, &given),
            _ => Err(Fault::refused(format!("'{}' object is not callable", callee.type_name()))),
        }
    }

    fn call_macro(&mut self, place: usize, outer: usize, mut given: Given) -> Done<Value> {
        let program = self.program;
        let node = &program.macros[place];
        let scope = self.scope(outer)?;
        let wrong = |what: String| Fault::refused(format!("macro '{}' {what}", node.name));
        let more = given.places.split_off(node.parameters.len().min(given.places.len()));
        let mut places = given.places.into_iter();
        for (name, default) in &node.parameters {
            let named = given.names.iter().position(|(known, _)| known == name);
            let value = match (places.next(), named) {
                (Some(_), Some(_)) => return Err(wrong(format!("takes no keyword argument '{name}'"))),
                (Some(value), None) => value,
                (None, Some(at)) => given.names.remove(at).1,
                (None, None) => match default {
                    Some(default) => self.value(default, scope)?,
                    None => Value::undefined(format!("parameter '{name}' was not provided")),
                },
            };
            self.assign(scope, name, value);
        }
        if node.uses.caller && !node.parameters.iter().any(|(name, _)| &**name == "caller") {
            let caller = given.names.iter().position(|(name, _)| &**name == "caller");
            let caller = caller.map(|at| given.names.remove(at).1);
            self.assign(scope, &"caller".into(), caller.unwrap_or_else(|| Value::undefined("No caller defined")));
        }
        if node.uses.kwargs {
            let entries = given.names.drain(..).map(|(name, value)| (Value::Text(name), value));
            let entries = Value::dict(entries.collect())?;
            self.assign(scope, &"kwargs".into(), entries);
        } else if let Some((name, _)) = given.names.first() {
            return Err(wrong(format!("takes no keyword argument '{name}'")));
        }
        if node.uses.varargs {
            let more = Value::tuple(more)?;
            self.assign(scope, &"varargs".into(), more);
        } else if !more.is_empty() {
            return Err(wrong(format!("takes not more than {} argument(s)", node.parameters.len())));
        }
        let (text, _) = self.captured(&node.body, scope)?;
        Ok(Value::text(text))
    }

    fn recurse(&mut self, place: usize, given: &Given) -> Done<Value> {
        let [over] = given.bind("loop", ["iterable"])?;
        let (node, scope, depth0) = (self.loops[place].node, self.loops[place].scope, self.loops[place].depth0);
        if !node.recursive {
            return Err(Fault::refused("The loop must have the 'recursive' marker to be called recursively."));
        }
        let over = over.ok_or_else(|| Fault::refused("loop() lacks an argument"))?;
        self.out.push(String::new());
        self.for_each(node, &over, depth0 + 1, scope)?;
        Ok(Value::text(self.out.pop().unwrap_or_default()))
    }

    fn call_method(&mut self, of: &Value, name: &str, given: &Given) -> Done<Value> {
        match of {
            Value::Text(text) => text::call(text, name, given, &mut self.meter),
            Value::Dict(dict) => self.dict_method(dict, name, given),
            Value::Loop(place) => self.loop_method(*place, name, given),
            Value::Float(number) => Ok(Value::Bool(number.fract() == 0.0)),
            Value::Int(_) | Value::Bool(_) => {
                let size = of.as_int().unwrap_or(0).unsigned_abs();
                Ok(Value::Int(i64::from(u64::BITS - size.leading_zeros())))
            }
            Value::List(_) if name == "copy" => Ok(of.clone()),
            _ => {
                let [wanted] = given.bind(name, [""])?;
                let wanted = wanted.ok_or_else(|| Fault::refused(format!("{name}() lacks an argument")))?;
                self.meter.spend(of.weight())?;
                let elements = of.elements(&mut self.meter)?;
                let mut same = elements.iter().enumerate().filter(|(_, element)| super::value::equal(element, &wanted));
                match name {
                    "count" => Ok(Value::Int(same.count() as i64)),
                    _ => same
                        .next()
                        .map(|(at, _)| Value::Int(at as i64))
                        .ok_or_else(|| Fault::refused("it is not in list")),
                }
            }
        }
    }

    fn dict_method(&mut self, dict: &std::rc::Rc<Dict>, name: &str, given: &Given) -> Done<Value> {
        let view = match name {
            "get" => {
                let [key, default] = given.bind(name, ["", ""])?;
                let key = key.ok_or_else(|| Fault::refused("get() lacks an argument"))?;
                check_hashable(&key)?;
                self.meter.spend(dict.entries.len() as u64 * key.weight())?;
                return Ok(dict.get(&key).cloned().or(default).unwrap_or(Value::None));
            }
            "keys" => View::Keys,
            "values" => View::Values,
            "items" => View::Items,
            "copy" => return Ok(Value::Dict(std::rc::Rc::clone(dict))),
            _ => return Err(Fault::beyond(format!("it calls `{name}` of a dict, which is not rendered"))),
        };
        let [] = given.bind(name, [])?;
        Ok(Value::View(view, std::rc::Rc::clone(dict)))
    }

    fn loop_method(&mut self, place: usize, name: &str, given: &Given) -> Done<Value> {
        if name == "cycle" {
            let length = given.places.len();
            let at = self.loops[place].given.saturating_sub(1).checked_rem(length);
            let at = at.ok_or_else(|| Fault::refused("no items for cycling given"))?;
            return Ok(given.places[at].clone());
        }
        let now = Value::tuple(given.places.clone())?;
        let same = self.loops[place].changed.as_ref().is_some_and(|before| super::value::equal(before, &now));
        self.loops[place].changed = Some(now);
        Ok(Value::Bool(!same))
    }

    fn call_function(&mut self, name: &str, given: &Given) -> Done<Value> {
        match name {
            "raise_exception" => {
                let [message] = given.bind(name, ["message"])?;
                let message = message.ok_or_else(|| Fault::refused("raise_exception() lacks its message"))?;
                Err(Fault::refused(&*self.display(&message)?))
            }
            "strftime_now" => {
                let [format] = given.bind(name, ["format"])?;
                let Some(Value::Text(format)) = format else {
                    return Err(Fault::refused("strftime_now() wants a format"));
                };
                self.meter.spend_bytes(format.len())?;
                self.date.strftime(&format).map(Value::text).map_err(Fault::beyond)
            }
            "range" => range(given),
            "dict" => Value::dict(self.entries(given)?),
            _ => {
                let entries = self.entries(given)?;
                for (key, _) in &entries {
                    key.as_text().map_or(Ok(()), check_attribute)?;
                }
                // Its depth is checked, and so is its size.
                Value::dict(entries.clone())?;
                self.namespaces.push(entries);
                Ok(Value::Namespace(self.namespaces.len() - 1))
            }
        }
    }

    /// What `dict(...)` and `namespace(...)` are made of: a dict or pairs, and names.
    fn entries(&mut self, given: &Given) -> Done<Vec<(Value, Value)>> {
        let mut entries = match &given.places[..] {
            [] => Vec::new(),
            [Value::Dict(dict)] => dict.entries.clone(),
            [pairs] => {
                let mut entries = Vec::new();
                for pair in pairs.elements(&mut self.meter)? {
                    let [key, value] = <[Value; 2]>::try_from(pair.elements(&mut self.meter)?)
                        .map_err(|_| Fault::refused("dict() wants pairs of a key and a value"))?;
                    self.meter.spend(entries.len() as u64 * key.weight())?;
                    insert(&mut entries, key, value)?;
                }
                entries
            }
            _ => return Err(Fault::refused("dict() takes at most one argument by place")),
        };
        for (name, value) in &given.names {
            self.meter.spend(entries.len() as u64)?;
            insert(&mut entries, Value::Text(Arc::clone(name)), value.clone())?;
        }
        Ok(entries)
    }
}

/// What is defined everywhere.
const FUNCTIONS: [&str; 8] =
    ["range", "dict", "namespace", "raise_exception", "strftime_now", "cycler", "joiner", "lipsum"];

/// The sandbox of transformers allows no more.
const RANGE: usize = 100_000;

fn range(given: &Given) -> Done<Value> {
    let [first, second, step] = given.bind("range", ["", "", ""])?;
    let number = |value: Value| {
        let what = format!("'{}' object cannot be interpreted as an integer", value.type_name());
        value.as_int().ok_or_else(|| Fault::refused(what))
    };
    let first = number(first.ok_or_else(|| Fault::refused("range expected at least 1 argument, got 0"))?)?;
    let (start, stop) = match second {
        Some(stop) => (first, number(stop)?),
        None => (0, first),
    };
    let step = step.map_or(Ok(1), number)?;
    if step == 0 {
        return Err(Fault::refused("range() arg 3 must not be zero"));
    }
    let range = Value::Range(start, stop, step);
    if range.length().is_some_and(|length| length > RANGE) {
        return Err(Fault::refused(format!("Range too big. The sandbox blocks ranges larger than {RANGE}.")));
    }
    Ok(range)
}

fn check_attribute(name: &str) -> Done<()> {
    if name.starts_with('_') {
        let what =
            format!("Chat templates cannot store underscore-prefixed attributes on a namespace, but got '{name}'.");
        return Err(Fault::refused(what));
    }
    Ok(())
}

/// What stands where `of` has nothing.
fn missing(of: &Value, key: &Value) -> Value {
    let of = match of {
        Value::None => "None".to_owned(),
        _ => format!("{} object", of.type_name()),
    };
    Value::undefined(match key {
        Value::Text(name) => format!("'{of}' has no attribute '{name}'"),
        Value::Int(at) => format!("{of} has no element {at}"),
        _ => format!("{of} has no such element"),
    })
}

/// The place of an element that may be counted from the end.
fn place(at: i64, length: usize) -> Option<usize> {
    let at = if at < 0 { at.checked_add(length as i64)? } else { at };
    usize::try_from(at).ok().filter(|&at| at < length)
}

/// The places that a slice of Python takes from so many elements.
///
/// Errors: the step is zero.
fn places([start, stop, step]: [Option<i64>; 3], length: i64) -> Done<impl Iterator<Item = usize>> {
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(Fault::refused("slice step cannot be zero"));
    }
    let (lowest, highest) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let bound = |bound: Option<i64>, default: i64| match bound {
        None => default,
        Some(at) if at < 0 => at.saturating_add(length).max(lowest),
        Some(at) => at.min(highest),
    };
    let (first, last) = if step > 0 { (lowest, highest) } else { (highest, lowest) };
    let (start, stop) = (bound(start, first), bound(stop, last));
    let mut at = Some(start);
    Ok(std::iter::from_fn(move || {
        let here = at.filter(|&at| if step > 0 { at < stop } else { at > stop })?;
        at = here.checked_add(step);
        usize::try_from(here).ok()
    }))
}
