//! Tokens become a tree, by the grammar of Jinja2 3.1 with loop controls and transformers' `generation`.

use super::{
    fault::{Done, Fault},
    lex::{Token, tokens},
};
use std::sync::Arc;

/// A template, parsed. Macros, and the bodies that `call` hands to them, stand apart and are named by their
/// place.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) body: Body,
    pub(super) macros: Vec<Macro>,
}

pub(super) type Body = Vec<Statement>;

#[derive(Debug)]
pub(super) struct Statement {
    pub(super) line: usize,
    pub(super) action: Action,
}

#[derive(Debug)]
pub(super) enum Action {
    Text(Arc<str>),
    Print(Expr),
    For(Box<For>),
    /// Conditions with their bodies, and the body where none of them holds.
    If(Vec<(Expr, Body)>, Body),
    Set(Target, Expr),
    /// What the body writes goes through the filters into the target.
    SetBlock(Target, Vec<Applied>, Body),
    With(Vec<(Target, Expr)>, Body),
    Macro(usize),
    /// A call, and the macro that it receives as `caller`.
    Call(Expr, usize),
    Filter(Vec<Applied>, Body),
    Generation(Body),
    Break,
    Continue,
}

#[derive(Debug)]
pub(super) struct For {
    pub(super) target: Target,
    pub(super) over: Expr,
    pub(super) test: Option<Expr>,
    pub(super) recursive: bool,
    pub(super) body: Body,
    pub(super) otherwise: Body,
}

#[derive(Debug)]
pub(super) struct Macro {
    pub(super) name: Arc<str>,
    /// Names, and the defaults of the last of them.
    pub(super) parameters: Vec<(Arc<str>, Option<Expr>)>,
    pub(super) body: Body,
    /// Whether the body names `caller`, `varargs` and `kwargs`.
    pub(super) uses: Uses,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Uses {
    pub(super) caller: bool,
    pub(super) varargs: bool,
    pub(super) kwargs: bool,
}

#[derive(Debug)]
pub(super) enum Target {
    Name(Arc<str>),
    /// An attribute of a namespace.
    Attribute(Arc<str>, Arc<str>),
    Tuple(Vec<Target>),
}

/// A filter or a test with its arguments.
#[derive(Debug)]
pub(super) struct Applied {
    pub(super) name: Arc<str>,
    pub(super) arguments: Arguments,
}

#[derive(Debug, Default)]
pub(super) struct Arguments {
    pub(super) places: Vec<Expr>,
    pub(super) names: Vec<(Arc<str>, Expr)>,
    /// `*list` and `**dict`.
    pub(super) more_places: Option<Expr>,
    pub(super) more_names: Option<Expr>,
}

/// An expression, and how deeply it nests, which is limited so that walking it takes little of the stack.
#[derive(Debug)]
pub(super) struct Expr {
    pub(super) kind: Box<ExprKind>,
    depth: u16,
}

#[derive(Debug)]
pub(super) enum ExprKind {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Arc<str>),
    Name(Arc<str>),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Attribute(Expr, Arc<str>),
    Item(Expr, Expr),
    /// Start, stop and step.
    Slice(Expr, [Option<Expr>; 3]),
    Call(Expr, Arguments),
    Filter(Expr, Applied),
    Test(Expr, Applied),
    Not(Expr),
    Negative(Expr),
    Positive(Expr),
    And(Expr, Expr),
    Or(Expr, Expr),
    /// Condition, value, and other value.
    If(Expr, Expr, Option<Expr>),
    Binary(&'static str, Expr, Expr),
    Concat(Vec<Expr>),
    /// `a < b <= c`: an operator and an operand each.
    Compare(Expr, Vec<(&'static str, Expr)>),
}

/// How deeply expressions, and statements, may nest. Templates in use stay below thirty.
const DEPTH: u16 = 200;
const BLOCKS: u16 = 50;

impl Expr {
    fn new(kind: ExprKind, line: usize) -> Done<Expr> {
        let depth = 1 + deepest(&kind);
        if depth > DEPTH {
            return Err(too_deep(line));
        }
        Ok(Expr { kind: Box::new(kind), depth })
    }
}

fn too_deep(line: usize) -> Fault {
    Fault::endless("it nests too deeply").at(line)
}

/// The depth of the deepest part of an expression.
fn deepest(kind: &ExprKind) -> u16 {
    use ExprKind as K;
    let all = |parts: &[Expr]| parts.iter().map(|part| part.depth).max().unwrap_or(0);
    let of = |arguments: &Arguments| {
        let named = arguments.names.iter().map(|(_, value)| value.depth);
        let more = arguments.more_places.iter().chain(&arguments.more_names).map(|value| value.depth);
        named.chain(more).fold(all(&arguments.places), u16::max)
    };
    match kind {
        K::None | K::Bool(_) | K::Int(_) | K::Float(_) | K::Text(_) | K::Name(_) => 0,
        K::List(parts) | K::Tuple(parts) | K::Concat(parts) => all(parts),
        K::Dict(pairs) => pairs.iter().map(|(key, value)| key.depth.max(value.depth)).max().unwrap_or(0),
        K::Attribute(a, _) | K::Not(a) | K::Negative(a) | K::Positive(a) => a.depth,
        K::Item(a, b) | K::And(a, b) | K::Or(a, b) | K::Binary(_, a, b) => a.depth.max(b.depth),
        K::Slice(a, parts) => parts.iter().flatten().map(|part| part.depth).fold(a.depth, u16::max),
        K::Call(a, arguments) => a.depth.max(of(arguments)),
        K::Filter(a, applied) | K::Test(a, applied) => a.depth.max(of(&applied.arguments)),
        K::If(a, b, c) => a.depth.max(b.depth).max(c.as_ref().map_or(0, |c| c.depth)),
        K::Compare(a, rest) => rest.iter().map(|(_, b)| b.depth).fold(a.depth, u16::max),
    }
}

/// Parses a template.
pub(super) fn parse(source: &str) -> Done<Program> {
    let mut parser = Parser {
        tokens: tokens(source)?,
        at: 0,
        macros: Vec::new(),
        inside: Vec::new(),
        loops: 0,
        nesting: 0,
        blocks: 0,
    };
    let body = parser.body(&[])?;
    Ok(Program { body, macros: parser.macros })
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    at: usize,
    macros: Vec<Macro>,
    /// What the macros around this place use.
    inside: Vec<Uses>,
    /// Loops around this place that `break` would leave.
    loops: usize,
    nesting: u16,
    blocks: u16,
}

impl Parser {
    fn ahead(&self, tokens: usize) -> &Token {
        self.tokens.get(self.at + tokens).map_or(&Token::End, |(_, token)| token)
    }

    fn line(&self) -> usize {
        self.tokens[self.at.min(self.tokens.len() - 1)].0
    }

    fn next(&mut self) -> Token {
        let token = self.ahead(0).clone();
        self.at += 1;
        token
    }

    fn is_sign(&self, sign: &str) -> bool {
        matches!(self.ahead(0), Token::Sign(found) if *found == sign)
    }

    fn is_name(&self, word: &str) -> bool {
        matches!(self.ahead(0), Token::Name(name) if &**name == word)
    }

    fn skip_sign(&mut self, sign: &str) -> bool {
        let found = self.is_sign(sign);
        self.at += usize::from(found);
        found
    }

    fn skip_name(&mut self, word: &str) -> bool {
        let found = self.is_name(word);
        self.at += usize::from(found);
        found
    }

    fn unexpected<T>(&self, wanted: &str) -> Done<T> {
        Err(Fault::syntax(self.line(), format!("{wanted} is expected, not {}", named(self.ahead(0)))))
    }

    fn expect_sign(&mut self, sign: &str) -> Done<()> {
        if self.skip_sign(sign) { Ok(()) } else { self.unexpected(&format!("`{sign}`")) }
    }

    fn expect_name(&mut self, word: &str) -> Done<()> {
        if self.skip_name(word) { Ok(()) } else { self.unexpected(&format!("`{word}`")) }
    }

    fn expect_close(&mut self) -> Done<()> {
        match self.ahead(0) {
            Token::TagCloses => {
                self.at += 1;
                Ok(())
            }
            _ => self.unexpected("`%}`"),
        }
    }

    fn any_name(&mut self) -> Done<Arc<str>> {
        match self.ahead(0).clone() {
            Token::Name(name) => {
                self.at += 1;
                Ok(name)
            }
            _ => self.unexpected("a name"),
        }
    }

    /// Statements up to a tag whose name is one of `ends`, which is the next token then; without `ends`, up to
    /// the end of the template.
    fn body(&mut self, ends: &[&str]) -> Done<Body> {
        let mut body = Body::new();
        loop {
            let line = self.line();
            let action = match self.next() {
                Token::Data(text) => Action::Text(text),
                Token::PrintOpens => {
                    let value = self.tuple(true, &[])?;
                    if self.next() != Token::PrintCloses {
                        self.at -= 1;
                        return self.unexpected("`}}`");
                    }
                    Action::Print(value)
                }
                Token::TagOpens if ends.iter().any(|end| self.is_name(end)) => return Ok(body),
                Token::TagOpens => {
                    let word = self.any_name()?;
                    self.statement(&word, line, &mut body)?;
                    self.expect_close()?;
                    continue;
                }
                _ if ends.is_empty() => return Ok(body),
                _ => {
                    return Err(Fault::syntax(
                        line,
                        format!("the template ends where `{}` is wanted", ends.join("` or `")),
                    ));
                }
            };
            body.push(Statement { line, action });
        }
    }

    /// The statements of a block, up to one of `ends`; the head of its tag is read already.
    fn block(&mut self, ends: &[&str]) -> Done<Body> {
        self.skip_sign(":");
        self.expect_close()?;
        self.blocks += 1;
        if self.blocks > BLOCKS {
            return Err(too_deep(self.line()));
        }
        let body = self.body(ends);
        self.blocks -= 1;
        body
    }

    /// [`Parser::block`] with the name of the only tag that ends it.
    fn whole_block(&mut self, end: &str) -> Done<Body> {
        let body = self.block(&[end])?;
        self.expect_name(end)?;
        Ok(body)
    }

    fn statement(&mut self, word: &str, line: usize, body: &mut Body) -> Done<()> {
        let action = match word {
            "for" => self.for_loop()?,
            "if" => self.if_block()?,
            "set" => self.set()?,
            "with" => self.with()?,
            "macro" => {
                let name = self.any_name()?;
                Action::Macro(self.macro_of(name, "endmacro", true)?)
            }
            "call" => self.call_block()?,
            "filter" => {
                let filters = self.filters(true)?;
                Action::Filter(filters, self.whole_block("endfilter")?)
            }
            "generation" => {
                let outside = std::mem::take(&mut self.loops);
                let body = self.whole_block("endgeneration")?;
                self.loops = outside;
                Action::Generation(body)
            }
            "print" => return self.print(line, body),
            "break" | "continue" if self.loops == 0 => {
                return Err(Fault::syntax(line, format!("`{word}` stands outside of a loop")));
            }
            "break" => Action::Break,
            "continue" => Action::Continue,
            "extends" | "include" | "import" | "from" => {
                return Err(Fault::refused(format!("it uses `{word}`, and there is no other template")).at(line));
            }
            "block" | "autoescape" => {
                return Err(Fault::beyond(format!("it uses `{word}`, which is not rendered")).at(line));
            }
            _ => return Err(Fault::syntax(line, format!("`{word}` is no tag that is known here"))),
        };
        body.push(Statement { line, action });
        Ok(())
    }

    fn print(&mut self, line: usize, body: &mut Body) -> Done<()> {
        let mut first = true;
        while *self.ahead(0) != Token::TagCloses {
            if !std::mem::take(&mut first) {
                self.expect_sign(",")?;
            }
            let value = self.expression()?;
            body.push(Statement { line, action: Action::Print(value) });
        }
        Ok(())
    }

    fn for_loop(&mut self) -> Done<Action> {
        let target = self.target(&["in"], false)?;
        self.expect_name("in")?;
        let over = self.tuple(false, &["recursive"])?;
        let test = if self.skip_name("if") { Some(self.expression()?) } else { None };
        let recursive = self.skip_name("recursive");
        self.loops += 1;
        let body = self.block(&["endfor", "else"])?;
        self.loops -= 1;
        let otherwise = if self.skip_name("else") { self.block(&["endfor"])? } else { Body::new() };
        self.expect_name("endfor")?;
        Ok(Action::For(Box::new(For { target, over, test, recursive, body, otherwise })))
    }

    fn if_block(&mut self) -> Done<Action> {
        let mut arms = Vec::new();
        loop {
            let condition = self.tuple(false, &[])?;
            arms.push((condition, self.block(&["elif", "else", "endif"])?));
            if !self.skip_name("elif") {
                break;
            }
        }
        let otherwise = if self.skip_name("else") { self.block(&["endif"])? } else { Body::new() };
        self.expect_name("endif")?;
        Ok(Action::If(arms, otherwise))
    }

    fn set(&mut self) -> Done<Action> {
        let target = self.target(&[], true)?;
        if self.skip_sign("=") {
            return Ok(Action::Set(target, self.tuple(true, &[])?));
        }
        let filters = self.filters(false)?;
        Ok(Action::SetBlock(target, filters, self.whole_block("endset")?))
    }

    fn with(&mut self) -> Done<Action> {
        let mut pairs = Vec::new();
        while !matches!(self.ahead(0), Token::TagCloses) {
            if !pairs.is_empty() {
                self.expect_sign(",")?;
            }
            let target = self.target(&[], false)?;
            self.expect_sign("=")?;
            pairs.push((target, self.expression()?));
        }
        Ok(Action::With(pairs, self.whole_block("endwith")?))
    }

    /// The rest of a macro, and its place in the program.
    fn macro_of(&mut self, name: Arc<str>, end: &str, signed: bool) -> Done<usize> {
        let parameters = if signed { self.signature()? } else { Vec::new() };
        let (body, uses) = self.macro_body(end)?;
        Ok(self.keep(Macro { name, parameters, body, uses }))
    }

    fn keep(&mut self, one: Macro) -> usize {
        self.macros.push(one);
        self.macros.len() - 1
    }

    fn macro_body(&mut self, end: &str) -> Done<(Body, Uses)> {
        let outside = std::mem::take(&mut self.loops);
        self.inside.push(Uses::default());
        let body = self.whole_block(end)?;
        self.loops = outside;
        Ok((body, self.inside.pop().unwrap_or_default()))
    }

    fn signature(&mut self) -> Done<Vec<(Arc<str>, Option<Expr>)>> {
        self.expect_sign("(")?;
        let mut parameters: Vec<(Arc<str>, Option<Expr>)> = Vec::new();
        while !self.is_sign(")") {
            if !parameters.is_empty() {
                self.expect_sign(",")?;
            }
            let name = self.any_name()?;
            let default = if self.skip_sign("=") { Some(self.expression()?) } else { None };
            if default.is_none() && parameters.last().is_some_and(|(_, before)| before.is_some()) {
                let what = format!("the parameter `{name}` has no default and stands after one that has");
                return Err(Fault::syntax(self.line(), what));
            }
            parameters.push((name, default));
        }
        self.expect_sign(")")?;
        Ok(parameters)
    }

    fn call_block(&mut self) -> Done<Action> {
        let parameters = if self.is_sign("(") { self.signature()? } else { Vec::new() };
        let line = self.line();
        let call = self.expression()?;
        if !matches!(*call.kind, ExprKind::Call(..)) {
            return Err(Fault::syntax(line, "`call` wants a call"));
        }
        let (body, uses) = self.macro_body("endcall")?;
        let caller = Macro { name: "caller".into(), parameters, body, uses };
        Ok(Action::Call(call, self.keep(caller)))
    }

    /// What a value is assigned to: a name, several with commas, or an attribute of a namespace.
    fn target(&mut self, ends: &[&str], attributes: bool) -> Done<Target> {
        let mut parts = Vec::new();
        let mut comma = false;
        while !matches!(self.ahead(0), Token::TagCloses)
            && !self.is_sign(")")
            && !ends.iter().any(|end| self.is_name(end))
        {
            parts.push(self.one_target(attributes)?);
            comma = self.skip_sign(",");
            if !comma {
                break;
            }
        }
        match parts.pop() {
            Some(only) if parts.is_empty() && !comma => Ok(only),
            Some(last) => {
                parts.push(last);
                Ok(Target::Tuple(parts))
            }
            None => self.unexpected("a name"),
        }
    }

    fn one_target(&mut self, attributes: bool) -> Done<Target> {
        if self.skip_sign("(") {
            self.deeper()?;
            let inner = self.target(&[], attributes)?;
            self.nesting -= 1;
            self.expect_sign(")")?;
            return Ok(inner);
        }
        let line = self.line();
        let name = self.any_name()?;
        if matches!(&*name, "true" | "false" | "none" | "True" | "False" | "None") {
            return Err(Fault::syntax(line, format!("`{name}` cannot be assigned to")));
        }
        if attributes && self.skip_sign(".") {
            return Ok(Target::Attribute(name, self.any_name()?));
        }
        Ok(Target::Name(name))
    }

    fn deeper(&mut self) -> Done<()> {
        self.nesting += 1;
        if self.nesting > DEPTH { Err(too_deep(self.line())) } else { Ok(()) }
    }

    /// An expression, or several with commas between them: a tuple.
    fn tuple(&mut self, conditional: bool, ends: &[&str]) -> Done<Expr> {
        let line = self.line();
        let (mut parts, comma) = self.parts(conditional, ends)?;
        match parts.pop() {
            Some(only) if parts.is_empty() && !comma => Ok(only),
            Some(last) => {
                parts.push(last);
                Expr::new(ExprKind::Tuple(parts), line)
            }
            None => self.unexpected("an expression"),
        }
    }

    /// The parts of a tuple, and whether a comma makes it one.
    fn parts(&mut self, conditional: bool, ends: &[&str]) -> Done<(Vec<Expr>, bool)> {
        let (mut parts, mut comma) = (Vec::new(), false);
        loop {
            let closes = matches!(self.ahead(0), Token::PrintCloses | Token::TagCloses) || self.is_sign(")");
            if closes || ends.iter().any(|end| self.is_name(end)) {
                return Ok((parts, comma));
            }
            parts.push(if conditional { self.expression()? } else { self.or()? });
            if !self.skip_sign(",") {
                return Ok((parts, comma));
            }
            comma = true;
        }
    }

    fn expression(&mut self) -> Done<Expr> {
        self.deeper()?;
        let line = self.line();
        let mut value = self.or()?;
        while self.skip_name("if") {
            let condition = self.or()?;
            let other = if self.skip_name("else") { Some(self.expression()?) } else { None };
            value = Expr::new(ExprKind::If(condition, value, other), line)?;
        }
        self.nesting -= 1;
        Ok(value)
    }

    fn or(&mut self) -> Done<Expr> {
        let line = self.line();
        let mut left = self.and()?;
        while self.skip_name("or") {
            left = Expr::new(ExprKind::Or(left, self.and()?), line)?;
        }
        Ok(left)
    }

    fn and(&mut self) -> Done<Expr> {
        let line = self.line();
        let mut left = self.not()?;
        while self.skip_name("and") {
            left = Expr::new(ExprKind::And(left, self.not()?), line)?;
        }
        Ok(left)
    }

    fn not(&mut self) -> Done<Expr> {
        let line = self.line();
        if !self.skip_name("not") {
            return self.compare();
        }
        self.deeper()?;
        let value = self.not()?;
        self.nesting -= 1;
        Expr::new(ExprKind::Not(value), line)
    }

    fn compare(&mut self) -> Done<Expr> {
        let line = self.line();
        let first = self.sum()?;
        let mut rest = Vec::new();
        while let Some(operator) = self.comparison() {
            rest.push((operator, self.sum()?));
        }
        if rest.is_empty() { Ok(first) } else { Expr::new(ExprKind::Compare(first, rest), line) }
    }

    fn comparison(&mut self) -> Option<&'static str> {
        if self.is_name("not") && matches!(self.ahead(1), Token::Name(name) if &**name == "in") {
            self.at += 2;
            return Some("not in");
        }
        if self.skip_name("in") {
            return Some("in");
        }
        ["==", "!=", "<", "<=", ">", ">="].into_iter().find(|sign| self.skip_sign(sign))
    }

    fn sum(&mut self) -> Done<Expr> {
        let line = self.line();
        let mut left = self.concat()?;
        while let Some(sign) = ["+", "-"].into_iter().find(|sign| self.skip_sign(sign)) {
            left = Expr::new(ExprKind::Binary(sign, left, self.concat()?), line)?;
        }
        Ok(left)
    }

    fn concat(&mut self) -> Done<Expr> {
        let line = self.line();
        let mut parts = vec![self.product()?];
        while self.skip_sign("~") {
            parts.push(self.product()?);
        }
        match parts.pop() {
            Some(only) if parts.is_empty() => Ok(only),
            last => {
                parts.extend(last);
                Expr::new(ExprKind::Concat(parts), line)
            }
        }
    }

    fn product(&mut self) -> Done<Expr> {
        let line = self.line();
        let mut left = self.power()?;
        while let Some(sign) = ["*", "/", "//", "%"].into_iter().find(|sign| self.skip_sign(sign)) {
            left = Expr::new(ExprKind::Binary(sign, left, self.power()?), line)?;
        }
        Ok(left)
    }

    fn power(&mut self) -> Done<Expr> {
        let line = self.line();
        let mut left = self.unary(true)?;
        while self.skip_sign("**") {
            left = Expr::new(ExprKind::Binary("**", left, self.unary(true)?), line)?;
        }
        Ok(left)
    }

    fn unary(&mut self, filtered: bool) -> Done<Expr> {
        let line = self.line();
        let sign = ["-", "+"].into_iter().find(|sign| self.skip_sign(sign));
        let value = if let Some(sign) = sign {
            self.deeper()?;
            let value = self.unary(false)?;
            self.nesting -= 1;
            Expr::new(if sign == "-" { ExprKind::Negative(value) } else { ExprKind::Positive(value) }, line)?
        } else {
            self.primary()?
        };
        let value = self.postfix(value)?;
        if filtered { self.filtered(value) } else { Ok(value) }
    }

    fn primary(&mut self) -> Done<Expr> {
        let line = self.line();
        let kind = match self.next() {
            Token::Name(name) => self.name(name),
            Token::Text(text) => self.texts(text),
            Token::Int(number) => ExprKind::Int(number),
            Token::Float(number) => ExprKind::Float(number),
            Token::Sign("(") => return self.parentheses(line),
            Token::Sign("[") => ExprKind::List(self.listed("]", Parser::expression)?),
            Token::Sign("{") => ExprKind::Dict(self.listed("}", |parser| {
                let key = parser.expression()?;
                parser.expect_sign(":")?;
                Ok((key, parser.expression()?))
            })?),
            _ => {
                self.at -= 1;
                return self.unexpected("an expression");
            }
        };
        Expr::new(kind, line)
    }

    fn name(&mut self, name: Arc<str>) -> ExprKind {
        for uses in &mut self.inside {
            uses.caller |= &*name == "caller";
            uses.varargs |= &*name == "varargs";
            uses.kwargs |= &*name == "kwargs";
        }
        match &*name {
            "true" | "True" => ExprKind::Bool(true),
            "false" | "False" => ExprKind::Bool(false),
            "none" | "None" => ExprKind::None,
            _ => ExprKind::Name(name),
        }
    }

    /// Texts that stand side by side are one.
    fn texts(&mut self, first: Arc<str>) -> ExprKind {
        if !matches!(self.ahead(0), Token::Text(_)) {
            return ExprKind::Text(first);
        }
        let mut text = first.to_string();
        while let Token::Text(more) = self.ahead(0) {
            text.push_str(more);
            self.at += 1;
        }
        ExprKind::Text(text.into())
    }

    fn parentheses(&mut self, line: usize) -> Done<Expr> {
        let (mut parts, comma) = self.parts(true, &[])?;
        self.expect_sign(")")?;
        match parts.pop() {
            Some(only) if parts.is_empty() && !comma => Ok(only),
            last => {
                parts.extend(last);
                Expr::new(ExprKind::Tuple(parts), line)
            }
        }
    }

    /// Parts with commas between them up to `close`; a comma may stand after the last.
    fn listed<T>(&mut self, close: &str, part: impl Fn(&mut Parser) -> Done<T>) -> Done<Vec<T>> {
        let mut parts = Vec::new();
        while !self.skip_sign(close) {
            if !parts.is_empty() {
                self.expect_sign(",")?;
                if self.skip_sign(close) {
                    break;
                }
            }
            parts.push(part(self)?);
        }
        Ok(parts)
    }

    fn postfix(&mut self, mut value: Expr) -> Done<Expr> {
        loop {
            let line = self.line();
            let kind = match self.ahead(0) {
                Token::Sign(".") => self.attribute(value)?,
                Token::Sign("[") => self.subscript(value)?,
                Token::Sign("(") => ExprKind::Call(value, self.arguments()?),
                _ => return Ok(value),
            };
            value = Expr::new(kind, line)?;
        }
    }

    fn attribute(&mut self, value: Expr) -> Done<ExprKind> {
        self.at += 1;
        let line = self.line();
        match self.next() {
            Token::Name(name) => Ok(ExprKind::Attribute(value, name)),
            Token::Int(place) => Ok(ExprKind::Item(value, Expr::new(ExprKind::Int(place), line)?)),
            _ => {
                self.at -= 1;
                self.unexpected("a name or a number")
            }
        }
    }

    fn subscript(&mut self, value: Expr) -> Done<ExprKind> {
        self.at += 1;
        let line = self.line();
        if self.is_sign(":") {
            return self.slice(value, None);
        }
        let first = self.expression()?;
        if self.is_sign(":") {
            return self.slice(value, Some(first));
        }
        if self.skip_sign("]") {
            return Ok(ExprKind::Item(value, first));
        }
        let mut parts = vec![first];
        while !self.skip_sign("]") {
            self.expect_sign(",")?;
            parts.push(self.expression()?);
        }
        Ok(ExprKind::Item(value, Expr::new(ExprKind::Tuple(parts), line)?))
    }

    fn slice(&mut self, value: Expr, start: Option<Expr>) -> Done<ExprKind> {
        self.at += 1;
        let part = |parser: &mut Parser| {
            if parser.is_sign(":") || parser.is_sign("]") { Ok(None) } else { parser.expression().map(Some) }
        };
        let stop = part(self)?;
        let step = if self.skip_sign(":") { part(self)? } else { None };
        self.expect_sign("]")?;
        Ok(ExprKind::Slice(value, [start, stop, step]))
    }

    fn arguments(&mut self) -> Done<Arguments> {
        let line = self.line();
        self.expect_sign("(")?;
        let mut arguments = Arguments::default();
        let mut first = true;
        while !self.skip_sign(")") {
            if !std::mem::take(&mut first) {
                self.expect_sign(",")?;
                if self.skip_sign(")") {
                    break;
                }
            }
            self.argument(&mut arguments, line)?;
        }
        Ok(arguments)
    }

    fn argument(&mut self, arguments: &mut Arguments, line: usize) -> Done<()> {
        let (more_places, more_names) = (arguments.more_places.is_some(), arguments.more_names.is_some());
        let named = match (self.ahead(0), self.ahead(1)) {
            (Token::Name(name), Token::Sign("=")) => Some(Arc::clone(name)),
            _ => None,
        };
        let in_order = if self.is_sign("**") || named.is_some() {
            !more_names
        } else {
            !more_places && !more_names && (self.is_sign("*") || arguments.names.is_empty())
        };
        if !in_order {
            return Err(Fault::syntax(line, "the arguments of a call stand in the wrong order"));
        }
        if let Some(name) = named {
            self.at += 2;
            arguments.names.push((name, self.expression()?));
        } else if self.skip_sign("**") {
            arguments.more_names = Some(self.expression()?);
        } else if self.skip_sign("*") {
            arguments.more_places = Some(self.expression()?);
        } else {
            arguments.places.push(self.expression()?);
        }
        Ok(())
    }

    fn filtered(&mut self, mut value: Expr) -> Done<Expr> {
        loop {
            let line = self.line();
            value = if self.skip_sign("|") {
                Expr::new(ExprKind::Filter(value, self.applied()?), line)?
            } else if self.skip_name("is") {
                self.test(value, line)?
            } else if self.is_sign("(") {
                Expr::new(ExprKind::Call(value, self.arguments()?), line)?
            } else {
                return Ok(value);
            };
        }
    }

    /// Filters of a `filter` tag, whose first has no `|` before it, or of a `set` tag.
    fn filters(&mut self, first: bool) -> Done<Vec<Applied>> {
        let mut filters = Vec::new();
        if first {
            filters.push(self.applied()?);
        }
        while self.skip_sign("|") {
            filters.push(self.applied()?);
        }
        Ok(filters)
    }

    fn applied(&mut self) -> Done<Applied> {
        let name = self.dotted()?;
        let arguments = if self.is_sign("(") { self.arguments()? } else { Arguments::default() };
        Ok(Applied { name, arguments })
    }

    fn dotted(&mut self) -> Done<Arc<str>> {
        let mut name = self.any_name()?;
        while self.skip_sign(".") {
            name = format!("{name}.{}", self.any_name()?).into();
        }
        Ok(name)
    }

    fn test(&mut self, value: Expr, line: usize) -> Done<Expr> {
        let negated = self.skip_name("not");
        let name = self.dotted()?;
        let mut arguments = Arguments::default();
        if self.is_sign("(") {
            arguments = self.arguments()?;
        } else if self.begins_argument() {
            if self.is_name("is") {
                return Err(Fault::syntax(line, "a test follows a test"));
            }
            let first = self.primary()?;
            arguments.places.push(self.postfix(first)?);
        }
        let test = Expr::new(ExprKind::Test(value, Applied { name, arguments }), line)?;
        if negated { Expr::new(ExprKind::Not(test), line) } else { Ok(test) }
    }

    /// Whether the argument of a test follows, which needs no parentheses.
    fn begins_argument(&self) -> bool {
        match self.ahead(0) {
            Token::Name(name) => !matches!(&**name, "else" | "or" | "and"),
            Token::Text(_) | Token::Int(_) | Token::Float(_) => true,
            Token::Sign(sign) => matches!(*sign, "[" | "{"),
            _ => false,
        }
    }
}

/// A token, as messages write it.
fn named(token: &Token) -> String {
    match token {
        Token::Data(_) => "text".to_owned(),
        Token::TagOpens => "`{%`".to_owned(),
        Token::TagCloses => "`%}`".to_owned(),
        Token::PrintOpens => "`{{`".to_owned(),
        Token::PrintCloses => "`}}`".to_owned(),
        Token::Name(name) => format!("`{name}`"),
        Token::Text(text) => format!("the text {text:?}"),
        Token::Int(number) => format!("`{number}`"),
        Token::Float(number) => format!("`{number:?}`"),
        Token::Sign(sign) => format!("`{sign}`"),
        Token::End => "the end of the template".to_owned(),
    }
}
